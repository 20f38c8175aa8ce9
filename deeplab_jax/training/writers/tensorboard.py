"""Write TensorBoard event files."""

import contextlib
import io
import os
import time
from collections.abc import Sequence
from typing import Any

from etils import epath
from tensorboardX import record_writer, summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from deeplab_jax.buckets import SCHEMES
from deeplab_jax.training.writers.writer import Outcome, Row, RunStart, RunWriter, Strips

_UPLOAD_SECONDS = 30.0
_MAX_BYTES = 1 << 22  # a longer file is closed and a new one started, because in a bucket it is uploaded again and again


class _BucketFile:
    """A file in a bucket, which is uploaded as a whole: every 30 s, and when it is closed."""

    def __init__(self, url: str) -> None:
        self._path, self._content, self._next = epath.Path(url), io.BytesIO(), 0.0

    def write(self, data: bytes) -> None:
        self._content.write(data)

    def flush(self) -> None:
        if time.monotonic() >= self._next:
            self.close()
            self._next = time.monotonic() + _UPLOAD_SECONDS

    def close(self) -> None:
        self._path.write_bytes(self._content.getvalue())


class _BucketFiles:
    """Opens files for tensorboardX, whose own code for buckets uses other packages and other credentials."""

    open = staticmethod(_BucketFile)


for _scheme in SCHEMES:
    record_writer.register_writer_factory(_scheme, _BucketFiles)


class TensorBoard(RunWriter):
    """Writes TensorBoard event files.

    It uses tensorboardX's EventsWriter, because SummaryWriter writes in another process or thread, and waits forever once that
    one has failed.
    """

    def __init__(self, run: RunStart) -> None:
        self._folder = run.folder / "tensorboard"
        self.target = str(self._folder)
        self._files = self._size = 0
        self._events: EventsWriter | None = None
        self._is_started = False
        # TensorBoard hides the events that an earlier start wrote for this step and later ones.
        self._hidden_from = run.step + 1

    def write_scalars(self, step: int, kind: str, row: Row) -> None:
        self._write(step, [summary.scalar(f"{kind}/{name}", value) for name, value in row.items() if value is not None])

    def write_images(self, step: int, strips: Strips) -> None:
        self._write(step, [summary.image(f"eval/strip_{i}", strip, dataformats="HWC") for i, strip in enumerate(strips)])

    def close(self, outcome: Outcome) -> None:
        self._close()

    def _close(self) -> None:
        if self._events:
            self._events.close()

    def _write(self, step: int, summaries: Sequence[Any]) -> None:
        try:
            self._events = self._events or self._open()
            for each in summaries:
                event = Event(step=step, wall_time=time.time(), summary=each)
                self._events.write_event(event)
                self._size += event.ByteSize()
            self._events.flush()
            self._is_started = True
            if self._size > _MAX_BYTES:
                self._close()
                self._events, self._size = None, 0
        except OSError:
            # The file can end with a part of an event, and TensorBoard reads nothing after it. Use a new file next time.
            with contextlib.suppress(OSError):
                self._close()
            self._events = None
            raise

    def _open(self) -> EventsWriter:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._files += 1
        events = EventsWriter(os.fspath(self._folder / "events"), f".{os.getpid()}.{self._files}")
        if not self._is_started:
            events.write_event(Event(step=self._hidden_from, session_log=SessionLog(status=SessionLog.START)))
        return events
