"""Run examples/slurm.sbatch on a SLURM cluster of two nodes."""

import json
import re
import socket
import subprocess
import sys

import pytest
from conftest import ROOT, TINY
from slurm import start_cluster, wait_until

pytestmark = pytest.mark.cluster
STEPS = 160  # long enough to preempt the run twice


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with start_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def make_flags(street_scenes):
    """Return a function that returns the flags for a run without evaluations."""

    def make(workdir, steps):
        values = {"steps": steps, "log_every": 5, "save_every": 80, "eval_every": 0}
        fields = [f"--config.train.{name}={value}" for name, value in values.items()]
        return [f"--config={TINY}", f"--config.data.root={street_scenes}", f"--workdir={workdir}", *fields]

    return make


def read_end(workdir):
    """Return the last row of a run's receipts: its step, and digests of its samples and its state."""
    return json.loads((workdir / "receipts.jsonl").read_text().splitlines()[-1])


def wait_for_step(workdir, step):
    def is_there():
        log = workdir / "metrics.jsonl"
        return log.exists() and any(json.loads(line)["step"] >= step for line in log.read_text().splitlines())

    wait_until(is_there, 1800)


def train_with_flags(cluster, flags):
    """Train with two processes that SLURM does not start."""
    with socket.create_server(("", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    command = [sys.executable, str(ROOT / "train.py"), *flags, f"--coordinator={address}", "--num_processes=2"]
    processes = [subprocess.Popen([*command, f"--process_id={i}"], cwd=ROOT, env=cluster.environment) for i in range(2)]
    assert [process.wait(timeout=1800) for process in processes] == [0, 0]


def test_a_preempted_and_requeued_job_equals_a_run_started_with_flags(cluster, make_flags, tmp_path):
    log, workdir = tmp_path / "log", tmp_path / "run"
    job = cluster.submit(log, make_flags(workdir, STEPS), "--partition=grace")
    wait_for_step(workdir, 5)
    # In the grace time, SLURM sends SIGTERM and waits. The script requeues the job.
    other = cluster.call("sbatch", "--parsable", "--partition=high", "--nodes=2", "--output=/dev/null", "--wrap=true")
    assert cluster.wait_for(other) == "COMPLETED"
    cluster.start_soon(job)
    stopped = int(re.search(rf"Stopped after step (\d+) of {STEPS}", log.read_text())[1])
    wait_for_step(workdir, stopped + 5)
    # Here SLURM requeues the job itself.
    cluster.call("scontrol", "requeue", job)
    cluster.start_soon(job)
    assert cluster.wait_for(job) == "COMPLETED", log.read_text()
    assert cluster.show(job)["Restarts"] == "2"
    assert log.read_text().count("2 processes") == 3
    train_with_flags(cluster, make_flags(tmp_path / "flags", STEPS))
    assert read_end(workdir) == read_end(tmp_path / "flags")


def test_a_job_resumes_on_another_number_of_nodes(cluster, make_flags, tmp_path):
    log, workdir = tmp_path / "log", tmp_path / "run"
    flags = make_flags(workdir, STEPS)
    job = cluster.submit(log, flags)
    wait_for_step(workdir, 5)
    cluster.call("scancel", "--signal=TERM", job)  # as #SBATCH --signal does before the time limit
    wait_until(lambda: cluster.show(job)["Restarts"] == "1", 600)
    cluster.call("scancel", job)
    job = cluster.submit(log, flags, "--nodes=1")
    assert cluster.wait_for(job) == "COMPLETED", log.read_text()
    assert read_end(workdir)["step"] == STEPS
    assert "resuming" in log.read_text()
    starts = re.findall("^Training on .*", log.read_text(), re.MULTILINE)
    assert ["2 processes" in start for start in starts] == [True, False]


def test_each_task_of_an_array_trains_with_its_own_seed(cluster, make_flags, tmp_path):
    flags = [*make_flags(tmp_path / "seed%a", 2), "--config.seed=%a"]
    job = cluster.submit(tmp_path / "log-%a", flags, "--nodes=1", "--array=3-4")
    wait_until(lambda: not cluster.call("squeue", "--noheader", f"--job={job}"), 1800)
    for seed in (3, 4):
        starts = json.loads((tmp_path / f"seed{seed}" / "run.json").read_text())
        assert f'"seed": {seed}' in json.dumps(starts)
    assert read_end(tmp_path / "seed3")["state"] != read_end(tmp_path / "seed4")["state"]


def test_a_user_error_is_not_requeued(cluster, make_flags, tmp_path):
    job = cluster.submit(tmp_path / "log", [*make_flags(tmp_path / "run", 2), "--config.optim.lr=-1"])
    assert cluster.wait_for(job) == "FAILED"
    assert cluster.show(job)["ExitCode"] == "255:0"
