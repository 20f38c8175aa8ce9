"""Measure what a large data set costs before training: finding its samples, the first batch, checking and preparing.

python benchmarks/large_set.py --pairs 25000 --size 64 64               # the cost of the list itself
python benchmarks/large_set.py --pairs 96 --size 2160 3840 --jpeg       # the cost of a sample at 4K
python benchmarks/large_set.py --pairs 3475 --size 1024 2048 --jobs decode check

The set has a few drawn street scenes, and as many hard links to them as needed, in the custom layout. "decode" only reads every
sample, with the decoder and threads of the other jobs, which cannot be faster. Each job runs in its own process. Compare jobs
from one call, because other programs on the machine slow all of them.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque

DISTINCT = 12  # scenes


def draw_set(root: pathlib.Path, pairs: int, size: tuple[int, int], *, jpeg: bool) -> None:
    """Write a data set of `pairs` training samples and one validation sample."""
    import numpy as np
    from PIL import Image

    from deeplab_jax.scenes.scene import draw_scene

    suffix = "jpg" if jpeg else "png"
    (root / "distinct").mkdir(parents=True)
    files = []
    for i in range(min(DISTINCT, pairs)):
        scene = draw_scene(np.random.default_rng(i), size)
        files.append((root / "distinct" / f"{i}.{suffix}", root / "distinct" / f"{i}_mask.png"))
        Image.fromarray(scene.image).save(files[i][0], **({"quality": 92} if jpeg else {"compress_level": 6}))
        Image.fromarray(scene.label_ids).save(files[i][1])
    for split, count in (("train", pairs), ("val", 1)):
        for number, folder in enumerate(("input", "target")):
            (root / folder / split).mkdir(parents=True)
            for i in range(count):
                source = files[i % len(files)][number]
                os.link(source, root / folder / split / f"frame_{i:06}{source.suffix}")


def run_job(job: str, root: pathlib.Path, out: pathlib.Path) -> dict[str, float]:
    """Run one job in this process, and return its seconds of wall and processor time and its peak memory."""
    from rich.console import Console

    from deeplab_jax.config import Config, DataConfig
    from deeplab_jax.data.find import find_split
    from deeplab_jax.data.inspection import check
    from deeplab_jax.data.pipeline import train_batches
    from deeplab_jax.data.prepare import prepare
    from deeplab_jax.data.samples import read_sample
    from deeplab_jax.labels import CITYSCAPES
    from deeplab_jax.runtime.parallel import run_in_parallel

    data = DataConfig(root=str(root), batch_size=8, crop_size=(64, 64))
    samples = None if job in ("find", "first batch") else find_split(data, "train")
    start, used = time.perf_counter(), time.process_time()
    if job == "find":
        find_split(data, "train")
    elif job == "first batch":
        next(
            iter(train_batches(find_split(data, "train"), CITYSCAPES, data, Config().model.mean, seed=0, start_step=0, steps=9))
        )
    elif job == "decode":
        deque(run_in_parallel(lambda i: read_sample(samples, i) and None, range(len(samples)), 0), maxlen=0)
    elif job == "check":
        check({"train": samples}, CITYSCAPES)
    else:
        prepare(data, str(out), ["train"], Console(quiet=True))
    seconds = time.perf_counter() - start, time.process_time() - used
    # Linux reports the peak in KiB, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"seconds": round(seconds[0], 2), "cpu seconds": round(seconds[1], 2), "peak GB": round(peak / 1e9, 2)}


JOBS = ("find", "first batch", "decode", "check", "prepare")


def main() -> None:
    """Draw the set, and run each job in its own process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=25000)
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--jpeg", action="store_true", help="write images as JPEG instead of PNG")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS, metavar="JOB", help=", ".join(JOBS))
    parser.add_argument("--root", type=pathlib.Path, help=argparse.SUPPRESS)  # for the processes that run one job
    args = parser.parse_args()
    if args.root:
        print(json.dumps(run_job(args.jobs[0], args.root / "set", args.root / "records")))
        return
    with tempfile.TemporaryDirectory() as folder:
        draw_set(pathlib.Path(folder, "set"), args.pairs, tuple(args.size), jpeg=args.jpeg)
        for job in args.jobs:
            command = [sys.executable, __file__, "--root", folder, "--jobs", job]
            result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            print(json.dumps({"job": job} | json.loads(result.stdout.splitlines()[-1])), flush=True)


if __name__ == "__main__":
    main()
