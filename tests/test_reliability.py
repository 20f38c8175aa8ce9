"""Test that killed, moved and distributed runs give the same results as an uninterrupted run."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import pytest
from conftest import make_command

from deeplab_jax.checkpoints.store import restore_variables

# Save every third step, so that many kills happen during a save. Keep these steps for `assert_close`.
FLAGS = (
    "--config.model.dropout=0.1",
    "--config.data.batch_size=8",
    "--config.eval.batch_size=8",
    "--config.train.eval_every=0",
    "--config.train.save_every=3",
    "--config.train.keep_every=3",
)


def make_train_command(workdir, root, *flags, steps=10):
    return make_command("train.py", *FLAGS, f"--workdir={workdir}", f"--config.train.steps={steps}", *flags, root=root)


def make_environment(devices):
    return os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}


def train(workdir, root, *flags, steps=10, devices=4, launcher=()):
    command = [*launcher, *make_train_command(workdir, root, *flags, steps=steps)]
    result = subprocess.run(command, env=make_environment(devices), capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def train_on_two_processes(workdir, root, *flags, steps=10, devices=2):
    """Run train.py as two processes, with flags instead of a launcher. Return (exit code, stdout, stderr) for each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    hosts = [f"--coordinator=localhost:{port}", "--num_processes=2"]
    commands = [make_train_command(workdir, root, *hosts, f"--process_id={i}", *flags, steps=steps) for i in (0, 1)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": make_environment(devices)}
    processes = [subprocess.Popen(each, **pipes) for each in commands]
    try:
        outputs = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *each) for process, each in zip(processes, outputs, strict=True)]


def read_lines(workdir, name):
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def load_parameters(workdir):
    return np.concatenate([x.ravel() for x in jax.tree.leaves(restore_variables(str(workdir)))])


def assert_close(workdir, other):
    """Check that two runs used the same samples and that their parameters differ only by float32 rounding after three steps.

    Sooner or later, rounding decides whether ReLU passes the gradient of an activation near 0, and differences grow to 1e-4.
    """
    assert read_lines(workdir, "receipts.jsonl")[-1]["samples"] == read_lines(other, "receipts.jsonl")[-1]["samples"]
    a, b = (load_parameters(run / "checkpoints" / "3") for run in (workdir, other))
    assert np.linalg.norm(a - b) < 1e-6 * np.linalg.norm(b)


@pytest.fixture(scope="module")
def uninterrupted_run(street_scenes, tmp_path_factory):
    """Return the folder of an uninterrupted ten-step run on four devices."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    train(workdir, street_scenes)
    return workdir


def kill_at_random(process, workdir, rng, moment):
    """Kill the process after its first step: at a random time, or during a save or an evaluation.

    Return False if it had already finished.
    """
    start = "Evaluating" if moment == "evaluation" else "step"
    for line in process.stdout:
        if line.startswith(start):
            break
    deadline = time.monotonic() + rng.uniform(0, 0.1 if moment == "evaluation" else 0.5)
    while process.poll() is None:
        is_saving = any("tmp" in path.name for path in (workdir / "checkpoints").iterdir())
        if is_saving if moment == "save" else time.monotonic() > deadline:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
    return False


def kill_and_resume(workdir, root, *flags, steps, kills, seed):
    """Kill the run `kills` times, in turn at a random time, in a save and in an evaluation. Then let it finish.

    Return the number of kills at each moment.
    """
    rng, counts = random.Random(seed), dict.fromkeys(("any", "save", "evaluation"), 0)
    for i in range(kills):
        moment = ("any", "save", "evaluation")[i % (3 if flags else 2)]
        command = make_train_command(workdir, root, *flags, steps=steps)
        with subprocess.Popen(command, env=make_environment(4), stdout=subprocess.PIPE, text=True) as process:
            if not kill_at_random(process, workdir, rng, moment):
                break
        counts[moment] += 1
    train(workdir, root, *flags, steps=steps)
    return counts


def assert_same_run(workdir, other):
    np.testing.assert_array_equal(load_parameters(workdir), load_parameters(other))
    assert read_lines(workdir, "receipts.jsonl") == read_lines(other, "receipts.jsonl")
    rows, expected = read_lines(workdir, "metrics.jsonl"), read_lines(other, "metrics.jsonl")
    assert [(row["kind"], row["step"]) for row in rows] == [(row["kind"], row["step"]) for row in expected]
    for name in ("loss", "accuracy", "grad_norm", "lr", "miou", "pixel_accuracy"):
        assert [row.get(name) for row in rows] == [row.get(name) for row in expected]


@pytest.mark.slow
def test_a_killed_run_ends_like_an_uninterrupted_run(uninterrupted_run, street_scenes, tmp_path):
    assert sum(kill_and_resume(tmp_path / "run", street_scenes, steps=10, kills=2, seed=0).values())
    assert_same_run(tmp_path / "run", uninterrupted_run)


@pytest.mark.long
def test_a_run_survives_twenty_kills(street_scenes, tmp_path):
    flags = ("--config.train.eval_every=5",)
    train(tmp_path / "straight", street_scenes, *flags, steps=250)
    counts = kill_and_resume(tmp_path / "run", street_scenes, *flags, steps=250, kills=20, seed=1)
    assert counts == {"any": 7, "save": 7, "evaluation": 6}
    assert_same_run(tmp_path / "run", tmp_path / "straight")


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of 60 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", folder], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("needs the right to mount a disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.long
def test_a_run_survives_full_disks(street_scenes, small_disk, tmp_path):
    """Fill the disk at random times. Every start must end by itself, without a traceback, and continue once there is room."""
    flags = ("--config.train.eval_every=5", "--config.model.width=32")  # a checkpoint of about 6 MB
    train(tmp_path / "straight", street_scenes, *flags, steps=60)
    rng, ends = random.Random(2), []
    for _ in range(10):
        command = make_train_command(small_disk / "run", street_scenes, *flags, steps=60)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=make_environment(4), **pipes) as process:
            for line in process.stdout:
                if line.startswith("step"):
                    break
            time.sleep(rng.uniform(0, 1.5))
            fill(small_disk / "filler")
            output, error = process.communicate(timeout=300)
        assert "Traceback" not in output + error, error[-3000:]
        assert process.returncode in (0, 2), error
        if process.returncode:
            (line,) = (line for line in error.splitlines() if line.startswith("error: "))
            assert "No space left on device" in line
        ends.append(process.returncode)
        (small_disk / "filler").unlink()
    train(small_disk / "run", street_scenes, *flags, steps=60)
    assert 2 in ends
    np.testing.assert_array_equal(load_parameters(small_disk / "run"), load_parameters(tmp_path / "straight"))


def fill(path):
    """Write zeros until the disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))


@pytest.mark.slow
def test_two_processes_train_and_evaluate_like_one(uninterrupted_run, street_scenes, tmp_path):
    for code, _, error in train_on_two_processes(tmp_path / "run", street_scenes):
        assert code == 0, error
    assert_close(tmp_path / "run", uninterrupted_run)
    row, expected_row = (read_lines(workdir, "metrics.jsonl")[-1] for workdir in (tmp_path / "run", uninterrupted_run))
    assert row["kind"] == "eval"
    # The tolerance allows for ties between classes, which are common in a barely trained network.
    assert row["pixel_accuracy"] == pytest.approx(expected_row["pixel_accuracy"], abs=1e-3)
    assert len(read_lines(tmp_path / "run", "metrics.jsonl")) == len(read_lines(uninterrupted_run, "metrics.jsonl"))


@pytest.mark.slow
def test_processes_that_were_started_differently_report_this_and_end(street_scenes, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    hosts = [f"--coordinator=localhost:{port}", "--num_processes=2"]
    commands = [
        make_train_command(tmp_path / "run", street_scenes, *hosts, f"--process_id={i}", f"--config.optim.lr=0.{i + 1}")
        for i in (0, 1)
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": make_environment(1)}
    processes = [subprocess.Popen(each, **pipes) for each in commands]
    for process in processes:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 2
        assert re.search(
            r"Process 1 was started with `config.optim.lr` \(=0.2\), process 0 with 0.1\. Start every process with the same",
            error,
        )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.long
def test_a_run_continues_on_a_different_number_of_devices(uninterrupted_run, street_scenes, tmp_path):
    train(tmp_path / "run", street_scenes, steps=6, devices=4)
    train(tmp_path / "run", street_scenes, "--config.mesh.spatial=2", steps=10, devices=2)
    output = train(tmp_path / "run", street_scenes, steps=10, devices=1)
    assert "already at step 10" in output
    # The first six steps used a shorter run's schedule, but the samples do not depend on the run length.
    assert (
        read_lines(tmp_path / "run", "receipts.jsonl")[-1]["samples"]
        == read_lines(uninterrupted_run, "receipts.jsonl")[-1]["samples"]
    )


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_any_number_of_devices_gives_the_same_run(uninterrupted_run, street_scenes, tmp_path, devices):
    train(tmp_path / "run", street_scenes, devices=devices)
    assert_close(tmp_path / "run", uninterrupted_run)


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("mpirun"), reason="needs Open MPI")
def test_a_run_under_open_mpi_gives_the_same_result(uninterrupted_run, street_scenes, tmp_path):
    launcher = ("mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", "2")
    train(tmp_path / "run", street_scenes, devices=2, launcher=launcher)
    assert_close(tmp_path / "run", uninterrupted_run)
