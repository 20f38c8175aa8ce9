"""Tests for the benchmark for a GPU: a dry run of all stages on the CPU, and the handling of commands and results."""

import json
import math
import os
import pathlib
import subprocess
import sys
import time

import gpu_report
import pytest

PROGRAM = pathlib.Path(gpu_report.__file__).with_name("gpu.py")
BLOCKED = ("tensorflow", "tensorflow_datasets", "tyro", "ml_collections", "tensorboardX", "torch")


def list_numbers(value):
    if isinstance(value, dict | list):
        return [number for item in (value.values() if isinstance(value, dict) else value) for number in list_numbers(item)]
    return [value] if isinstance(value, int | float) else []


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Run all stages in one process without the blocked packages, and return the parts' results by stage."""
    out = tmp_path_factory.mktemp("gpu")
    code = f"import sys; sys.modules.update(dict.fromkeys({BLOCKED})); sys.path.insert(0, {str(PROGRAM.parent)!r}); "
    code += "import importlib.util; find = importlib.util.find_spec\n"
    code += f"importlib.util.find_spec = lambda name, *a: None if name in {BLOCKED} else find(name, *a)\n"
    code += f"import gpu; gpu.main(['--dry-run', '--in-process', '--out', {str(out)!r}])"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"})
    records = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}
    assert {record["status"] for record in records.values()} == {"complete"}
    assert "DeepLabV3, ResNet-50" in (out / "summary.txt").read_text()
    return {stage: record["parts"] for stage, record in records.items()}


@pytest.mark.long
def test_a_dry_run_measures_every_stage_without_tensorflow_and_torch(parts):
    assert parts.keys() == {"parity", "training", "inference", "determinism", "camvid"}
    for stage in parts.values():
        for part, result in stage.items():
            assert not result.get("failed"), part
            assert all(map(math.isfinite, list_numbers(result))), part
    assert "skipped" in parts["training"]["PyTorch"]
    assert parts["parity"]["logits of mmseg_r18_129x97"]["met"]
    assert parts["parity"]["training step, GPU and CPU"]["gradient"] == 0
    training = parts["training"]["resnet50, 32x64"]
    assert training["images/s"].keys() == training["MFU"].keys() == {"ours"}
    assert parts["inference"]["float32, batch 1"]["times as fast"].keys() == {"StableHLO"}
    assert parts["inference"]["float32, batch 1"]["error"] == {"StableHLO": 0}
    first, second = parts["determinism"]["without flags"]["digests"]
    assert first == second
    assert [score["step"] for score in parts["camvid"]["DeepLabV3, ResNet-50"]["scores"]] == [1, 2, 3]


def test_a_command_that_takes_too_long_is_killed_with_its_children(tmp_path):
    pid = tmp_path / "pid"
    start = time.monotonic()
    assert gpu_report.run_command(["sh", "-c", f"sleep 60 & echo $! > {pid}; wait"], 2) == "stopped after 2 s"
    status = pathlib.Path(f"/proc/{pid.read_text().strip()}/status")
    while status.exists() and "State:\tZ" not in status.read_text():  # the system removes a killed process a little later
        assert time.monotonic() - start < 30
        time.sleep(0.1)


def test_a_command_that_fails_is_reported():
    assert gpu_report.run_command([sys.executable, "-c", "raise SystemExit(3)"], 60) == "ended with exit code 3"
    assert gpu_report.run_command([sys.executable, "-c", ""], 60) == ""


def test_a_failed_or_late_part_does_not_affect_the_others(tmp_path, capsys):
    report = gpu_report.Report(tmp_path, "parity", 60)
    report.run("good", 0, lambda: {"error": 0.5, "goal": "below 1", "met": True})
    report.run("bad", 0, lambda: {"error": 1 / 0})
    report.run("long", 1000, lambda: {"error": 2.0})
    record = json.loads((tmp_path / "parity.json").read_text())
    assert record["status"] == "did not finish"
    assert record["parts"]["good"]["error"] == 0.5
    assert record["parts"]["bad"]["failed"].startswith("ZeroDivisionError")
    assert "of 1000 s were left" in record["parts"]["long"]["skipped"]
    gpu_report.show(tmp_path, ["parity"])
    assert "below 1" in capsys.readouterr().out
