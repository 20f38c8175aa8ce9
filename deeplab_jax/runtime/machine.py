"""Count the usable CPU cores, look up processes, identify the installed code, and set how the C library reuses freed memory.

The functions about memory only affect glibc.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

# The packages that can change the last bits of a result.
PACKAGES = ("deeplab-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow", "tensorflow-cpu")
# mallopt's parameters, as numbered in glibc's malloc.h
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -3, -4, -8
_has_single_heap = False  # a setting of the process, like mallopt's
_LARGEST_GAP, _SMALLEST_GAP = 128 << 20, 4096  # bytes


def usable_cores() -> int:
    """Return the number of CPU cores available to this process. The machine itself might have more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_running(process: int) -> bool:
    """Return whether another process with this number is running on this machine.

    On Windows, any number except our own counts as running, because `os.kill` would terminate the process.
    """
    if process == os.getpid():
        return False
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # the process belongs to a different user
        return True
    return True


def list_packages() -> dict[str, str]:
    """Return the versions of the installed numerical packages."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def digest_code() -> str:
    """Return a digest of this package's source, because hosts with different commits would train on different numbers."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    names = (path.relative_to(package).as_posix() for path in package.rglob("*.py"))
    for name in sorted(name for name in names if "/." not in f"/{name}"):  # editors hide their locks and copies
        digest.update(name.encode() + b"\0" + hashlib.sha256((package / name).read_bytes()).digest())
    return digest.hexdigest()[:12]


def runs_on_cpu(platforms: str | None) -> bool:
    """Return whether JAX uses the CPU: because it is set to, or because it has no plugin for an accelerator.

    If a plugin fails to load, JAX falls back to the CPU. This function then returns False.

    Args:
      platforms: JAX's setting, from JAX_PLATFORMS or `jax.config.jax_platforms`.
    """
    if platforms:
        return platforms == "cpu"
    return not importlib.metadata.entry_points(group="jax_plugins") and importlib.util.find_spec("libtpu") is None


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library keep freed blocks of up to 32 MB, so that the next image can reuse them.

    Otherwise, the memory goes back to the kernel, which zeroes every page before handing it out again. Zeroing takes a tenth
    of the time it takes to read a record. `trim_memory` returns it.
    """
    _set_options({TRIM_THRESHOLD: -1, MMAP_THRESHOLD: 32 << 20})  # never trim; the highest threshold that glibc allows


def reuse_step_memory() -> None:
    """If JAX will run on the CPU, let each training step reuse the memory of the last one.

    XLA allocates hundreds of MB for a step and frees them after it. If they go back to the kernel, zeroing their pages takes up
    to a third of the step's time (benchmarks/NOTES.md). Only a heap that all threads share can keep such blocks, so the process
    then has one heap. This must be called before JAX starts its threads.
    """
    global _has_single_heap
    if runs_on_cpu(os.environ.get("JAX_PLATFORMS")):
        _has_single_heap = _set_options({ARENA_MAX: 1, MMAP_MAX: 0, TRIM_THRESHOLD: -1})


@functools.cache
def fill_heap_gaps() -> None:
    """If `reuse_step_memory` has set up one heap for all threads, take its gaps of 4 kB and more out of use. Do this only once.

    Compiling a step leaves some 60,000 of them, of all sizes. Whenever a layer allocates memory, the C library would search
    them while all other threads wait, which makes a step of a small network a third slower (benchmarks/NOTES.md). Later
    compilations, such as that of the evaluation, have not slowed steps down again.
    """
    if not _has_single_heap:
        return
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
    size, end = _LARGEST_GAP, libc.malloc(2 * _LARGEST_GAP)  # no gap is that large, so this block is at the end of the heap
    is_in_heap = bool(end) and end < libc.sbrk(0)  # not so with another allocator, such as jemalloc
    while is_in_heap and size >= _SMALLEST_GAP:
        while (block := libc.malloc(size)) and block < end:
            pass  # the block stays allocated
        libc.free(block)
        size //= 2
    libc.free(end)


def _set_options(options: dict[int, int]) -> bool:
    """Call mallopt for each option, unless the user has set a MALLOC_ environment variable. Return whether all are set."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    results = [mallopt(option, value) for option, value in options.items()]
    return all(results)


def trim_memory() -> None:
    """Return freed memory to the operating system. Compiling a training step leaves hundreds of MB of it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(ctypes.c_size_t(0))
