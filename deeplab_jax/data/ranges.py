"""Bytes out of the middle of large files, read from many threads."""

import functools
import os
import threading

import tensorflow as tf


def read_range(path: str, start: int, size: int) -> bytes:
    """`size` bytes from `start` on. Reading, rather than mapping, keeps memory flat however large the file is.

    Raises:
      OSError: the file cannot be read, or ends before.
    """
    if "://" in path:
        with tf.io.gfile.GFile(path, "rb") as file:
            file.seek(start)
            data = file.read(size)
    else:
        data = os.pread(_descriptor(path), size, start)
    if len(data) != size:
        raise OSError(f"{path} ends at byte {start + len(data)}")
    return data


_OPENING = threading.Lock()


def _descriptor(path: str) -> int:
    with _OPENING:  # a cache alone would let two threads open one file
        return _open(path, os.stat(path).st_ino)


@functools.cache
def _open(path: str, inode: int) -> int:
    """A file that was replaced is another one."""
    return os.open(path, os.O_RDONLY)
