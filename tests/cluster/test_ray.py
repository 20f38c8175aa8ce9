"""Run the examples for Ray on this machine."""

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from conftest import ROOT, TINY
from slurm import wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray"),
]
ENVIRONMENT = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
STEPS = 160


def run(*words):
    """Run a Python program and return its output."""
    result = subprocess.run(
        [sys.executable, *map(str, words)], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def read_end(workdir):
    return json.loads((workdir / "receipts.jsonl").read_text().splitlines()[-1])


def test_a_run_resumes_after_a_worker_is_killed(street_scenes, tmp_path):
    workdir = tmp_path / "run"
    values = {"steps": STEPS, "log_every": 5, "save_every": 10, "eval_every": 0}
    fields = [f"data.root={street_scenes}", *(f"train.{name}={value}" for name, value in values.items())]
    command = [sys.executable, "examples/ray_train.py", str(TINY), str(workdir), *fields, "--workers=2"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, stdout=log, stderr=log)
    wait_until(lambda: len(list((workdir / "checkpoints").glob("*/SHA256SUMS"))) > 1 or process.poll() is not None, 900)
    os.kill(json.loads((workdir / "lock.json").read_text())["process"], signal.SIGKILL)
    assert process.wait(timeout=1800) == 0, (tmp_path / "log").read_text()
    assert re.search(r"resuming .* after step [1-9]", (workdir / "log.txt").read_text())

    with socket.create_server(("", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    flags = [f"--config={TINY}", f"--workdir={tmp_path / 'flags'}", *(f"--config.{field}" for field in fields)]
    command = [sys.executable, "train.py", *flags, f"--coordinator={address}", "--num_processes=2"]
    processes = [subprocess.Popen([*command, f"--process_id={i}"], env=ENVIRONMENT, cwd=ROOT) for i in range(2)]
    assert [process.wait(timeout=1800) for process in processes] == [0, 0]
    assert read_end(workdir) == read_end(tmp_path / "flags")


def test_a_search_prints_a_table(street_scenes, tmp_path):
    fields = (f"data.root={street_scenes}", "train.steps=4", "train.eval_every=4")
    output = run("examples/ray_tune.py", TINY, tmp_path / "sweep", *fields, "--lr", 0.01, 0.05)
    rows = re.findall(r"^ +(0\.0\d) +4 +[\d.]+% +(\S+)$", output, re.MULTILINE)
    assert rows == [(lr, str(tmp_path / "sweep" / f"lr_{lr}")) for lr in ("0.01", "0.05")]


def test_ray_and_shards_predict_the_files_that_one_process_predicts(stored_run, street_scenes, tmp_path):
    def read_files(folder):
        paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".shards-")]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}

    words = (street_scenes / "leftImg8bit", "--checkpoint", stored_run, "--out")
    main = ("-m", "deeplab_jax")
    run(*main, "predict", *words, tmp_path / "alone")
    for number in (1, 2):
        run(*main, "predict", *words, tmp_path / "shards", "--shard", f"{number}/2")
    output = run("examples/ray_predict.py", *words, tmp_path / "ray", "--workers", 2)
    assert "Segmented 11 of 11 files." in output
    expected = read_files(tmp_path / "alone")
    assert len(expected) == 3 * 11
    assert read_files(tmp_path / "shards") == expected
    assert read_files(tmp_path / "ray") == expected
