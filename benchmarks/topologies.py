"""The same run on other devices and hosts: are the samples the same, and how far apart are the parameters?

python benchmarks/topologies.py --config=configs/quickstart.py --config.data.batch_size=8

Fake CPU devices; the run of two processes is started by Open MPI's mpirun, if there is one. What follows the flags below goes
to train.py. Distances are |a - b| / |b| over all parameters and running statistics, b being the run on one device (or, of
the resumed runs, on the four devices that all of them started on).
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
    """`train.py` to `steps`, on that many fake devices a process."""
    schedule = ["--config.train.eval_every=0", "--config.train.save_every=0", "--config.train.log_every=1"]
    words = [*launcher, sys.executable, str(ROOT / "train.py"), f"--workdir={workdir}", *flags, *schedule]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    result = subprocess.run(
        [*words, f"--config.train.steps={steps}"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise SystemExit(f"{workdir.name}: {result.stdout[-2000:]}\n{result.stderr[-4000:]}")


def samples(workdir: pathlib.Path) -> str:
    """Digest of all samples that the run consumed, in their order."""
    return json.loads((workdir / "receipts.jsonl").read_text().splitlines()[-1])["samples"]


def distance(a: pathlib.Path, b: pathlib.Path) -> float:
    """|a - b| / |b| of the last checkpoints' parameters and statistics."""
    ours, theirs = (np.concatenate([x.ravel() for x in jax.tree.leaves(restore_variables(str(each)))]) for each in (a, b))
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def main() -> None:
    """Runs and prints the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--devices", type=int, nargs="+", default=(2, 4, 8))
    args, flags = parser.parse_known_args()
    mpirun = ("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2")
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        run(work / "1", flags, args.steps, 1)
        table = Table("devices", "samples", "distance", title=f"{args.steps} steps, against one device")
        for devices in args.devices:
            run(work / str(devices), flags, args.steps, devices)
        names = [str(devices) for devices in args.devices]
        if shutil.which("mpirun"):
            run(work / "2 processes x 2", flags, args.steps, 2, mpirun)
            names.append("2 processes x 2")
        for name in names:
            same = samples(work / name) == samples(work / "1")
            table.add_row(name, "the same" if same else "OTHERS", f"{distance(work / name, work / '1'):.1e}")
        console.print(table)

        table = Table("resumed on", "samples", "distance", title=f"{args.steps} steps on 4 devices, then {args.steps} more")
        run(work / "first", flags, args.steps, 4)
        for devices in (4, 1, 2, 8):
            shutil.copytree(work / "first", work / f"then {devices}")
            run(work / f"then {devices}", flags, 2 * args.steps, devices)
            same = samples(work / f"then {devices}") == samples(work / "then 4")
            apart = distance(work / f"then {devices}", work / "then 4")
            table.add_row(str(devices), "the same" if same else "OTHERS", f"{apart:.1e}")
        console.print(table)


if __name__ == "__main__":
    main()
