import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time

import fake_trackers
import numpy as np
import pytest

from deeplab_jax.config import TrainConfig
from deeplab_jax.errors import ConfigError
from deeplab_jax.training.writers import Checkpoint, RunStart, check_writers, process
from deeplab_jax.training.writers.process import TrackerProcess
from deeplab_jax.training.writers.tracker import require_package


def open_tracker(tmp_path, kind=fake_trackers.Recorder, step=0, rows=(), lines=None):
    run = RunStart(str(tmp_path), step, True, {"optim.lr": 0.1})
    return TrackerProcess(kind, "fake", run, ([] if lines is None else lines).append, rows)


@pytest.fixture
def quiet(monkeypatch):
    """Let `close` wait without a message, because a busy machine takes seconds to start the process."""
    monkeypatch.setattr(process, "_QUIET_SECONDS", 60.0)


def read_calls(tmp_path):
    return [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("quiet")
def test_calls_are_made_in_order_and_messages_reach_the_log(tmp_path):
    lines = []
    tracker = open_tracker(tmp_path, lines=lines)
    tracker.write_scalars(1, "train", {"loss": 0.5, "skipped": None})
    tracker.write_images(1, [np.full((1, 1, 3), 7, np.uint8)])
    tracker.close("finished")
    assert read_calls(tmp_path) == [
        ["scalars", 1, "train", {"loss": 0.5, "skipped": None}],
        ["images", 1, [[[[7, 7, 7]]]]],
        ["close", "finished"],
    ]
    assert lines == ["fake: lr 0.1"]


@pytest.mark.parametrize("has_links", [True, False])
def test_a_checkpoint_can_be_deleted_before_it_is_uploaded(tmp_path, monkeypatch, has_links):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")  # as on exFAT

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    step = tmp_path / "checkpoints" / "2"
    (step / "model").mkdir(parents=True)
    (step / "model" / "array").write_text("weights")
    tracker = open_tracker(tmp_path)
    tracker.write_checkpoint(Checkpoint(2, str(step), 0.5, True))
    shutil.rmtree(step)
    tracker.close("finished")
    assert read_calls(tmp_path)[0] == ["checkpoint", 2, True, "weights"]
    assert [path.name for path in (tmp_path / "trackers").iterdir()] == ["fake.json"]


@pytest.mark.slow
def test_a_resumed_run_knows_which_checkpoints_were_uploaded(tmp_path):
    step = tmp_path / "checkpoints" / "2"
    (step / "model").mkdir(parents=True)
    (step / "model" / "array").write_text("weights")
    for kind in (fake_trackers.Offline, fake_trackers.Recorder):
        tracker = open_tracker(tmp_path, kind, step=2)
        assert not tracker.has_checkpoint(2)
        tracker.write_checkpoint(Checkpoint(2, str(step), 0.5, True))
        with contextlib.suppress(RuntimeError):
            tracker.close("stopped")
    tracker = open_tracker(tmp_path, step=3)
    assert [tracker.has_checkpoint(number) for number in (1, 2, 3)] == [True, True, False]
    tracker.close("finished")


def test_an_error_is_raised_later_and_the_next_rows_are_written(tmp_path):
    tracker = open_tracker(tmp_path, fake_trackers.Failing)
    for step in (1, 2, 3):
        tracker.write_scalars(step, "train", {})
    with pytest.raises(RuntimeError, match=r"write_scalars: .*No space left on device"):
        tracker.close("failed")
    assert [call[1] for call in read_calls(tmp_path)] == [1, 3, "failed"]


def test_a_tracker_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "_QUIET_SECONDS", 0.1)
    monkeypatch.setattr(process, "_CLOSE_SECONDS", 0.2)
    lines = []
    tracker = open_tracker(tmp_path, fake_trackers.Hanging, lines=lines)
    tracker.write_scalars(1, "train", {})
    with pytest.raises(TimeoutError, match="did not finish within 0 s"):
        tracker.close("finished")
    assert "Waiting for fake to finish, for up to 0 s." in lines


def test_rows_that_a_slow_tracker_cannot_take_are_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "_MAX_WAITING", 1 << 16)
    tracker = open_tracker(tmp_path, fake_trackers.Recorder)
    images = [np.zeros((300, 300, 3), np.uint8)]
    tracker.write_images(1, images)  # still waits, because the process takes longer to start
    with pytest.raises(RuntimeError, match="too slow"):
        tracker.write_images(2, images)
    tracker.close("finished")
    assert [call[:2] for call in read_calls(tmp_path)] == [["images", 1], ["close", "finished"]]


def test_a_tracker_that_crashes_is_an_error(tmp_path):
    tracker = open_tracker(tmp_path, fake_trackers.Dying)
    tracker.write_scalars(1, "train", {})
    with pytest.raises(RuntimeError, match="its process has ended"):
        tracker.close("finished")


def test_the_tracker_of_a_killed_run_closes_it(tmp_path):
    code = (
        "import os, sys, time, fake_trackers; from deeplab_jax.training.writers import RunStart\n"
        "from deeplab_jax.training.writers.process import TrackerProcess\n"
        "run = RunStart(sys.argv[1], 0, True, {'optim.lr': 0.1})\n"
        "tracker = TrackerProcess(fake_trackers.Recorder, 'fake', run, print, ())\n"
        "tracker.write_scalars(1, 'train', {})\n"
        "while tracker._waiting: time.sleep(0.01)\n"
        "os.kill(os.getpid(), 9)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code, tmp_path], env=environment, check=False)
    deadline = time.monotonic() + 30
    while not (tmp_path / "calls.jsonl").exists() or len(read_calls(tmp_path)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [call[1] for call in read_calls(tmp_path)] == [1, "stopped"]


@pytest.mark.slow
def test_a_resumed_run_has_every_row_once(tmp_path):
    tracker = open_tracker(tmp_path)
    for step, kind in ((1, "train"), (2, "train"), (2, "eval"), (3, "train"), (4, "train")):
        tracker.write_scalars(step, kind, {"loss": step / 10})
    tracker.close("stopped")
    # The log has a row that did not reach the tracker, and the run repeats the steps after 3.
    kinds = [(1, "train"), (2, "train"), (2, "eval"), (3, "train"), (3, "eval"), (4, "train"), (5, "train")]
    rows = [{"step": step, "kind": kind, "time": "", "loss": step / 10} for step, kind in kinds]
    tracker = open_tracker(tmp_path, step=3, rows=rows)
    tracker.write_scalars(4, "train", {"loss": 0.4})
    tracker.write_scalars(5, "train", {"loss": 0.5})
    tracker.close("stopped")
    # The last start repeats steps 4 and 5 with another learning rate, and thus other losses.
    tracker = open_tracker(tmp_path, step=3, rows=rows)
    tracker.write_scalars(4, "train", {"loss": 0.44})
    tracker.close("finished")
    calls = [(call[1], call[2], call[3]["loss"]) for call in read_calls(tmp_path) if call[0] == "scalars"]
    assert calls[5:] == [(3, "eval", 0.3), (5, "train", 0.5), (4, "train", 0.44)]


@pytest.mark.slow
def test_the_images_of_a_repeated_evaluation_are_not_sent_again(tmp_path):
    rows = [{"step": 2, "kind": "eval", "loss": 0.2}]
    for step in (0, 1):
        tracker = open_tracker(tmp_path, step=step, rows=rows)
        tracker.write_scalars(2, "eval", {"loss": 0.2})
        tracker.write_images(2, [])
        tracker.close("finished")
    assert [call[0] for call in read_calls(tmp_path)] == ["scalars", "images", "close", "close"]


@pytest.mark.usefixtures("quiet")
def test_a_run_folder_that_is_not_writable_does_not_stop_the_tracker(tmp_path):
    (tmp_path / "trackers").write_text("a file")
    lines = []
    tracker = open_tracker(tmp_path, lines=lines)
    tracker.close("finished")
    assert lines[0].startswith("fake: warning: when this run is resumed, it will be a new tracked run. Cannot write")
    assert read_calls(tmp_path) == [["close", "finished"]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"writers": ("tensorbord",)},
            "`train.writers` (='tensorbord') is not supported. Use one of tensorboard, wandb",
        ),
        ({"writers": ("tensorboard", "wandb")}, "Run `pip install 'deeplab-jax[wandb]'`."),
        ({"upload_checkpoints": "best"}, "`train.upload_checkpoints` (='best') needs a writer that takes checkpoints"),
    ],
)
def test_writers_that_cannot_work_are_refused(monkeypatch, fields, message):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        check_writers(TrainConfig(**fields))
    assert message in str(error.value)


def test_a_folder_with_the_name_of_a_package_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "a_tracker").mkdir()  # W&B writes to a folder called wandb
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="package is missing"):
        require_package("wandb", "a_tracker")
