"""Measure the training step with the same global batch on one process and on several, which exchange their gradients with Gloo.

python benchmarks/processes.py --root CAMVID --out runs/processes

Each process has one CPU device. All share the cores of this machine, so more processes do not make the step faster than the
cores allow. What they lose is the exchange, and the waiting for each other. Run this on an otherwise idle machine.
"""

import argparse
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys

from deeplab_jax.training.metrics_log import read_log

ROOT = pathlib.Path(__file__).parent.parent


def train(workdir: pathlib.Path, flags: list[str], processes: int) -> float:
    """Train a run with `processes` processes, and return the median time of a step in seconds.

    Raises:
      SystemExit: A process failed.
    """
    shutil.rmtree(workdir, ignore_errors=True)
    command = [sys.executable, "train.py", f"--workdir={workdir}", *flags]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    if processes == 1:
        commands = [command]
    else:
        with socket.create_server(("", 0)) as server:
            coordinator = f"localhost:{server.getsockname()[1]}"
        joined = [*command, f"--coordinator={coordinator}", f"--num_processes={processes}"]
        commands = [[*joined, f"--process_id={i}"] for i in range(processes)]
    children = [subprocess.Popen(each, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) for each in commands]
    codes = [child.wait() for child in children]
    if any(codes):
        sys.exit(f"A process of {workdir} failed.")
    rows = read_log(str(workdir), "train")
    return statistics.median(row["seconds_per_step"] for row in rows[1:])  # the first steps fill caches


def main() -> None:
    """Train and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, type=pathlib.Path, help="folder of a data set such as CamVid")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for the runs")
    parser.add_argument("--recipe", default="configs/camvid_r18.py")
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    fields = {"data.root": args.root.resolve(), "train.steps": args.steps, "train.epochs": 0, "train.log_every": 10}
    fields |= {"train.evaluate": False, "train.save_every": 0}
    flags = [f"--config={args.recipe}", *(f"--config.{name}={value}" for name, value in fields.items())]
    settings = {
        "1 process, 1 device": (1, ["--config.mesh.data=1"]),
        "1 process, 2 devices": (1, ["--config.mesh.data=2"]),
        "2 processes": (2, ["--config.mesh.data=0"]),
        "4 processes": (4, ["--config.mesh.data=0"]),
    }
    print("| | seconds per step |\n| --- | --- |")
    for number, (name, (processes, extra)) in enumerate(settings.items()):
        seconds = train(args.out.resolve() / str(number), [*flags, *extra], processes)
        print(f"| {name} | {seconds:.3f} |", flush=True)


if __name__ == "__main__":
    main()
