"""Bytes out of the middle of large files, read from many threads."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import tensorflow as tf
from etils import epath


class File(NamedTuple):
    """A file as it was when `stat_file` was called.

    Attributes:
      path: local, or a URL.
      size: in bytes.
      version: of a local file; another one means that the file was replaced.
    """

    path: str
    size: int
    version: tuple[int, ...]


def stat_file(path: str) -> File:
    """Return the file that `path` names at this moment.

    Raises:
      OSError: there is none.
    """
    if not _is_local(path):
        return File(path, epath.Path(path).stat().length, ())
    status = os.stat(path)
    return File(path, status.st_size, _version(status))


def read_range(file: File, start: int, size: int) -> bytes:
    """Return `size` bytes from `start` on. Reading, rather than mapping, keeps memory flat however large the file is.

    A local file is kept open, so that one that is replaced meanwhile is read on as it was.

    Raises:
      OSError: the file cannot be read, ends before, or was replaced since.
    """
    with open_ranges(file) as read:
        return read(start, size)


@contextlib.contextmanager
def open_ranges(file: File) -> Iterator[Callable[[int, int], bytes]]:
    """Give `read_range` of one file, for many reads from one thread: a file that lies elsewhere is opened once.

    Raises:
      OSError: as `read_range`.
    """

    def require_whole(data: bytes, start: int, size: int) -> bytes:
        if len(data) != size:
            raise OSError(f"{file.path} ends at byte {start + len(data)}")
        return data

    if _is_local(file.path):
        descriptor = _open(file)  # held while it is read: the cache may let go of it meanwhile
        yield lambda start, size: require_whole(os.pread(descriptor.number, size, start), start, size)
        return
    with tf.io.gfile.GFile(file.path, "rb") as remote:

        def read(start: int, size: int) -> bytes:
            remote.seek(start)
            return require_whole(remote.read(size), start, size)

        yield read


def _is_local(path: str) -> bool:
    # Windows has no pread: there TensorFlow opens the file for each read.
    return "://" not in path and hasattr(os, "pread")


def _version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns


class _Descriptor:
    """Closed when nobody holds it: a thread may still read what the cache has let go."""

    def __init__(self, path: str) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


@functools.lru_cache(maxsize=256)  # a process may often have no more than 1,024 files open
def _open(file: File) -> _Descriptor:
    descriptor = _Descriptor(file.path)
    if _version(os.fstat(descriptor.number)) != file.version:
        raise OSError(f"{file.path} was replaced since it was opened: start again")
    return descriptor
