"""Writers for a run's scalars and images. To add one, define a class here and add it to `WRITERS`."""

import contextlib
import datetime
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from deeplab_jax.files import write_atomically
from deeplab_jax.training.metrics_log import METRICS

Row = Mapping[str, float | None]
Strips = Sequence[UInt8[np.ndarray, "h w 3"]]


class RunWriter:
    """Base class for writers. Its methods do nothing.

    An error in a method does not stop the run, and the methods are called again for later rows.

    Attributes:
      path: The file or folder that this writer writes.

    Args:
      folder: The run folder.
      start_step: The step at which the run starts or resumes.
      is_scored: Whether the evaluation of `start_step`, if there was one, was complete. Otherwise, the run repeats it.
    """

    path: epath.Path

    def __init__(self, folder: epath.Path, start_step: int, is_scored: bool) -> None:
        pass

    def write_scalars(self, step: int, kind: str, row: Row) -> None:
        """Write one step's scalars.

        Args:
          step: The step number.
          kind: "train" or "eval".
          row: Scalars by name, with None for non-finite values.
        """

    def write_images(self, step: int, strips: Strips) -> None:
        """Write an evaluation's comparison images (image | label | prediction)."""

    def close(self) -> None:
        """Flush buffered data and close the writer."""


class JsonLines(RunWriter):
    """Writes one JSON row per line to `metrics.jsonl`. Rows that cannot be written are kept for the next attempt.

    Existing rows after `start_step` are dropped, because the run repeats those steps.
    """

    def __init__(self, folder: epath.Path, start_step: int, is_scored: bool) -> None:
        self.path = folder / METRICS
        self._unwritten = ""
        if self.path.exists():
            lines = self.path.read_bytes().decode(errors="replace").splitlines()
            kept = [line + "\n" for line in lines if _is_kept(line, start_step, is_scored)]
            with write_atomically(self.path) as file:
                file.write("".join(kept).encode())

    def write_scalars(self, step: int, kind: str, row: Row) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._unwritten += json.dumps({"step": step, "kind": kind, "time": now, **row}) + "\n"
        self._append()

    def close(self) -> None:
        if self._unwritten:
            self._append()

    def _append(self) -> None:
        size = self.path.stat().length if self.path.exists() else 0
        try:
            with self.path.open("a") as file:
                file.write(self._unwritten)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)  # a full disk can take a part of a line
            raise
        self._unwritten = ""


class TensorBoard(RunWriter):
    """Writes TensorBoard event files.

    It uses tensorboardX's EventsWriter, because SummaryWriter writes in another process or thread, and waits forever once that
    one has failed.
    """

    def __init__(self, folder: epath.Path, start_step: int, is_scored: bool) -> None:
        self.path = folder / "tensorboard"
        self._files = 0
        self._events: EventsWriter | None = None
        self._is_started = False
        # TensorBoard hides the events that an earlier start wrote for this step and later ones.
        self._hidden_from = start_step + 1

    def write_scalars(self, step: int, kind: str, row: Row) -> None:
        self._write(step, [summary.scalar(f"{kind}/{name}", value) for name, value in row.items() if value is not None])

    def write_images(self, step: int, strips: Strips) -> None:
        self._write(step, [summary.image(f"eval/strip_{i}", strip, dataformats="HWC") for i, strip in enumerate(strips)])

    def close(self) -> None:
        if self._events:
            self._events.close()

    def _write(self, step: int, summaries: Sequence[Any]) -> None:
        try:
            self._events = self._events or self._open()
            for each in summaries:
                self._events.write_event(Event(step=step, wall_time=time.time(), summary=each))
            self._events.flush()
            self._is_started = True
        except OSError:
            # The file can end with a part of an event, and TensorBoard reads nothing after it. Use a new file next time.
            with contextlib.suppress(OSError):
                self.close()
            self._events = None
            raise

    def _open(self) -> EventsWriter:
        self.path.mkdir(parents=True, exist_ok=True)
        self._files += 1
        events = EventsWriter(os.fspath(self.path / "events"), f".{os.getpid()}.{self._files}")
        if not self._is_started:
            events.write_event(Event(step=self._hidden_from, session_log=SessionLog(status=SessionLog.START)))
        return events


WRITERS: tuple[type[RunWriter], ...] = (JsonLines, TensorBoard)


def _is_kept(line: str, step: int, is_scored: bool) -> bool:
    """Return whether a line is a complete row that a run from `step` does not repeat. A crash can leave a truncated line."""
    try:
        row = json.loads(line)
        return row["step"] < step or (row["step"] == step and (is_scored or row["kind"] == "train"))
    except (ValueError, KeyError, TypeError):
        return False
