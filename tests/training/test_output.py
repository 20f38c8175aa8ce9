import contextlib
import io
import json

import numpy as np
import pytest
from conftest import tiny_config
from etils import epath
from rich.console import Console

from deeplab_jax.checkpoints.folders import Rank, write_scores
from deeplab_jax.evaluation.metrics import OVERALL_METRICS
from deeplab_jax.training import output as output_module
from deeplab_jax.training.log import Log
from deeplab_jax.training.output import Output
from deeplab_jax.training.writers import RunWriter

ROW = {"loss": 3.0, "mean_loss": 1.0, "mean_accuracy": 0.5, "lr": 0.1, "images_per_second": 2.0, "mfu": 0.4, "data_wait": 0.25}


def read_steps(workdir):
    return [(row["step"], row["kind"]) for row in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())]


def test_the_log_of_a_resumed_run_has_no_gaps_or_duplicates(tmp_path):
    console = Console(file=io.StringIO())
    with Output(tiny_config(), str(tmp_path), 0, 10, True, Log(None, console)) as output:
        for step in (1, 2, 3):
            output.log_training(step, ROW, 60.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "ki')  # a row truncated when the run was killed
    with Output(tiny_config(), str(tmp_path), 2, 10, True, Log(None, console)) as output:
        output.log_training(3, ROW, 60.0)
        scores = dict.fromkeys(OVERALL_METRICS) | {"pixel_accuracy": 0.5, "iou": {"road": None}, "f1": {"road": None}}
        output.log_evaluation(3, scores, [np.zeros((4, 12, 3), np.uint8)])
    assert read_steps(tmp_path) == [(1, "train"), (2, "train"), (3, "train"), (3, "eval")]
    assert list((tmp_path / "tensorboard").iterdir())
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"pixel_accuracy": 0.5, "miou": None, "iou/road": None}.items() <= row.items()
    assert "f1/road" not in row


def test_an_evaluation_is_one_line(tmp_path):
    text = io.StringIO()
    with Output(tiny_config(), str(tmp_path), 0, 10, True, Log(None, Console(file=text, soft_wrap=True))) as output:
        output.log_evaluation(5, dict.fromkeys(OVERALL_METRICS, 0.25) | {"ece": None, "iou": {}}, [])
    scores = "mIoU 0.2500  pixel accuracy 0.2500  boundary mIoU 0.2500  calibration error -  loss 0.2500"
    assert text.getvalue().startswith(f"step      5  evaluation: {scores}")


def test_a_training_line_shows_progress_and_speed(tmp_path):
    text = io.StringIO()
    with Output(tiny_config(), str(tmp_path), 0, 10, True, Log(None, Console(file=text, width=80, soft_wrap=True))) as output:
        output.log_training(5, ROW, 3725.0)
    line = text.getvalue().splitlines()[0]
    parts = ("step      5", "loss 1.0000", "lr 1.00e-01", "2.0 images/s", "MFU 40.0%", "data wait 25.0%", "1 h 02 min left")
    for part in parts:
        assert part in line


def test_the_time_to_the_first_step_is_printed_immediately_and_logged_once(tmp_path):
    text = io.StringIO()
    with Output(tiny_config(), str(tmp_path), 0, 10, True, Log(None, Console(file=text))) as output:
        output.report_first_step(12.34)
        assert "first step done after 12.3 s" in text.getvalue()
        for step in (5, 10):
            output.log_training(step, ROW, 60.0)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("seconds_to_first_step") for row in rows] == [12.34, None]


class Recorder(RunWriter):
    """A writer that keeps the checkpoints and the outcome."""

    target, takes_checkpoints = "recorder", True

    def __init__(self, uploaded=0):
        self.checkpoints, self.outcome, self._uploaded = [], None, uploaded

    def has_checkpoint(self, step):
        return step <= self._uploaded

    def write_checkpoint(self, checkpoint):
        self.checkpoints.append((checkpoint.step, checkpoint.miou, checkpoint.is_best))

    def close(self, outcome):
        self.outcome = outcome


def open_output(tmp_path, monkeypatch, uploads="none", start_step=0, uploaded=0):
    """Return an output with a recorder."""
    recorder, config = Recorder(uploaded), tiny_config()
    config.train.upload_checkpoints = uploads
    monkeypatch.setattr(output_module, "open_writers", lambda names, run, say: [recorder])
    return Output(config, str(tmp_path), start_step, 10, True, Log(None, Console(file=io.StringIO()))), recorder


@pytest.mark.parametrize(("error", "outcome"), [(None, "finished"), (ValueError, "failed"), (KeyboardInterrupt, "stopped")])
def test_writers_are_told_how_the_run_ended(tmp_path, monkeypatch, error, outcome):
    output, recorder = open_output(tmp_path, monkeypatch)
    with contextlib.suppress(ValueError, KeyboardInterrupt), output:
        if error:
            raise error
        output.outcome = "finished"
    assert recorder.outcome == outcome


@pytest.mark.parametrize(
    ("uploads", "expected"),
    [
        ("none", []),
        ("best", [(1, 0.2, True), (3, 0.3, True)]),
        ("all", [(1, 0.2, True), (2, 0.1, False), (3, 0.3, True)]),
    ],
)
def test_the_chosen_checkpoints_are_uploaded(tmp_path, monkeypatch, uploads, expected):
    output, recorder = open_output(tmp_path, monkeypatch, uploads)
    for step, miou in ((1, 0.2), (2, 0.1), (3, 0.3)):
        folder = epath.Path(tmp_path) / "checkpoints" / str(step)
        folder.mkdir(parents=True)
        write_scores(folder, {"miou": miou}, Rank("miou", miou))
        output.upload_checkpoint(step)
    assert recorder.checkpoints == expected


@pytest.mark.parametrize(
    ("uploads", "expected"), [("none", []), ("best", [(3, 0.3, True)]), ("all", [(2, 0.1, False), (3, 0.3, True)])]
)
def test_checkpoints_that_an_earlier_start_did_not_upload_are_uploaded(tmp_path, monkeypatch, uploads, expected):
    for step, miou in ((1, 0.2), (2, 0.1), (3, 0.3), (4, None)):
        folder = epath.Path(tmp_path) / "checkpoints" / str(step)
        folder.mkdir(parents=True)
        if miou:  # the last one was not evaluated
            write_scores(folder, {"miou": miou}, Rank("miou", miou))
    assert open_output(tmp_path, monkeypatch, uploads, start_step=4, uploaded=1)[1].checkpoints == expected
    assert open_output(tmp_path, monkeypatch, uploads, start_step=4, uploaded=3)[1].checkpoints == []


def test_damaged_scores_are_not_the_fault_of_a_writer_that_takes_no_checkpoints(tmp_path, monkeypatch):
    folder = epath.Path(tmp_path) / "checkpoints" / "1"
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text("{}")
    monkeypatch.setattr(Recorder, "takes_checkpoints", False)
    output, _ = open_output(tmp_path, monkeypatch, "all", start_step=1)
    assert "warning" not in output.log.console.file.getvalue()


def test_only_the_process_that_writes_looks_for_checkpoints_to_upload(tmp_path, monkeypatch):
    monkeypatch.setattr(output_module.jax, "process_index", lambda: 1)
    reads = []
    monkeypatch.setattr(output_module, "find_steps", lambda folder: reads.append(folder) or [])
    open_output(tmp_path, monkeypatch, "all", start_step=1)
    assert reads == []
