"""What compiling costs: programs kept for the next process, memory given back, compiler options."""

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

MAX_BYTES = 1 << 30  # of all programs that are kept


def keep_programs() -> None:
    """Let JAX keep compiled programs in `default_folder`, for the processes to come. It configures JAX: for entry points.

    Nothing happens where JAX was told another folder (`JAX_COMPILATION_CACHE_DIR`; "" for none) or to keep nothing
    (`JAX_ENABLE_COMPILATION_CACHE=0`), in a run of several processes, and where the folder cannot be written.
    """
    # Of several processes JAX lets the first one write, and on CPUs or another disk it alone finds the program again. XLA for
    # GPUs shares the choice of kernels out among the processes: those that compile would wait for the one that does not.
    config: Any = jax.config  # whose options are known at run time alone
    is_told = config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache
    if is_told or jax.distributed.is_initialized():
        return
    with contextlib.suppress(OSError, RuntimeError):  # the latter: there is no home
        folder = default_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        config.update("jax_compilation_cache_dir", str(folder))
        forget_oldest(folder.parent, MAX_BYTES)


def default_folder() -> pathlib.Path:
    """Return where this process finds its own programs: in the user's cache folder, by the number of threads.

    Raises:
      RuntimeError: the user has no home.
    """
    # JAX's key has the program, its options, XLA_FLAGS, versions, devices and, for CPUs, the instructions that they have: other
    # machines of a shared home find nothing. The key omits the thread
    # count, which XLA compiles into CPU loops; hence one folder for each count.
    threads = os.environ.get("PJRT_NPROC") or os.environ.get("NPROC") or usable_cores()
    return platformdirs.user_cache_path("deeplab_jax", appauthor=False, opinion=False) / "xla" / f"{threads}-threads"


def forget_oldest(folder: pathlib.Path, max_bytes: int) -> None:
    """Delete the least recently used files of `folder` until the others fit into `max_bytes`.

    JAX's own bound keeps a second file beside each, and writes nothing any more once a process ended between the two.
    """
    files = [(path, path.stat()) for path in folder.rglob("*") if path.is_file()]
    kept = 0
    for path, status in sorted(files, key=lambda file: max(file[1].st_atime, file[1].st_mtime), reverse=True):
        kept += status.st_size
        if kept > max_bytes:
            path.unlink(missing_ok=True)


def quick_options(platform: str) -> dict[str, int]:
    """Return `compiler_options` for `jax.jit` of a program that runs once; they do not change its results by a bit.

    Args:
      platform: of the devices. On CPUs LLVM's last level takes most of the time, and changes no arithmetic. (Level 0
        does: it fuses no products with sums.) A level in XLA_FLAGS is left alone.
    """
    return _unless_told({"xla_backend_optimization_level": 2} if platform == "cpu" else {})


def lean_options(platform: str) -> dict[str, str]:
    """Return `compiler_options` for `jax.jit` of a large program: they order its parts so that little is held at a time.

    Args:
      platform: of the devices. On CPUs XLA's own order lets independent parts run side by side, and holds what all of them
        made: a quarter more memory in training, at the same speed. Barriers that end before it looks for equal parts let it
        hold slices and tiles of the forward pass for the backward pass (benchmarks/NOTES.md). What XLA_FLAGS sets is left.
    """
    options = {
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
        "xla_disable_hlo_passes": "cse_barrier_expander",
    }
    return _unless_told(options if platform == "cpu" else {})


def _unless_told(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that XLA_FLAGS does not set."""
    return {name: value for name, value in options.items() if name not in os.environ.get("XLA_FLAGS", "")}


class Programs:
    """Compiled programs by what they were compiled for; that of a large network holds a hundred MB and more.

    Args:
      limit: how many are held; beyond it, the least recently used is dropped.
    """

    def __init__(self, limit: int = 8) -> None:
        self._limit = limit
        self._programs: dict[Any, Any] = {}

    def get(self, key: Any, compile_it: Callable[[], Any]) -> Any:
        """Return the program of `key`, compiled if it is not held."""
        self._programs[key] = self._programs.pop(key, None) or compile_it()
        if len(self._programs) > self._limit:
            del self._programs[next(iter(self._programs))]
        return self._programs[key]


def compile_program(jitted: Any, *args: Any, **kwargs: Any) -> Any:
    """Return `jitted` compiled for these arguments; the memory that compiling took is given back to the system."""
    trim_memory()  # what reading weights left over would be held beside the compiler's own
    program = jitted.lower(*args, **kwargs).compile()
    trim_memory()
    return program


def trim_memory() -> None:
    """Give freed memory that glibc keeps back to the system: hundreds of MB after compiling a training step."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(ctypes.c_size_t(0))
