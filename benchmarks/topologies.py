"""Repeat a training run on different numbers of devices and processes, and compare the samples and parameters.

python benchmarks/topologies.py --config=configs/quickstart.py --config.data.batch_size=8

The devices are virtual CPU devices. If Open MPI's mpirun is installed, a two-process run is included. Flags not listed
below are passed on to train.py. The distance between a run a and its baseline b is |a - b| / |b|, taken over all parameters
and running statistics. The baseline is the run on one device. Resumed runs all start on four devices, so their baseline is the
one that also resumes on four.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from deeplab_jax.checkpoints.store import restore_variables

ROOT = pathlib.Path(__file__).parent.parent


def run(workdir: pathlib.Path, flags: list[str], steps: int, devices: int, launcher: tuple[str, ...] = ()) -> None:
    """Train to step `steps` by running `train.py` with `devices` virtual devices per process."""
    schedule = ["--config.train.eval_every=0", "--config.train.save_every=0", "--config.train.log_every=1"]
    command = [*launcher, sys.executable, str(ROOT / "train.py"), f"--workdir={workdir}", *flags, *schedule]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    result = subprocess.run(
        [*command, f"--config.train.steps={steps}"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise SystemExit(f"{workdir.name}: {result.stdout[-2000:]}\n{result.stderr[-4000:]}")


def samples(workdir: pathlib.Path) -> str:
    """Return a digest of the run's training samples, in order."""
    return json.loads((workdir / "receipts.jsonl").read_text().splitlines()[-1])["samples"]


def distance(a: pathlib.Path, b: pathlib.Path) -> float:
    """Return |a - b| / |b| over the parameters and running statistics in the two runs' last checkpoints."""
    ours, theirs = (np.concatenate([x.ravel() for x in jax.tree.leaves(restore_variables(str(each)))]) for each in (a, b))
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def main() -> None:
    """Train all runs and print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--devices", type=int, nargs="+", default=(2, 4, 8))
    args, flags = parser.parse_known_args()
    mpirun = ("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2")
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        run(work / "1", flags, args.steps, 1)
        table = Table("devices", "samples", "distance", title=f"{args.steps} steps, compared with one device")
        for devices in args.devices:
            run(work / str(devices), flags, args.steps, devices)
        names = [str(devices) for devices in args.devices]
        if shutil.which("mpirun"):
            run(work / "2 processes x 2", flags, args.steps, 2, mpirun)
            names.append("2 processes x 2")
        for name in names:
            is_same = samples(work / name) == samples(work / "1")
            table.add_row(name, "the same" if is_same else "DIFFERENT", f"{distance(work / name, work / '1'):.1e}")
        console.print(table)

        table = Table("resumed on", "samples", "distance", title=f"{args.steps} steps on 4 devices, then {args.steps} more")
        run(work / "first", flags, args.steps, 4)
        for devices in (4, 1, 2, 8):
            shutil.copytree(work / "first", work / f"then {devices}")
            run(work / f"then {devices}", flags, 2 * args.steps, devices)
            is_same = samples(work / f"then {devices}") == samples(work / "then 4")
            difference = distance(work / f"then {devices}", work / "then 4")
            table.add_row(str(devices), "the same" if is_same else "DIFFERENT", f"{difference:.1e}")
        console.print(table)


if __name__ == "__main__":
    main()
