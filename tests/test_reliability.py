"""Runs that are killed, moved and split, as processes of their own: what they end with is what was never disturbed."""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from deeplab_jax.checkpoints.store import restore_variables

ROOT = pathlib.Path(__file__).parent.parent
# configs/quickstart.py, shrunk; a save every third step, so that many kills meet one.
TINY = [
    f"--config={ROOT / 'configs' / 'quickstart.py'}",
    "--config.model.width=4",
    "--config.model.aspp_width=8",
    "--config.model.dropout=0.1",
    "--config.data.batch_size=8",
    "--config.data.crop_size=(32,64)",
    "--config.eval.batch_size=8",
    "--config.train.log_every=1",
    "--config.train.eval_every=0",
    "--config.train.save_every=3",
]


def command(workdir, root, *flags, steps=10):
    words = [sys.executable, str(ROOT / "train.py"), *TINY, f"--config.data.root={root}", f"--workdir={workdir}"]
    return [*words, f"--config.train.steps={steps}", *flags]


def environment(devices):
    return os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}


def train(workdir, root, *flags, steps=10, devices=4, launcher=()):
    words = [*launcher, *command(workdir, root, *flags, steps=steps)]
    result = subprocess.run(words, env=environment(devices), capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def train_on_two_processes(workdir, root, *flags, steps=10, devices=2):
    """Started by hand, with explicit flags."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    hosts = [f"--coordinator=localhost:{port}", "--num_processes=2"]
    words = [command(workdir, root, *hosts, f"--process_id={i}", *flags, steps=steps) for i in (0, 1)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment(devices)}
    processes = [subprocess.Popen(each, **pipes) for each in words]
    try:
        said = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *each) for process, each in zip(processes, said, strict=True)]


def lines(workdir, name):
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def parameters(workdir):
    return np.concatenate([x.ravel() for x in jax.tree.leaves(restore_variables(str(workdir)))])


def assert_close(workdir, other):
    """The same samples, and parameters that are float rounding apart after ten steps of a network that is all ReLU."""
    assert lines(workdir, "receipts.jsonl")[-1]["samples"] == lines(other, "receipts.jsonl")[-1]["samples"]
    a, b = parameters(workdir), parameters(other)
    assert np.linalg.norm(a - b) < 1e-4 * np.linalg.norm(b)


@pytest.fixture(scope="module")
def straight(street_scenes, tmp_path_factory):
    """A run of ten steps on four devices that nothing disturbs."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    train(workdir, street_scenes)
    return workdir


def kill_at_random(process, workdir, rng, in_a_save):
    """SIGKILL some time after the first step, or as soon as a save is seen under way; False if the run ended before."""
    for line in process.stdout:
        if line.startswith("step"):
            break
    deadline = time.monotonic() + rng.uniform(0, 0.5)
    while process.poll() is None:
        saving = any("tmp" in path.name for path in (workdir / "checkpoints").iterdir())
        if saving if in_a_save else time.monotonic() > deadline:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
    return False


def kill_and_resume(workdir, root, steps, kills, seed):
    """Kills the run that often, every second time during a save, and lets it come to its end; kills that met it."""
    rng, met = random.Random(seed), 0
    while met < kills:
        words = command(workdir, root, steps=steps)
        with subprocess.Popen(words, env=environment(4), stdout=subprocess.PIPE, text=True) as process:
            killed = kill_at_random(process, workdir, rng, in_a_save=met % 2 == 1)
        met += killed
        if not killed:
            break
    train(workdir, root, steps=steps)
    return met


def assert_same_run(workdir, other):
    np.testing.assert_array_equal(parameters(workdir), parameters(other))
    assert lines(workdir, "receipts.jsonl") == lines(other, "receipts.jsonl")
    rows, expected = lines(workdir, "metrics.jsonl"), lines(other, "metrics.jsonl")
    assert [(row["kind"], row["step"]) for row in rows] == [(row["kind"], row["step"]) for row in expected]
    for name in ("loss", "accuracy", "grad_norm", "lr"):
        assert [row.get(name) for row in rows] == [row.get(name) for row in expected]


def test_a_killed_run_ends_as_if_it_had_not_been(straight, street_scenes, tmp_path):
    assert kill_and_resume(tmp_path / "run", street_scenes, 10, kills=2, seed=0)
    assert_same_run(tmp_path / "run", straight)


@pytest.mark.long
def test_twenty_kills(street_scenes, tmp_path):
    train(tmp_path / "straight", street_scenes, steps=150)
    assert kill_and_resume(tmp_path / "run", street_scenes, 150, kills=20, seed=1) == 20
    assert_same_run(tmp_path / "run", tmp_path / "straight")


def test_two_processes_train_and_evaluate_like_one(straight, street_scenes, tmp_path):
    for code, _, error in train_on_two_processes(tmp_path / "run", street_scenes):
        assert code == 0, error
    assert_close(tmp_path / "run", straight)
    ours, theirs = (lines(workdir, "metrics.jsonl")[-1] for workdir in (tmp_path / "run", straight))
    assert ours["kind"] == "eval"
    assert ours["pixel_accuracy"] == pytest.approx(theirs["pixel_accuracy"], abs=1e-3)  # ties of a network that knows nothing
    assert len(lines(tmp_path / "run", "metrics.jsonl")) == len(lines(straight, "metrics.jsonl"))


def test_processes_that_were_started_differently_say_so_and_end(street_scenes, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    hosts = [f"--coordinator=localhost:{port}", "--num_processes=2"]
    words = [
        command(tmp_path / "run", street_scenes, *hosts, f"--process_id={i}", f"--config.optim.lr=0.{i + 1}") for i in (0, 1)
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment(1)}
    processes = [subprocess.Popen(each, **pipes) for each in words]
    for process in processes:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 2
        assert re.search(
            r"process 1 has `config.optim.lr` \(=0.2\), process 0 has 0.1: start every process with the same", error
        )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.long
def test_a_run_moves_to_other_devices(straight, street_scenes, tmp_path):
    train(tmp_path / "run", street_scenes, steps=6, devices=4)
    train(tmp_path / "run", street_scenes, "--config.mesh.spatial=2", steps=10, devices=2)
    said = train(tmp_path / "run", street_scenes, steps=10, devices=1)
    assert "already at step 10" in said
    # The schedule of the first six steps was that of a shorter run, but the samples are those of any.
    assert lines(tmp_path / "run", "receipts.jsonl")[-1]["samples"] == lines(straight, "receipts.jsonl")[-1]["samples"]


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_any_number_of_devices(straight, street_scenes, tmp_path, devices):
    train(tmp_path / "run", street_scenes, devices=devices)
    assert_close(tmp_path / "run", straight)


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("mpirun"), reason="needs Open MPI")
def test_open_mpi(straight, street_scenes, tmp_path):
    launcher = ("mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", "2")
    train(tmp_path / "run", street_scenes, devices=2, launcher=launcher)
    assert_close(tmp_path / "run", straight)
