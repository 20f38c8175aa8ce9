"""A run's messages, on the console and in `log.txt`."""

import contextlib
import datetime
import threading
import time
from collections.abc import Iterator

from etils import epath
from rich.console import Console

from deeplab_jax.buckets import is_url
from deeplab_jax.errors import BucketError, BucketOutageError

LOG = "log.txt"
_REMINDER_SECONDS = 60
_UPLOAD_SECONDS = 2.0  # a bucket takes a second for each version of a file


class Log:
    """Prints lines on the console, and appends them to `log.txt` with their date and time. In a bucket, they appear 2 s later.

    Use it as a context manager, which writes the last lines when it ends.

    Args:
      folder: The run folder, or None on all processes but the first, which write no file.
      console: The console.
    """

    def __init__(self, folder: epath.Path | None, console: Console) -> None:
        self.console = console
        self._path = folder / LOG if folder else None
        self._unwritten: list[str] = []
        self._write_lock = threading.Lock()
        self._has_timer = False

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not (kind and issubclass(kind, BucketOutageError)):  # during an outage, this would fail after another half minute
            self.flush()

    def print(self, line: str) -> None:
        """Print one line. If it cannot be written to the file, it is written with the next one."""
        self.console.print(line, markup=False)
        if not self._path:
            return
        self._unwritten.append(f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}  {line}\n")
        if not is_url(self._path):
            self.flush()
        elif not self._has_timer:
            self._has_timer = True
            timer = threading.Timer(_UPLOAD_SECONDS, self._flush_later)
            timer.daemon = True
            timer.start()

    def _flush_later(self) -> None:
        self._has_timer = False  # a line that is printed from now on needs another upload
        self.flush()

    def flush(self) -> None:
        """Write the lines that are not in the file yet."""
        with self._write_lock:  # lines can be added during an upload
            count = len(self._unwritten)
            if not self._path or not count:
                return
            with contextlib.suppress(OSError, ValueError, BucketError):
                with self._path.open("a") as file:
                    file.write("".join(self._unwritten[:count]))
                del self._unwritten[:count]

    @contextlib.contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Print that `what` has started, and remind the user of it every minute."""
        done, start = threading.Event(), time.perf_counter()

        def remind() -> None:
            while not done.wait(_REMINDER_SECONDS):
                self.print(f"Still {what}, after {format_duration(time.perf_counter() - start)}.")

        self.print(f"{what[0].upper()}{what[1:]}.")
        thread = threading.Thread(target=remind, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def format_duration(seconds: float) -> str:
    """Format a duration as "3 min 05 s", or as "1 h 02 min" if it is at least an hour."""
    minutes, hours = int(seconds // 60) % 60, int(seconds // 3600)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {int(seconds) % 60:02} s"
