"""Read byte ranges of large files from many threads."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from etils import epath

from deeplab_jax.buckets import is_url
from deeplab_jax.buckets import read_range as read_url_range


class File(NamedTuple):
    """A file's state at the time of the `stat_file` call.

    Attributes:
      path: A local path or a URL.
      size: The size in bytes.
      version: The inode, size and modification time (ns) of a local file, used to detect a replaced file. Empty for a remote
        file.
    """

    path: str
    size: int
    version: tuple[int, ...]


def stat_file(path: str) -> File:
    """Return the current state of the file at `path`.

    Raises:
      OSError: The file does not exist or cannot be accessed.
    """
    if is_url(path):
        return File(path, epath.Path(path).stat().length, ())
    status = os.stat(path)
    return File(path, status.st_size, _version(status))


def read_range(file: File, start: int, size: int) -> bytes:
    """Read `size` bytes from a file, starting at byte `start`.

    Reading instead of memory-mapping keeps memory use low for files of any size. A local file stays open between calls, so if
    the file is replaced in the meantime, this function still reads the old contents.

    Raises:
      OSError: The file is unreadable, ends before the range does, or was replaced before it was opened.
    """
    with open_ranges(file) as read:
        return read(start, size)


@contextlib.contextmanager
def open_ranges(file: File) -> Iterator[Callable[[int, int], bytes]]:
    """Yield a function for reading many ranges of one file from a single thread.

    The function takes (start, size) and returns `size` bytes. Each call is one request if the file is in a bucket.

    Raises:
      OSError: The file is unreadable, ends before a range does, or was replaced before it was opened.
    """

    def require_size(data: bytes, start: int, size: int) -> bytes:
        if len(data) != size:
            raise OSError(f"{file.path} ends at byte {start + len(data)}")
        return data

    if not is_url(file.path) and hasattr(os, "pread"):
        descriptor = _open(file)  # this reference keeps the file open even after the cache evicts it
        yield lambda start, size: require_size(os.pread(descriptor.number, size, start), start, size)
        return
    if is_url(file.path):
        yield lambda start, size: require_size(read_url_range(file.path, start, size), start, size)
        return
    with open(file.path, "rb") as shared:  # Windows has no `os.pread`

        def read(start: int, size: int) -> bytes:
            shared.seek(start)
            return require_size(shared.read(size), start, size)

        yield read


def _version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns


class _Descriptor:
    """A file descriptor that is closed when its last reference is dropped.

    Closing a descriptor as soon as the cache evicts it would break threads that are still reading from it.
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
        raise OSError(f"{file.path} was replaced while it was in use. Restart the program.")
    return descriptor
