"""A console whose output can fail without stopping the program, for example in a closed terminal or on a full disk."""

import errno
import sys
from typing import Any, TextIO

from rich.console import Console

from deeplab_jax.errors import discard


def make_console(quiet: bool = False) -> Console:
    """Return a console for progress messages on standard output.

    Lines that cannot be written are dropped.
    """
    stream: Any = _Stream(sys.stdout)  # a stand-in for TextIO
    return Console(file=stream, soft_wrap=True, highlight=False, quiet=quiet)


class _Stream:
    """A text stream that drops what cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
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
