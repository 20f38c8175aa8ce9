"""Read byte ranges of large files from many threads."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import tensorflow as tf
from etils import epath


class File(NamedTuple):
    """The state of a file when `stat_file` was called.

    Attributes:
      path: A local path or a URL.
      size: The size in bytes.
      version: The inode, size and modification time (ns) of a local file, which differ if the file was replaced. Empty for a
        remote file.
    """

    path: str
    size: int
    version: tuple[int, ...]


def stat_file(path: str) -> File:
    """Return the current state of the file at `path`.

    Raises:
      OSError: The file does not exist or cannot be accessed.
    """
    if not _is_local(path):
        return File(path, epath.Path(path).stat().length, ())
    status = os.stat(path)
    return File(path, status.st_size, _version(status))


def read_range(file: File, start: int, size: int) -> bytes:
    """Read `size` bytes of a file, starting at byte `start`.

    The bytes are read rather than mapped into memory, which keeps memory use low for files of any size. A local file stays
    open between calls. If it is replaced in the meantime, the old contents are read.

    Raises:
      OSError: The file cannot be read, ends before the range does, or was replaced before it was opened.
    """
    with open_ranges(file) as read:
        return read(start, size)


@contextlib.contextmanager
def open_ranges(file: File) -> Iterator[Callable[[int, int], bytes]]:
    """Yield a function that reads ranges of one file, for many reads from a single thread.

    The function takes (start, size) and returns bytes, as `read_range` does. A remote file is opened only once.

    Raises:
      OSError: The same errors as in `read_range`.
    """

    def require_size(data: bytes, start: int, size: int) -> bytes:
        if len(data) != size:
            raise OSError(f"{file.path} ends at byte {start + len(data)}")
        return data

    if _is_local(file.path):
        descriptor = _open(file)  # this reference keeps the file open even if the cache evicts it
        yield lambda start, size: require_size(os.pread(descriptor.number, size, start), start, size)
        return
    with tf.io.gfile.GFile(file.path, "rb") as remote:

        def read(start: int, size: int) -> bytes:
            remote.seek(start)
            return require_size(remote.read(size), start, size)

        yield read


def _is_local(path: str) -> bool:
    # Windows has no `os.pread`. There, local files are read through TensorFlow too, like remote files.
    return "://" not in path and hasattr(os, "pread")


def _version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns


class _Descriptor:
    """A file descriptor that is closed when its last reference is gone.

    A thread may still be reading from a descriptor that the cache has evicted.
    """

    def __init__(self, path: str) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


@functools.lru_cache(maxsize=256)  # many systems limit a process to 1,024 open files
def _open(file: File) -> _Descriptor:
    descriptor = _Descriptor(file.path)
    if _version(os.fstat(descriptor.number)) != file.version:
        raise OSError(f"{file.path} was replaced while it was in use, so the program must be restarted")
    return descriptor
