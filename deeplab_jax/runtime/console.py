"""A console whose output can fail without stopping the program, for example in a closed terminal or on a full disk."""

import contextlib
import errno
import io
import os
import sys
from typing import Any, TextIO

from rich.console import Console


def make_console(quiet: bool = False, soft_wrap: bool = True, markup: bool = True) -> Console:
    """Return a console on standard output. Lines that cannot be written are dropped.

    Args:
      quiet: Whether to print nothing.
      soft_wrap: Whether to leave long lines to the terminal. Tables need False.
      markup: Whether text in brackets sets a style. Names of files need False.
    """
    # Python has no standard output if that was closed before it started.
    is_quiet = quiet or sys.stdout is None
    stream: Any = _Stream(sys.stdout or io.StringIO())  # a stand-in for TextIO
    return Console(file=stream, soft_wrap=soft_wrap, highlight=False, emoji=False, quiet=is_quiet, markup=markup)


def discard(stream: TextIO) -> None:
    """Send everything that is written to a stream from now on to the null device."""
    with contextlib.suppress(OSError, ValueError):  # notebooks' streams have no file descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class _Stream:
    """A text stream that escapes characters that its encoding lacks, and drops what cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            with contextlib.suppress(UnicodeEncodeError):  # such as for a file name that is not UTF-8
                return self._stream.write(text)
            encoding = self._stream.encoding  # the error can have a different one, which has other characters
            return self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError) as error:
            self._handle(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._handle(error)

    def _handle(self, error: OSError | ValueError) -> None:
        # A full disk can have room again, but nobody reads a closed pipe or terminal again.
        if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO):
            discard(self._stream)
