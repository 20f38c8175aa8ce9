"""Reduce the cost of compilation: the persistent cache, compiler options, and the release of freed memory."""

import contextlib
import ctypes
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import platformdirs

from deeplab_jax.runtime.machine import usable_cores

MAX_BYTES = 1 << 30  # largest total size of the cached programs


def enable_compilation_cache() -> None:
    """Let JAX store compiled programs in `cache_folder`, where later processes find them.

    This changes JAX's global configuration, so only entry points should call it. It does nothing in these cases:

    - The user chose a folder with `JAX_COMPILATION_CACHE_DIR` ("" means no folder).
    - The user disabled the cache with `JAX_ENABLE_COMPILATION_CACHE=0`.
    - The run has several processes.
    - The folder cannot be written.
    """
    # In a run of several processes, JAX lets only the first one write to the cache. On CPUs or with separate disks, only that
    # process would find its program again. On GPUs, XLA distributes autotuning over all processes, so the processes that
    # compile would wait for the one that does not.
    config: Any = jax.config  # mypy does not know the options, which JAX defines at run time
    is_set_by_user = config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache
    if is_set_by_user or jax.distributed.is_initialized():
        return
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: the user has no home directory
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        config.update("jax_compilation_cache_dir", str(folder))
        delete_least_recently_used(folder.parent, MAX_BYTES)


def cache_folder() -> pathlib.Path:
    """Return the folder for this process's compiled programs: a subfolder of the user's cache for each thread count.

    Raises:
      RuntimeError: The user has no home directory.
    """
    # JAX's cache key covers the program, its options, XLA_FLAGS, the versions, the devices and the CPU instruction set, so
    # that different machines with a shared home do not load each other's programs. The key omits the thread count, which XLA
    # compiles into CPU loops. This is why each count gets a separate folder.
    threads = os.environ.get("PJRT_NPROC") or os.environ.get("NPROC") or usable_cores()
    return platformdirs.user_cache_path("deeplab_jax", appauthor=False, opinion=False) / "xla" / f"{threads}-threads"


def delete_least_recently_used(folder: pathlib.Path, max_bytes: int) -> None:
    """Delete the least recently used files in `folder` until the others fit into `max_bytes`.

    JAX's own size limit is not used. It stores a second file next to each program, and if a process dies between writing the
    two, the cache accepts no more programs.
    """
    files = [(path, path.stat()) for path in folder.rglob("*") if path.is_file()]
    total = 0
    for path, status in sorted(files, key=lambda file: max(file[1].st_atime, file[1].st_mtime), reverse=True):
        total += status.st_size
        if total > max_bytes:
            path.unlink(missing_ok=True)


def quick_options(platform: str) -> dict[str, int]:
    """Return `compiler_options` for `jax.jit` that compile faster, for a program that runs only once.

    The results are the same to the last bit. On CPUs, LLVM's highest optimization level takes most of the compile time, and
    it does not change the arithmetic. (Level 0 would change it, because it does not fuse products with sums.) A level that is
    set in XLA_FLAGS is respected.

    Args:
      platform: The platform of the devices, such as "cpu" or "gpu".
    """
    return _drop_user_options({"xla_backend_optimization_level": 2} if platform == "cpu" else {})


def lean_options(platform: str) -> dict[str, str]:
    """Return `compiler_options` for `jax.jit` that reduce the memory of a large program.

    They only change programs for CPUs. XLA's default schedule runs independent operations in parallel and holds all of their
    results. In training, this takes a quarter more memory at the same speed. By default, XLA also removes optimization
    barriers before it merges common subexpressions, and would then hold slices and tiles of the forward pass for the backward
    pass (benchmarks/NOTES.md). Options that are set in XLA_FLAGS are respected.

    Args:
      platform: The platform of the devices, such as "cpu" or "gpu".
    """
    options = {
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
        "xla_disable_hlo_passes": "cse_barrier_expander",
    }
    return _drop_user_options(options if platform == "cpu" else {})


def _drop_user_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return `options` without those that the user sets in XLA_FLAGS."""
    return {name: value for name, value in options.items() if name not in os.environ.get("XLA_FLAGS", "")}


class Programs:
    """A cache of compiled programs in memory. A program of a large network takes a hundred MB or more.

    Args:
      limit: The largest number of programs to keep. Beyond it, the least recently used program is dropped.
    """

    def __init__(self, limit: int = 8) -> None:
        self._limit = limit
        self._programs: dict[Any, Any] = {}

    def get(self, key: Any, compile_it: Callable[[], Any]) -> Any:
        """Return the program for `key`. If it is not in the cache, compile it with `compile_it`."""
        self._programs[key] = self._programs.pop(key, None) or compile_it()
        if len(self._programs) > self._limit:
            del self._programs[next(iter(self._programs))]
        return self._programs[key]


def compile_program(jitted: Any, *args: Any, **kwargs: Any) -> Any:
    """Compile `jitted` for these arguments, and return the memory that compilation used to the operating system."""
    trim_memory()  # otherwise memory freed after reading the weights would add to that of the compiler
    program = jitted.lower(*args, **kwargs).compile()
    trim_memory()
    return program


def trim_memory() -> None:
    """Return freed memory that glibc still holds to the operating system.

    This is hundreds of MB after a training step was compiled. It does nothing with other C libraries.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(ctypes.c_size_t(0))
