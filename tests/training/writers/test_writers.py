import json
import os
import pwd
import tomllib

import numpy as np
import pytest
from conftest import ROOT
from etils import epath
from google.protobuf.message import DecodeError
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from deeplab_jax.training.writers import WRITERS, JsonLines, RunStart, TensorBoard, Tracker


def start(tmp_path, step, is_scored):
    return RunStart(str(tmp_path), step, is_scored, {})


def read_rows(workdir):
    return [(row["step"], row["kind"]) for row in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())]


def read_events(workdir):
    """Return (step, tag) for every value in the event files, each of which is read up to its first damaged event."""
    values = []
    for path in sorted((workdir / "tensorboard").iterdir(), key=os.path.getmtime):
        content, start = path.read_bytes(), 0
        while start + 12 <= len(content):
            length = int.from_bytes(content[start : start + 8], "little")
            try:
                event = Event.FromString(content[start + 12 : start + 12 + length])
            except DecodeError:
                break
            values += [(event.step, value.tag) for value in event.summary.value]
            start += 16 + length
    return values


def write_half(self, data):
    """Write a part of a record, as on a disk that becomes full."""
    self._writer.write(data[: len(data) // 2])
    raise OSError(28, "No space left on device")


def test_every_tracker_has_an_extra():
    """If its package is missing, the error says to install the extra with the writer's name."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name for name, kind in WRITERS.items() if issubclass(kind, Tracker)} <= extras.keys()


def test_rows_that_could_not_be_written_are_written_later(tmp_path, monkeypatch):
    writer = JsonLines(start(tmp_path, 0, True))
    writer.write_scalars(1, "train", {"loss": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(type(epath.Path(tmp_path)), "open", raise_full_disk)
        for step in (2, 3):
            with pytest.raises(OSError, match="No space"):
                writer.write_scalars(step, "train", {"loss": 1.0})
    assert read_rows(tmp_path) == [(1, "train")]
    writer.close("finished")
    assert read_rows(tmp_path) == [(1, "train"), (2, "train"), (3, "train")]


def test_rows_are_written_where_the_user_has_no_name(tmp_path, monkeypatch):
    """As in a container that runs with a user id of the host."""
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    writer = JsonLines(start(tmp_path, 0, True))
    for step in (1, 2):
        writer.write_scalars(step, "train", {"loss": 1.0})
    assert read_rows(tmp_path) == [(1, "train"), (2, "train")]


def raise_full_disk(*args, **kwargs):
    raise OSError(28, "No space left on device")


def test_a_row_that_was_written_in_part_is_removed(tmp_path, monkeypatch):
    writer = JsonLines(start(tmp_path, 0, True))
    writer.write_scalars(1, "train", {"loss": 1.0})

    class FullFile:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, text):
            with (tmp_path / "metrics.jsonl").open("ab") as file:
                file.write(text[:10].encode())
            raise_full_disk()

    with monkeypatch.context() as patch:
        patch.setattr(type(epath.Path(tmp_path)), "open", lambda self, mode: FullFile())
        with pytest.raises(OSError, match="No space"):
            writer.write_scalars(2, "train", {"loss": 1.0})
    assert read_rows(tmp_path) == [(1, "train")]


def test_an_interrupted_evaluation_has_no_row_after_the_restart(tmp_path):
    writer = JsonLines(start(tmp_path, 0, True))
    for step, kind in ((1, "train"), (2, "train"), (2, "eval"), (3, "train")):
        writer.write_scalars(step, kind, {})
    JsonLines(start(tmp_path, 2, True))
    assert read_rows(tmp_path) == [(1, "train"), (2, "train"), (2, "eval")]
    JsonLines(start(tmp_path, 2, False))
    assert read_rows(tmp_path) == [(1, "train"), (2, "train")]


def test_tensorboard_continues_in_a_new_file_after_an_error(tmp_path, monkeypatch):
    writer = TensorBoard(start(tmp_path, 0, True))
    writer.write_scalars(1, "train", {"loss": 1.0, "skipped": None})
    with monkeypatch.context() as patch:
        patch.setattr("tensorboardX.record_writer.RecordWriter.write", write_half)
        with pytest.raises(OSError, match="No space"):
            writer.write_images(2, [np.zeros((4, 12, 3), np.uint8)])
    writer.write_scalars(3, "train", {"loss": 2.0})
    writer.close("finished")
    assert read_events(tmp_path)[-1] == (3, "train/loss")
    assert (1, "train/loss") in read_events(tmp_path)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_tensorboard_hides_repeated_steps(tmp_path, monkeypatch):
    starts = []
    write = EventsWriter.write_event
    monkeypatch.setattr(EventsWriter, "write_event", lambda self, event: (starts.append(event), write(self, event)))
    for is_scored in (True, False):
        writer = TensorBoard(start(tmp_path, 5, is_scored))
        writer.write_scalars(6, "train", {"loss": 1.0})
        writer.close("finished")
    assert [event.step for event in starts if event.HasField("session_log")] == [6, 6]


def test_tensorboard_hides_repeated_steps_although_the_disk_was_full_at_the_start(tmp_path, monkeypatch):
    writer, starts, write = TensorBoard(start(tmp_path, 5, True)), [], EventsWriter.write_event
    flush, errors = EventsWriter.flush, [OSError(28, "No space left on device")]

    def fail_once(self):
        if errors:
            raise errors.pop()
        flush(self)

    with monkeypatch.context() as patch:
        patch.setattr(EventsWriter, "flush", fail_once)
        with pytest.raises(OSError, match="No space"):
            writer.write_scalars(6, "train", {"loss": 1.0})
    monkeypatch.setattr(EventsWriter, "write_event", lambda self, event: (starts.append(event), write(self, event)))
    writer.write_scalars(7, "train", {"loss": 1.0})
    writer.write_scalars(8, "train", {"loss": 1.0})
    writer.close("finished")
    assert [event.step for event in starts if event.HasField("session_log")] == [6]
