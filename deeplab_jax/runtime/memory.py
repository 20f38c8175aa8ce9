"""Compare a compiled program's memory use with the free memory, and recognise errors that mean "out of memory".

On a CPU, a program that needs too much memory can end the process without an error that Python could catch: XLA aborts, or the
operating system kills the process. So the need must be compared with the free memory before the program runs.
"""

import contextlib
import errno
import math
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from deeplab_jax.errors import OutOfMemoryError
from deeplab_jax.runtime.machine import trim_memory

_OUT_OF_MEMORY = re.compile(r"out.of.memory|bad_alloc|ALLOC_FAILED|Attempting to (reserve|allocate)|\bOOM\b", re.I)
_SIZE = re.compile(r"(?:allocat\w*|reserve|Used) (\d[\d.]*) ?(bytes|[KMGT]i?B?)\b")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# An unlimited cgroup v1 reports the largest multiple of the page size below 2**63.
_UNLIMITED = 2**60
# Programs that need less than this never reserve a buffer that is too large for a machine.
_SMALL = 2**28
# Arrays and convolutions in HLO text. A convolution's result ends with its channels (dim_labels=b01f_01io->b01f).
_ARRAY = re.compile(r"%([\w.-]+) = \w+\[([\d,]*)\]")
_CONVOLUTION = re.compile(r" = \w+\[([\d,]*),(\d+)\]\S* convolution\(%[\w.-]+, %([\w.-]+)\).*_01io->b01f")


def describe_out_of_memory(error: BaseException) -> str | None:
    """Return one sentence that says what ran out of memory, or None if the error has a different cause.

    Args:
      error: Any error. Its causes are examined too, because orbax and thread pools wrap errors of the device.

    Returns:
      A sentence that ends with a full stop, such as "The GPU cuda:0 (NVIDIA H200) ran out of memory allocating 12.0 GiB."
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM):
            return f"This machine ran out of memory{_describe_size(str(cause))}."
        # TensorFlow's errors are recognised by name, because importing TensorFlow takes seconds.
        if type(cause).__name__ == "ResourceExhaustedError":
            return "This machine ran out of memory while reading the data."
        if isinstance(cause, jax.errors.JaxRuntimeError) and _OUT_OF_MEMORY.search(str(cause)):
            return f"{_describe_device(jax.local_devices()[0])} ran out of memory{_describe_size(str(cause))}."
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


@contextlib.contextmanager
def report_out_of_memory(advice: str) -> Iterator[None]:
    """Turn any error inside the block that means "out of memory" into an OutOfMemoryError.

    Args:
      advice: One or more sentences that say what to lower.

    Raises:
      OutOfMemoryError: The block ran out of memory on the host or on a device.
    """
    try:
        yield
    except OutOfMemoryError:
        raise
    except Exception as error:
        if what := describe_out_of_memory(error):
            raise OutOfMemoryError(what, advice) from error
        raise


def require_memory(program: Any, devices: Sequence[jax.Device], what: str, advice: str) -> None:
    """Check that a compiled program's results and temporary values fit into the free memory. Its arguments already exist.

    Args:
      program: The result of `jax.stages.Lowered.compile`.
      devices: The devices of this process that the program runs on.
      what: The subject of the error message, such as "An image of 9000x9000 pixels".
      advice: One or more sentences that say what to lower.

    Raises:
      OutOfMemoryError: The program needs more memory than is free.
    """
    needed, free = needed_bytes(program), free_bytes(devices[0])
    if devices[0].platform == "cpu":
        needed *= len(devices)  # CPU devices share the machine's memory
        largest = largest_convolution_bytes(program) if needed > _SMALL else 0
        limit = _allocation_limit()
        if limit is not None and largest > limit:
            needed, free = needed + largest, limit
    if free is not None and needed > free:
        where = _describe_device(devices[0], inside=True)
        reason = f"{what} needs about {_format_bytes(needed)} of memory, but {where} has only {_format_bytes(free)} available."
        raise OutOfMemoryError(reason, advice)


def largest_convolution_bytes(program: Any) -> int:
    """Return the size of the largest buffer that XLA's CPU convolutions ask the operating system for, in bytes.

    Eigen, which computes these convolutions, reserves space for one copy of the input per kernel element. It uses little of
    it, so the buffer does not count as memory in use, but the process aborts if the operating system refuses to reserve it.
    `memory_analysis` does not include this buffer.
    """
    text = program.as_text()
    shapes = {name: _count_elements(shape) for name, shape in _ARRAY.findall(text)}
    sizes = [0]
    for output, features, kernel in _CONVOLUTION.findall(text):
        outputs = _count_elements(output) * int(features)
        sizes.append(4 * outputs * shapes.get(kernel, 0) // int(features) ** 2)
    return max(sizes)


def needed_bytes(program: Any) -> int:
    """Return how many bytes a compiled program allocates on each of its devices when it runs, or 0 if that is unknown."""
    analysis = program.memory_analysis()
    if analysis is None:
        return 0
    return int(analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes)


def memory_limit(device: jax.Device) -> float | None:
    """Return the memory available to a program on the device, in bytes, or None if that is unknown.

    For a CPU, this is the smallest of the machine's physical memory and the limits described in `free_bytes`.
    """
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    limits = (physical, _control_group_bytes(), _address_space_bytes())
    return min((limit for limit in limits if limit is not None), default=None)


def free_bytes(device: jax.Device) -> int | None:
    """Return how many bytes a program can still allocate on the device, or None if that is unknown.

    For a CPU, this is the smallest of the machine's available memory and swap space, the rest of the memory limit of this
    process's control group (as set by containers and SLURM), and the rest of `ulimit -v`. Freed memory that the C library has
    kept counts as free.
    """
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats["bytes_limit"] - stats["bytes_in_use"] if {"bytes_limit", "bytes_in_use"} <= stats.keys() else None
    trim_memory()
    limits = (_available_bytes(), _control_group_bytes(), _address_space_bytes())
    return min((limit for limit in limits if limit is not None), default=None)


def _available_bytes(path: str = "/proc/meminfo") -> int | None:
    with contextlib.suppress(OSError):
        values = dict(re.findall(r"^(\w+): +(\d+) kB$", pathlib.Path(path).read_text(), re.MULTILINE))
        if "MemAvailable" in values:
            return 1024 * (int(values["MemAvailable"]) + int(values.get("SwapFree", 0)))
    return None


def _allocation_limit(path: str = "/proc/meminfo", mode: str = "/proc/sys/vm/overcommit_memory") -> int | None:
    """Return the largest allocation that Linux permits, whether the memory is used or not, or None if there is no limit."""
    with contextlib.suppress(OSError, ValueError):
        values = dict(re.findall(r"^(\w+): +(\d+) kB$", pathlib.Path(path).read_text(), re.MULTILINE))
        limits = [value for value in (_address_space_bytes(),) if value is not None]
        if (policy := int(pathlib.Path(mode).read_text())) != 1:
            names = ("MemTotal", "SwapTotal") if policy == 0 else ("CommitLimit",)
            limits.append(1024 * sum(int(values[name]) for name in names if name in values))
        return min(limits, default=None)
    return None


def _control_group_bytes(root: str = "/sys/fs/cgroup", membership: str = "/proc/self/cgroup") -> int | None:
    """Return the smallest remaining limit of this process's control group and the groups above it."""
    rests = []
    with contextlib.suppress(OSError):
        for line in pathlib.Path(membership).read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers == "":
                base, names = pathlib.Path(root), ("memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                base = pathlib.Path(root) / "memory"
            else:
                continue
            # Inside a container, the group's folder is often mounted as the root, so its own name does not exist there.
            group = base / name.strip("/")
            for folder in (group, *(parent for parent in group.parents if parent == base or base in parent.parents)):
                rests.append(_rest_of_limit(folder, *names))
    return min((rest for rest in rests if rest is not None), default=None)


def _rest_of_limit(folder: pathlib.Path, limit_file: str, usage_file: str, cached: str) -> int | None:
    try:
        limit = (folder / limit_file).read_text().strip()
        if limit == "max" or int(limit) >= _UNLIMITED:
            return None
        match = re.search(rf"^{cached} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
        # The kernel drops cached file pages before it refuses an allocation.
        return int(limit) - int((folder / usage_file).read_text()) + (int(match[1]) if match else 0)
    except (OSError, ValueError):
        return None


def _address_space_bytes() -> int | None:
    try:
        import resource  # not available on Windows

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError, ValueError):
        return None
    return None if limit == resource.RLIM_INFINITY else limit - pages * os.sysconf("SC_PAGE_SIZE")


def _count_elements(shape: str) -> int:
    return math.prod(int(size) for size in shape.split(",") if size)


def _describe_device(device: jax.Device, inside: bool = False) -> str:
    if device.platform == "cpu":
        if jax.process_count() > 1:  # other machines print this line too
            return f"{'the' if inside else 'The'} machine of process {jax.process_index()}"
        return "this machine" if inside else "This machine"
    return f"{'the' if inside else 'The'} {device.platform.upper()} {device} ({device.device_kind})"


def _describe_size(message: str) -> str:
    match = _SIZE.search(message)
    if match is None:
        return ""
    return f" allocating {_format_bytes(float(match[1]) * _UNITS.get(match[2][0], 1))}"


def _format_bytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.1f} MiB"
