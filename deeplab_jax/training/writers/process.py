"""Run a tracker in a process of its own.

A tracker's library can wait for a network, print, and start threads and processes that do not end. None of this may hold up or
end a training. So the run puts each call into a queue, a thread sends the queue to the process, and `close` waits only for a
limited time. If the run is killed, the process notices the end of the stream, and closes the tracked run.
"""

import contextlib
import functools
import json
import os
import pickle
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

from deeplab_jax.buckets import is_url
from deeplab_jax.errors import one_line
from deeplab_jax.files import link_or_copy
from deeplab_jax.training.signals import STOP_SIGNALS
from deeplab_jax.training.writers.json_lines import is_repeated
from deeplab_jax.training.writers.tracker import Tracker, keep_last_step, read_last_step, upload_folder
from deeplab_jax.training.writers.writer import Checkpoint, Outcome, Row, RunStart, RunWriter, Strips

_MAX_WAITING = 256 << 20  # bytes of calls that may wait for the process
_QUIET_SECONDS = 2.0  # `close` says what it waits for only after this time
_CLOSE_SECONDS, _UPLOAD_SECONDS = 60.0, 600.0  # how long `close` waits, without and with checkpoints to upload
_STOPPED_SECONDS = 10.0  # schedulers kill a run soon after the signal that ends it


class TrackerProcess(RunWriter):
    """Passes calls on to a tracker in another process. Its errors are raised by the next call.

    The tracked run of a resumed run is completed from the log: a kill can lose the last rows on their way to the tracker, which
    can also be a new one. Rows that the run repeats are passed on only if they differ from those that the tracker already has.

    Args:
      kind: The tracker's class.
      name: The writer's name.
      run: The start of the run.
      say: Function that prints a line in the run's log. Other threads call it.
      rows: The rows that earlier starts have logged.
    """

    def __init__(
        self,
        kind: type[Tracker],
        name: str,
        run: RunStart,
        say: Callable[[str], None],
        rows: Iterable[Mapping[str, Any]],
    ) -> None:
        self.target, self.takes_checkpoints = name, kind.takes_checkpoints
        self._say = say
        self._known: dict[tuple[int, str], float | None] = {}
        self._uploads = upload_folder(run, name)
        self._has_uploads = self._is_repeated = False
        self._last_uploaded = read_last_step(run, name, "checkpoint")
        shutil.rmtree(self._uploads, ignore_errors=True)
        self._calls: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._waiting, self._lock = 0, threading.Lock()
        self._errors: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C is for the run only
        )
        self._put((kind, name, run))
        threading.Thread(target=self._send, daemon=True).start()
        self._receiver = threading.Thread(target=self._receive, daemon=True)
        self._receiver.start()
        if run.step > 0:
            self._complete(run, rows)

    def _complete(self, run: RunStart, rows: Iterable[Mapping[str, Any]]) -> None:
        last = {kind: read_last_step(run, self.target, kind) for kind in ("train", "eval")}
        for row in rows:
            step, kind = row["step"], row["kind"]
            has_row = step <= last[kind]
            if has_row and is_repeated(row, run):
                self._known[step, kind] = row.get("loss")
            elif not has_row and not is_repeated(row, run):
                values = {name: value for name, value in row.items() if name not in ("step", "kind", "time")}
                self._put(("write_scalars", (step, kind, values)))

    def write_scalars(self, step: int, kind: str, row: Row) -> None:
        self._is_repeated = (step, kind) in self._known and self._known[step, kind] == row.get("loss")
        if not self._is_repeated:
            self._call("write_scalars", step, kind, dict(row))

    def write_images(self, step: int, strips: Strips) -> None:
        if not self._is_repeated:  # the images follow the row of their evaluation
            self._call("write_images", step, list(strips))

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        # The run can delete the checkpoint before it is uploaded. Hard links keep the files, and take no time and no space,
        # where the file system has them.
        if is_url(checkpoint.folder):
            raise RuntimeError("checkpoints in buckets are not uploaded")
        copy = self._uploads / str(checkpoint.step)
        shutil.copytree(checkpoint.folder, copy, copy_function=link_or_copy)
        self._has_uploads = True
        self._call("write_checkpoint", Checkpoint(checkpoint.step, str(copy), checkpoint.miou, checkpoint.is_best))

    def has_checkpoint(self, step: int) -> bool:
        return step <= self._last_uploaded

    def close(self, outcome: Outcome) -> None:
        self._put(("close", (outcome,)))
        self._calls.put(None)
        seconds = _STOPPED_SECONDS if outcome == "stopped" else _UPLOAD_SECONDS if self._has_uploads else _CLOSE_SECONDS
        try:
            self._wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            lost = "the last rows and checkpoints" if self._has_uploads else "the last rows"
            raise TimeoutError(f"it did not finish within {seconds:.0f} s, so it may lack {lost}") from None
        finally:
            shutil.rmtree(self._uploads, ignore_errors=True)
        self._receiver.join(_QUIET_SECONDS)
        self._raise_error()

    def _wait(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_QUIET_SECONDS)
            return
        self._say(f"Waiting for {self.target} to finish, for up to {seconds:.0f} s.")
        self._process.wait(seconds)

    def _call(self, method: str, *args: Any) -> None:
        is_full = self._waiting > _MAX_WAITING
        if not is_full:
            self._put((method, args))
        self._raise_error()
        if is_full:
            raise RuntimeError("it is too slow, so rows are dropped")

    def _put(self, call: Any) -> None:
        data = pickle.dumps(call)
        with self._lock:
            self._waiting += len(data)
        self._calls.put(data)

    def _raise_error(self) -> None:
        with contextlib.suppress(queue.Empty):
            raise RuntimeError(self._errors.get_nowait())

    def _send(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as stream:  # `_receive` reports the end of the process
            while data := self._calls.get():
                stream.write(data)
                stream.flush()
                with self._lock:
                    self._waiting -= len(data)

    def _receive(self) -> None:
        assert self._process.stdout is not None
        is_closed = False
        with self._process.stdout as lines:
            for line in lines:
                kind, text = json.loads(line)
                is_closed = is_closed or kind == "closed"
                if kind == "say":
                    self._say(text)
                elif kind == "error":
                    self._errors.put(text)
        if not is_closed:
            self._errors.put("its process has ended")


def main() -> None:
    """Serve the calls of a `TrackerProcess` on stdin. Each line on stdout is JSON: ["say" | "error" | "closed", text]."""
    for number in STOP_SIGNALS:  # the run decides what to do about a signal, and then closes the stream
        signal.signal(number, signal.SIG_IGN)
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)  # a library that asks a question gets no answer
    os.dup2(2, 1)

    def tell(kind: str, text: str) -> None:
        with contextlib.suppress(OSError):  # the run may have been killed
            print(json.dumps([kind, text]), file=answers, flush=True)

    kind, name, run = pickle.load(calls)

    def make() -> Tracker:
        return kind(run, lambda line: tell("say", f"{name}: {line}"))

    _serve(calls, make, functools.partial(keep_last_step, run, name), tell)
    tell("closed", "")


def _serve(
    calls: BinaryIO, make: Callable[[], Tracker], keep: Callable[[str, int], None], tell: Callable[[str, str], None]
) -> None:
    """Make the calls on a tracker, until `close`. A tracker that cannot be made is tried again for the next call."""
    tracker, has_failed, has_gap, method = None, False, False, ""
    while method != "close":
        try:
            method, args = pickle.load(calls)
        except (EOFError, pickle.UnpicklingError):  # a kill can leave a part of a call
            method, args = "close", ("stopped",)
        try:
            tracker = tracker or make()
            getattr(tracker, method)(*args)
            has_failed = False
            if method == "write_scalars" and not has_gap:
                keep(args[1], args[0])
            elif method == "write_checkpoint":
                keep("checkpoint", args[0].step)
        except Exception as error:  # libraries raise many kinds of errors
            if not has_failed:
                tell("error", f"{method}: {one_line(error)}")
            has_failed = True
            has_gap = has_gap or method == "write_scalars"  # a resumed run sends all rows from the first lost one
        if method == "write_checkpoint":
            shutil.rmtree(args[0].folder, ignore_errors=True)
