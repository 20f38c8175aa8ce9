"""Compare the speed of our input pipeline with that of the usual PyTorch approach on the same cores.

pip install torch torchvision
python benchmarks/input_pipeline.py

The samples are synthetic 1024x2048 photos (photos.py). They are scaled by a random factor from 0.5 to 2, cropped, randomly
mirrored and photometrically distorted. The following pipelines are measured in turn:

(a) PyTorch's DataLoader (torch_loader.py)
(b) this package, from PNG files
(c) this package, from prepared records
(d) like (b), but with the photometric distortion computed on these cores
(e) like (c), but with the photometric distortion computed on these cores

As in training, (b) and (c) only draw the random distortion factors and leave it to the accelerator to apply them. Each
figure is a median over all rounds, and each ratio is the median of the per-round ratios to (a). Every measurement runs in a
separate process, starts after a warm-up, and stops before its data runs out. The time to the first batch and the resident
memory over many images are also measured.
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
    "d": "ours, PNG, with colour distortion on these cores",
    "e": "ours, records, with colour distortion on these cores",
}
MEAN = (123.675, 116.28, 103.53)


def our_batches(root: pathlib.Path, crop: tuple[int, int], batch_size: int, threads: int, start: int) -> Iterator[Any]:
    """Return an endless iterator over training batches that starts at step `start`."""
    import dataclasses

    from deeplab_jax.config import DataConfig
    from deeplab_jax.data.find import find_split
    from deeplab_jax.data.pipeline import train_batches
    from deeplab_jax.labels import CITYSCAPES

    labels = dataclasses.replace(CITYSCAPES, ids=(), ignored_ids=(255,))
    data = DataConfig(root=str(root), batch_size=batch_size, crop_size=crop, photometric=True, threads=threads)
    return train_batches(find_split(data, "train"), labels, data, MEAN, seed=0, start_step=start, steps=10**9)


def distort_colors(batches: Iterator[Any]) -> Iterator[Any]:
    """Yield each batch's images after XLA has applied the photometric distortion on this machine's cores."""
    import jax
    import jax.numpy as jnp

    from deeplab_jax.training.photometric import distort

    step = jax.jit(lambda images, factors: distort(images.astype(jnp.float32), factors).astype(jnp.uint8))
    for batch in batches:
        yield step(batch["image"], batch["photometric"]).block_until_ready()


def open_batches(way: str, args: argparse.Namespace) -> Iterator[Any]:
    """Return an iterator over batches from the pipeline with key `way` in WAYS."""
    crop = tuple(args.crop)
    if way == "a":
        import torch_loader

        return torch_loader.batches(args.root / "png", crop, photos.SIZE, args.batch_size, args.cores)
    ours = our_batches(args.root / ("png" if way in "bd" else "records"), crop, args.batch_size, args.cores, args.start)
    return distort_colors(ours) if way in "de" else ours


def measure_rate(way: str, args: argparse.Namespace) -> dict[str, float]:
    """Measure how many seconds the first batch takes and, once the queues are full, how many images arrive per second."""
    if way != "a":
        import deeplab_jax.data.pipeline  # noqa: F401  (a training run has already imported it)
    start_time = time.perf_counter()
    batches = open_batches(way, args)
    next(batches)
    first = time.perf_counter() - start_time
    while time.perf_counter() - start_time < args.warm_up:
        next(batches)
    count, start_time = 0, time.perf_counter()
    while time.perf_counter() - start_time < args.seconds:
        next(batches)
        count += args.batch_size
    return {"first": first, "images_per_second": count / (time.perf_counter() - start_time)}


def measure_memory(way: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return {"resident": rows}, where `rows` maps the number of images read so far to the resident memory in MiB."""
    rows: dict[int, float] = {}
    for number, _ in enumerate(open_batches(way, args), start=1):
        images = number * args.batch_size
        if images % 2000 < args.batch_size:
            status = pathlib.Path("/proc/self/status").read_text()
            rows[images] = int(status.split("VmRSS:")[1].split()[0]) / 1024
        if images >= args.memory_images:
            return {"resident": rows}
    return {}


def run_in_process(way: str, job: str, args: argparse.Namespace, **changes: Any) -> dict[str, Any]:
    """Run a measurement in a separate process and return its result.

    Args:
      way: The pipeline's key in WAYS.
      job: "rate" or "resident".
      args: The program's flags.
      **changes: Flags to override for this measurement.
    """
    values = vars(args) | changes
    command = [sys.executable, __file__, "--one", job, way, json.dumps(values, default=str)]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        raise SystemExit(f"{WAYS[way]}: {result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def run_job(job: str, way: str, text: str) -> None:
    """Run one measurement in this process and print the result as JSON. `text` contains the flags as JSON."""
    args = argparse.Namespace(**json.loads(text))
    args.root = pathlib.Path(args.root)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    print(json.dumps({"rate": measure_rate, "resident": measure_memory}[job](way, args)))


def prepare(args: argparse.Namespace, console: Console) -> None:
    """Write the photos, and prepare records from them."""
    from deeplab_jax.config import DataConfig
    from deeplab_jax.data.prepare import prepare as write_records

    photos.write(args.root / "png", args.photos)
    sizes = [path.stat().st_size / 1e6 for path in sorted((args.root / "png" / "input").iterdir())]
    console.print(f"{len(sizes)} photos, {statistics.mean(sizes):.2f} MB each")
    write_records(DataConfig(root=str(args.root / "png")), str(args.root / "records"), ("train",), console)


def main() -> None:
    """Run all measurements and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root", type=pathlib.Path, help="folder for photos and records, which is kept; default: a temporary folder"
    )
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--crops", type=int, nargs="+", default=(512, 1024, 769, 769), help="height and width of each crop")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--cores", type=int, default=2, help="number of cores, loader processes and threads")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-up", type=float, default=6, help="seconds before the measurement starts")
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument(
        "--memory-images", type=int, default=20_000, help="number of images for the memory measurement; 0 skips it"
    )
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--json", type=pathlib.Path, help="file for all measurements")
    args = parser.parse_args()
    args.start = 0
    console = Console(width=128)
    with tempfile.TemporaryDirectory() as scratch:
        args.root = args.root or pathlib.Path(scratch)
        prepare(args, console)
        results: dict[str, Any] = {}
        for crop in zip(args.crops[::2], args.crops[1::2], strict=True):
            name = "x".join(map(str, crop))
            results[name] = [
                {way: run_in_process(way, "rate", args, crop=crop) for way in args.ways} for _ in range(args.rounds)
            ]
            console.print(rates_table(name, results[name]))
        crop = tuple(args.crops[:2])
        quick = {"warm_up": 0, "seconds": 0, "crop": crop}
        for way in [way for way in ("b", "c") if way in args.ways]:
            times = [[run_in_process(way, "rate", args, start=s, **quick)["first"] for _ in range(3)] for s in (0, 100_000)]
            results[f"first batch, {way}"] = times
            times_text = " and ".join(f"{statistics.median(each):.2f} s" for each in times)
            console.print(f"first batch, {WAYS[way]}, at step 0 and at step 100,000: {times_text}")
            if args.memory_images:
                rows = run_in_process(way, "resident", args, crop=crop)["resident"]
                results[f"resident, {way}"] = rows
                memory_text = ", ".join(f"{k}: {v:.0f}" for k, v in rows.items())
                console.print(f"resident MiB, {WAYS[way]}, by number of images read: {memory_text}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


def rates_table(crop: str, rounds: list[dict[str, Any]]) -> Table:
    """Return a table of each pipeline's median rate and the median of its per-round ratios to (a)."""
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
        run_job(*sys.argv[2:])
    else:
        main()
