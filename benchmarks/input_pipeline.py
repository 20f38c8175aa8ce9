"""Images a second of the input pipeline against the usual way in PyTorch, on the same cores, in turn.

pip install torch torchvision
python benchmarks/input_pipeline.py

Synthetic photos of 1024x2048 (photos.py), scaled by 0.5 to 2, cropped, mirrored, photometric: (a) PyTorch's DataLoader
(torch_loader.py); (b) ours from PNG; (c) ours from prepared records. Ours draws the numbers of the photometric distortion and
leaves the pixels to the device: (d) and (e) are (b) and (c) where these cores compute that as well. Each figure is the median
of the rounds, each ratio the median of the rounds' ratios to (a). Every measurement is a process of its own, warmed up, and
stopped before its source ends. Then: how long the first batch takes, and the resident memory over many images.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import photos
from rich.console import Console
from rich.table import Table

WAYS = {
    "a": "PyTorch DataLoader",
    "b": "ours, PNG",
    "c": "ours, records",
    "d": "ours, PNG, colours on these cores too",
    "e": "ours, records, colours on these cores too",
}
MEAN = (123.675, 116.28, 103.53)


def our_batches(root: pathlib.Path, crop: tuple[int, int], batch_size: int, threads: int, start: int) -> Iterator[Any]:
    """Training batches from step `start` on, without end."""
    import dataclasses

    from deeplab_jax.config import DataConfig
    from deeplab_jax.data.find import find_split
    from deeplab_jax.data.pipeline import train_batches
    from deeplab_jax.labels import CITYSCAPES

    labels = dataclasses.replace(CITYSCAPES, ids=(), ignored_ids=(255,))
    data = DataConfig(root=str(root), batch_size=batch_size, crop_size=crop, photometric=True, threads=threads)
    return train_batches(find_split(data, "train"), labels, data, MEAN, seed=0, start_step=start, steps=10**9)


def colored(batches: Iterator[Any]) -> Iterator[Any]:
    """Batches whose colours are distorted and normalised by XLA on this machine's cores."""
    import jax
    import jax.numpy as jnp

    from deeplab_jax.train.photometric import distort

    step = jax.jit(lambda images, factors: distort(images.astype(jnp.float32), factors).astype(jnp.uint8))
    for batch in batches:
        yield step(batch["image"], batch["photometric"]).block_until_ready()


def batches_of(way: str, args: argparse.Namespace) -> Iterator[Any]:
    """The batches of one of WAYS."""
    crop = tuple(args.crop)
    if way == "a":
        import torch_loader

        return torch_loader.batches(args.root / "png", crop, photos.SIZE, args.batch_size, args.cores)
    ours = our_batches(args.root / ("png" if way in "bd" else "records"), crop, args.batch_size, args.cores, args.start)
    return colored(ours) if way in "de" else ours


def rate(way: str, args: argparse.Namespace) -> dict[str, float]:
    """Of this process: seconds to the first batch, then images a second once the queues are full."""
    if way != "a":
        import deeplab_jax.data.pipeline  # noqa: F401  (what a training has loaded by then)
    began = time.perf_counter()
    batches = batches_of(way, args)
    next(batches)
    first = time.perf_counter() - began
    while time.perf_counter() - began < args.warm_up:
        next(batches)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < args.seconds:
        next(batches)
        count += args.batch_size
    return {"first": first, "images_per_second": count / (time.perf_counter() - began)}


def resident(way: str, args: argparse.Namespace) -> dict[str, Any]:
    """{number of images read: resident MiB} of this process."""
    rows: dict[int, float] = {}
    for number, _ in enumerate(batches_of(way, args), start=1):
        images = number * args.batch_size
        if images % 2000 < args.batch_size:
            status = pathlib.Path("/proc/self/status").read_text()
            rows[images] = int(status.split("VmRSS:")[1].split()[0]) / 1024
        if images >= args.memory_images:
            return {"resident": rows}
    return {}


def measured(way: str, job: str, args: argparse.Namespace, **changes: Any) -> dict[str, Any]:
    """What a process of its own measured."""
    values = vars(args) | changes
    words = [sys.executable, __file__, "--one", job, way, json.dumps(values, default=str)]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        raise SystemExit(f"{WAYS[way]}: {result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def one(job: str, way: str, text: str) -> None:
    """A measurement, in the process made for it."""
    args = argparse.Namespace(**json.loads(text))
    args.root = pathlib.Path(args.root)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    print(json.dumps({"rate": rate, "resident": resident}[job](way, args)))


def prepare(args: argparse.Namespace, console: Console) -> None:
    """The photos, and records of them."""
    from deeplab_jax.config import DataConfig
    from deeplab_jax.data.prepare import prepare as write_records

    photos.write(args.root / "png", args.photos)
    sizes = [path.stat().st_size / 1e6 for path in sorted((args.root / "png" / "input").iterdir())]
    console.print(f"{len(sizes)} photos, {statistics.mean(sizes):.2f} MB each")
    write_records(DataConfig(root=str(args.root / "png")), str(args.root / "records"), ("train",), console)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, help="folder for photos and records, which is kept")
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--crops", type=int, nargs="+", default=(512, 1024, 769, 769), help="height width of each crop")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--cores", type=int, default=2, help="cores, loader processes and threads")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-up", type=float, default=6, help="seconds before counting")
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--memory-images", type=int, default=20_000, help="0 leaves memory out")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--json", type=pathlib.Path, help="file to write every measurement to")
    args = parser.parse_args()
    args.start = 0
    console = Console(width=128)
    with tempfile.TemporaryDirectory() as scratch:
        args.root = args.root or pathlib.Path(scratch)
        prepare(args, console)
        found: dict[str, Any] = {}
        for crop in zip(args.crops[::2], args.crops[1::2], strict=True):
            name = "x".join(map(str, crop))
            found[name] = [{way: measured(way, "rate", args, crop=crop) for way in args.ways} for _ in range(args.rounds)]
            console.print(rates_table(name, found[name]))
        crop = tuple(args.crops[:2])
        quick = {"warm_up": 0, "seconds": 0, "crop": crop}
        for way in [way for way in ("b", "c") if way in args.ways]:
            times = [[measured(way, "rate", args, start=s, **quick)["first"] for _ in range(3)] for s in (0, 100_000)]
            found[f"first batch, {way}"] = times
            shown = " and ".join(f"{statistics.median(each):.2f} s" for each in times)
            console.print(f"first batch, {WAYS[way]}, at step 0 and at step 100,000: {shown}")
            if args.memory_images:
                rows = measured(way, "resident", args, crop=crop)["resident"]
                found[f"resident, {way}"] = rows
                console.print(
                    f"resident MiB, {WAYS[way]}, by images read: {', '.join(f'{k}: {v:.0f}' for k, v in rows.items())}"
                )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def rates_table(crop: str, rounds: list[dict[str, Any]]) -> Table:
    """Medians over the rounds, and of the ratios within them."""
    table = Table("crop " + crop, "images/s", "times (a)", "first batch, s")
    for way in rounds[0]:
        rates = [row[way]["images_per_second"] for row in rounds]
        ratios = [row[way]["images_per_second"] / row["a"]["images_per_second"] for row in rounds if "a" in row]
        cells = [f"{statistics.median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})"]
        cells.append(f"{statistics.median(ratios):.2f}" if ratios else "")
        table.add_row(f"({way}) {WAYS[way]}", *cells, f"{statistics.median(row[way]['first'] for row in rounds):.2f}")
    return table


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
    else:
        main()
