"""Train with two processes, one of which shares its core with other programs."""

import contextlib
import os
import re
import socket
import subprocess
import sys

import pytest
from conftest import ROOT, TINY
from slurm import wait_until

CORES = sorted(os.sched_getaffinity(0))[:2]
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")]
ENVIRONMENT = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}


@contextlib.contextmanager
def running(core, command):
    """Run a program on one core during the block."""
    process = subprocess.Popen(["taskset", "--cpu-list", str(core), *map(str, command)], cwd=ROOT, env=ENVIRONMENT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_log_names_the_process_that_the_other_one_waits_for(street_scenes, tmp_path):
    with socket.create_server(("", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    fields = {"data.root": street_scenes, "train.steps": 1_000_000, "train.log_every": 5, "train.eval_every": 0}
    flags = [f"--config={TINY}", f"--workdir={tmp_path / 'run'}", f"--coordinator={address}", "--num_processes=2"]
    command = [sys.executable, "train.py", *flags, *(f"--config.{name}={value}" for name, value in fields.items())]
    log = tmp_path / "run" / "log.txt"

    def find(pattern):
        return log.exists() and re.search(pattern, log.read_text())

    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(running(core, [*command, f"--process_id={i}"])) for i, core in enumerate(CORES)]

        def wait_for(pattern, timeout):
            wait_until(lambda: find(pattern) or any(run.poll() is not None for run in runs), timeout)

        wait_for("step +10 ", 600)
        for _ in range(2):  # other programs on the second process's core
            stack.enter_context(running(CORES[1], [sys.executable, "-c", "while True: pass"]))
        wait_for("warning: Process", 300)
    (number, host) = find(r"warning: Process (\d), on host (\S+), takes [\d.]+ times as long").groups()
    assert (number, host) == ("1", socket.gethostname())
