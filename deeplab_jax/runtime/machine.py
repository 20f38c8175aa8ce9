"""What a process asks of the machine: memory that stays with a pipeline that takes megabytes for every image, and cores."""

import ctypes
import functools
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt, in GNU's malloc.h


@functools.cache
def keep_freed_memory() -> None:
    """Lets the C library keep what is freed for the next image, within 64 MB a thread, instead of giving it back each time.

    The kernel fills every page with zeros before it hands it out again: a tenth of the time that a record takes. Only GNU's
    library is told; one that has been told by MALLOC_ variables is left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(TRIM_THRESHOLD, 64 << 20)
        mallopt(MMAP_THRESHOLD, 32 << 20)  # its maximum


def usable_cores() -> int:
    """Of this process, which may have been given fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
