"""Count the usable CPU cores, and configure how the C library reuses freed memory."""

import ctypes
import functools
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt parameters, as numbered in glibc's malloc.h


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library keep up to 64 MB of freed memory per thread, so that the next image can reuse it.

    Otherwise, the memory goes back to the kernel, which zeroes every page before handing it out again. Zeroing takes a tenth
    of the time it takes to read a record. This only affects glibc, and only if no MALLOC_ environment variable is set.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(TRIM_THRESHOLD, 64 << 20)
        mallopt(MMAP_THRESHOLD, 32 << 20)  # the maximum that glibc allows


def usable_cores() -> int:
    """Return the number of CPU cores available to this process. The machine itself might have more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
