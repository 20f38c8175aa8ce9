"""Make compilation cheaper: cache programs on disk, set compiler options, and return freed memory to the operating system."""

import contextlib
import os
import pathlib
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import platformdirs

from deeplab_jax.errors import ConfigError
from deeplab_jax.runtime.machine import trim_memory, usable_cores

# How many pixels a network processes in the time that it takes to compile it. On two CPU cores, ResNet-50 at output stride 8
# takes 10 s to compile and processes 0.07 million pixels a second. Accelerators are assumed to need a minute, because of
# autotuning, and to process 20 million pixels a second.
COMPILE_PIXELS_ON_CPUS, COMPILE_PIXELS_ON_ACCELERATORS = 10**6, 10**9
MAX_BYTES = 1 << 30  # maximum total size of the cached programs


def enable_compilation_cache() -> None:
    """Let JAX store compiled programs in `cache_folder`, so that later processes can reuse them.

    This changes JAX's global configuration, so only entry points should call it. It does nothing in these cases:

    - The user set `JAX_COMPILATION_CACHE_DIR` to a folder, or to "" for no folder.
    - The user disabled the cache with `JAX_ENABLE_COMPILATION_CACHE=0`.
    - The run has several processes.
    - The folder is not writable.
    """
    # In a multi-process run, JAX lets only the first process write to the cache. On CPUs or with separate disks, only that
    # process would find its program in the cache later. On GPUs, XLA distributes autotuning over all processes, so the other
    # processes would compile and then wait for the first one, which has nothing to compile.
    config: Any = jax.config  # JAX defines these options at run time, so mypy cannot see them
    is_set_by_user = config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache
    if is_set_by_user or jax.distributed.is_initialized():
        return
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError means that the user has no home directory
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        config.update("jax_compilation_cache_dir", str(folder))
        delete_least_recently_used(folder.parent, MAX_BYTES)


def require_compilation_cache() -> str:
    """Return the folder in which JAX stores compiled programs.

    Raises:
      ConfigError: JAX does not store them.
    """
    config: Any = jax.config  # JAX defines these options at run time, so mypy cannot see them
    if not (config.jax_compilation_cache_dir and config.jax_enable_compilation_cache):
        raise ConfigError(
            "Compiled programs are not kept, because the compilation cache is disabled or its folder is not writable. See "
            "docs/reference/compilation-cache.md."
        )
    return config.jax_compilation_cache_dir


def cache_folder() -> pathlib.Path:
    """Return the folder for compiled programs. The user's cache contains one such folder per thread count.

    Raises:
      RuntimeError: The user has no home directory.
    """
    # JAX's cache key covers the program, its options, XLA_FLAGS, the versions, the devices and the CPU instruction set, so
    # different machines can share a home directory. However, the key omits the thread count, which XLA hard-codes into CPU
    # loops, so each thread count gets a separate folder.
    threads = os.environ.get("PJRT_NPROC") or os.environ.get("NPROC") or usable_cores()
    return platformdirs.user_cache_path("deeplab_jax", appauthor=False, opinion=False) / "xla" / f"{threads}-threads"


def delete_least_recently_used(folder: pathlib.Path, max_bytes: int) -> None:
    """Delete the least recently used files in `folder` until the total size is at most `max_bytes`.

    JAX's own size limit is not used, because it requires a second file next to each program. If a process dies after writing
    only one of the two, the cache accepts no more programs.
    """
    files = [(path, path.stat()) for path in folder.rglob("*") if path.is_file()]
    total = 0
    for path, status in sorted(files, key=lambda file: max(file[1].st_atime, file[1].st_mtime), reverse=True):
        total += status.st_size
        if total > max_bytes:
            path.unlink(missing_ok=True)


def quick_options(platform: str) -> dict[str, int]:
    """Return `compiler_options` for `jax.jit` that speed up compilation, for programs that run only once.

    The results are bit-identical to those with the default options. On CPUs, LLVM's highest optimization level takes most of
    the compile time without changing the arithmetic, so a lower level is used. Level 0 would change the arithmetic, because
    it does not fuse multiplications with additions. A level set in XLA_FLAGS takes precedence.

    Args:
      platform: The device platform, such as "cpu" or "gpu".
    """
    return _drop_user_options({"xla_backend_optimization_level": 2} if platform == "cpu" else {})


def lean_options(platform: str) -> dict[str, str]:
    """Return `compiler_options` for `jax.jit` that save memory, for large programs.

    Only CPU programs are affected. XLA's default schedule runs independent operations in parallel and holds all of their
    results, so training takes a quarter more memory and is no faster. By default, XLA also removes optimization barriers
    before merging common subexpressions, so slices and tiles from the forward pass would stay in memory until the backward
    pass (benchmarks/NOTES.md). Options set in XLA_FLAGS take precedence.

    Args:
      platform: The device platform, such as "cpu" or "gpu".
    """
    options = {
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
        "xla_disable_hlo_passes": "cse_barrier_expander",
    }
    return _drop_user_options(options if platform == "cpu" else {})


def _drop_user_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return `options` without those that the user has set in XLA_FLAGS."""
    return {name: value for name, value in options.items() if name not in os.environ.get("XLA_FLAGS", "")}


def estimate_compile_pixels() -> int:
    """Return roughly how many pixels the default device processes in the time that it takes to compile a network."""
    return COMPILE_PIXELS_ON_CPUS if jax.default_backend() == "cpu" else COMPILE_PIXELS_ON_ACCELERATORS


class Programs:
    """An in-memory cache for compiled programs, for several threads. A ResNet-50's program takes 40 MB on a CPU.

    Args:
      limit: The maximum number of programs to keep. When it is exceeded, the least recently used program is dropped.
    """

    def __init__(self, limit: int = 32) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._programs: dict[Any, Future[Any]] = {}

    def get(self, key: Any, compile_it: Callable[[], Any]) -> Any:
        """Return the program for `key`. If it is not in the cache, compile it by calling `compile_it`.

        If another thread is already compiling it, wait for that thread.
        """
        with self._lock:
            known = self._programs.pop(key, None)
            program = known or Future()
            self._programs[key] = program
            if len(self._programs) > self._limit:
                del self._programs[next(iter(self._programs))]
        if known is None:
            try:
                program.set_result(compile_it())
            except BaseException as error:
                program.set_exception(error)
                with self._lock:
                    self._programs.pop(key, None)
        return program.result()


@contextlib.contextmanager
def compiling_ahead(compilations: Sequence[Callable[[], Any]]) -> Iterator[None]:
    """Call the functions one after the other in a thread while the block runs.

    Compiling uses one core most of the time, so a program is compiled while another one runs. When the block ends, functions
    that have not started are skipped. Errors are ignored, because whoever needs the program compiles it again and sees them.

    Args:
      compilations: Functions that put programs into a `Programs` cache.
    """
    pool = ThreadPoolExecutor(1)
    for compile_it in compilations:
        pool.submit(compile_it)
    try:
        yield
    finally:
        pool.shutdown(cancel_futures=True)


def compile_program(jitted: Any, *args: Any, **kwargs: Any) -> Any:
    """Compile `jitted` for these arguments, and then release the compiler's memory.

    The program ignores JAX_DISABLE_JIT.
    """
    trim_memory()  # otherwise, memory freed after reading the weights would add to the compiler's peak memory
    with jax.disable_jit(False):
        program = jitted.lower(*args, **kwargs).compile()
    trim_memory()
    config: Any = jax.config  # JAX defines this option at run time, so mypy cannot see it
    return _IgnoringDisableJit(program) if config.jax_disable_jit else program


class _IgnoringDisableJit:
    """A compiled program that also runs under JAX_DISABLE_JIT, which compiled programs otherwise refuse."""

    def __init__(self, program: Any) -> None:
        self._program = program

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with jax.disable_jit(False):
            return self._program(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._program, name)
