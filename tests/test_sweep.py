"""The study runner of the benchmarks, with a training that writes what train.py does."""

import json
import pathlib
import sys

import pytest
import sweep

STUDY = 'RECIPE = "configs/camvid_r18.py"\nROWS = {"base": "", "b4": "--config.data.batch_size=4", "other": ""}\n'


def log(workdir, miou, *, steps=20, end=20, seconds=(9.0, 3.0, 3.0)):
    """Of a run that was slow at first."""
    every = steps // len(seconds)
    rows = [{"step": (i + 1) * every, "kind": "train", "seconds_per_step": s} for i, s in enumerate(seconds)]
    rows.append({"step": steps, "kind": "eval", "miou": miou, "pixel_accuracy": 0.8})
    (workdir / "run.json").write_text(json.dumps({"starts": [{"steps": 9}, {"steps": end}]}))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def trained(monkeypatch):
    """The commands that were run; each leaves the log of a finished training, its mIoU by its batch size and seed."""
    commands = []

    def run(command, **_):
        workdir = pathlib.Path(command[-1].removeprefix("--workdir="))
        commands.append(command)
        seed = next(int(word.partition("=")[2]) for word in command if word.startswith("--config.seed="))
        log(workdir, 0.4 + 0.1 * ("--config.data.batch_size=4" in command) + 0.02 * seed)
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(sweep.subprocess, "run", run)
    return commands


def sweep_out(monkeypatch, tmp_path, *words):
    (tmp_path / "study.py").write_text(STUDY)
    out = ["--root", str(tmp_path), "--out", str(tmp_path / "runs"), "--table", str(tmp_path / "table.md")]
    monkeypatch.setattr(sys, "argv", ["sweep.py", str(tmp_path / "study.py"), *out, *words])
    sweep.main()
    return (tmp_path / "table.md").read_text().splitlines()


def test_every_row_is_trained_once_with_every_seed(monkeypatch, tmp_path, trained):
    table = sweep_out(monkeypatch, tmp_path, "--rows", "b*", "--seeds", "0", "1")
    assert len(trained) == 4
    assert f"--config.data.root={tmp_path}" in trained[0]
    assert table[2:] == [
        "| base |  | 2 | 20 | 1.0 | 41.0 (40.0 to 42.0) | 80.0 |",
        "| b4 | `data.batch_size=4` | 2 | 20 | 1.0 | **51.0 (50.0 to 52.0)** | 80.0 |",
    ]
    assert sweep_out(monkeypatch, tmp_path, "--rows", "b*", "--seeds", "0", "1") == table
    assert len(trained) == 4


def test_a_row_that_means_something_else_now_is_not_mixed_in(monkeypatch, tmp_path, trained):
    sweep_out(monkeypatch, tmp_path, "--rows", "base")
    monkeypatch.setattr("test_sweep.STUDY", STUDY.replace('"base": ""', '"base": "--config.optim.lr=1"'))
    with pytest.raises(SystemExit, match="name the row otherwise"):
        sweep_out(monkeypatch, tmp_path, "--rows", "base")


def test_a_run_that_was_stopped_is_no_result(tmp_path):
    (tmp_path / "run.json").write_text('{"starts": [{"steps": 20}]}')
    assert sweep.result(tmp_path) is None
    log(tmp_path, 0.4, steps=10)
    assert sweep.result(tmp_path) is None
    log(tmp_path, 0.5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2')  # a crash cut it short
    # The median of the time of a step: 20 x 3 s.
    assert sweep.result(tmp_path) == sweep.Result(steps=20, minutes=1.0, miou=0.5, pixel_accuracy=0.8)


def test_a_training_that_fails_ends_the_study(monkeypatch, tmp_path):
    monkeypatch.setattr(sweep.subprocess, "run", lambda *_, **__: type("Done", (), {"returncode": 2}))
    with pytest.raises(SystemExit, match=r"log\.txt"):
        sweep_out(monkeypatch, tmp_path)


def test_rows_that_name_nothing_are_told(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="base, b4, other"):
        sweep_out(monkeypatch, tmp_path, "--rows", "b5")
