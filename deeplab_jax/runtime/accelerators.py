"""Look up or measure the peak rates, bandwidths and memory sizes of devices."""

import dataclasses
import functools
import os
import re
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from deeplab_jax.errors import ConfigError, one_line

GIB = 2**30
# The fraction of GPU memory that JAX uses unless XLA_PYTHON_CLIENT_MEM_FRACTION is set.
GPU_SHARE = 0.75


@dataclasses.dataclass(frozen=True, slots=True)
class Accelerator:
    """Device specifications from the vendor's data sheet. docs/explanation/scaling.md lists the sources.

    Attributes:
      kinds: A regular expression to search for in JAX's `device_kind`.
      flops: The peak rate for dense bfloat16 arithmetic with float32 accumulation, in FLOP/s.
      bandwidth: The memory bandwidth in bytes per second.
      memory: The amount of device memory that JAX uses by default, in bytes.
      link: The rate at which the device sends to its ring neighbours, in bytes per second, summed over all ring directions.
        This is 0 for devices sold without NVLink or another dedicated interconnect.
    """

    kinds: str
    flops: float
    bandwidth: float
    memory: float
    link: float = 0


ACCELERATORS = {
    "a100": Accelerator(r"A100.*80GB", 312e12, 2039e9, GPU_SHARE * 80 * GIB, 300e9),
    "a100-40gb": Accelerator(r"A100", 312e12, 1555e9, GPU_SHARE * 40 * GIB, 300e9),
    "h100": Accelerator(r"H100 80GB HBM3", 989e12, 3350e9, GPU_SHARE * 80 * GIB, 450e9),
    "h200": Accelerator(r"H200$", 989e12, 4800e9, GPU_SHARE * 141e9, 450e9),
    "b200": Accelerator(r"B200$", 2250e12, 8000e9, GPU_SHARE * 180e9, 900e9),
    "l4": Accelerator(r"L4$", 121e12, 300e9, GPU_SHARE * 24 * GIB),
    "a10g": Accelerator(r"A10G", 70e12, 600e9, GPU_SHARE * 24 * GIB),
    "v4": Accelerator(r"TPU v4$", 275e12, 1200e9, 32 * GIB, 100e9),
    "v5e": Accelerator(r"TPU v5 ?(e|lite)", 197e12, 819e9, 16 * GIB, 100e9),
    "v5p": Accelerator(r"TPU v5p?$", 459e12, 2765e9, 95 * GIB, 200e9),
    "v6e": Accelerator(r"TPU v6 ?(e|lite)", 918e12, 1640e9, 32 * GIB, 200e9),
}


def peak_rate(kind: str, dtype: str) -> tuple[float, str]:
    """Return the peak matrix multiplication rate of this process's first device.

    Args:
      kind: The device's `device_kind`.
      dtype: The network's dtype. The data sheet is used only for bfloat16, because its rates for other dtypes can require
        modes that JAX does not use. Other dtypes, and devices missing from `ACCELERATORS`, are measured instead.

    Returns:
      The rate in FLOP/s, and its source: "its data sheet" or "measured".
    """
    for accelerator in ACCELERATORS.values():
        if dtype == "bfloat16" and re.search(accelerator.kinds, kind):
            return accelerator.flops, "its data sheet"
    return matmul_rate(dtype), "measured"


def mesh_peak_rate(mesh: Mesh, dtype: str) -> tuple[float, str]:
    """Return the total peak rate of the devices in a mesh, and its source (see `peak_rate`).

    A process's CPU devices count as a single device, because they share the same cores.
    """
    devices = list(mesh.devices.flat)
    count = len({device.process_index for device in devices}) if devices[0].platform == "cpu" else len(devices)
    rate, source = peak_rate(devices[0].device_kind, dtype)
    return count * rate, source


@functools.cache
def matmul_rate(dtype: str) -> float:
    """Measure how fast this process's first device multiplies large matrices, in FLOP/s. This takes about half a second."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    multiply = jax.jit(lambda x: x @ x)
    return 2 * size**3 / _median_seconds(multiply, jnp.full((size, size), 1 / size, dtype))


@functools.cache
def copy_rate() -> float:
    """Measure the memory bandwidth of this process's first device by copying a large array. This takes about half a second.

    Returns:
      The bandwidth in bytes per second, counting both reads and writes.
    """
    # Update the array in place: on a CPU, the operating system would zero the pages of a new array first.
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    numbers = jnp.zeros(GIB // 16, jnp.float32)
    size = numbers.nbytes
    return 2 * size / _median_seconds(add, numbers)


def _median_seconds(work: Callable[[jax.Array], jax.Array], x: jax.Array, budget: float = 0.25) -> float:
    """Return the median time per call to `work`, after a warm-up call. Each call receives the previous call's result."""
    x = jax.block_until_ready(work(x))
    times: list[float] = []
    while len(times) < 3 or sum(times) < budget:
        start = time.perf_counter()
        x = jax.block_until_ready(work(x))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def require_devices() -> None:
    """Check that JAX can use its default devices.

    Raises:
      ConfigError: It cannot, for example because an environment variable names a platform that this machine lacks.
    """
    try:
        jax.devices()
    except Exception as error:  # JAX raises various types, including AssertionError without a message
        reason = one_line(error) if str(error) else "JAX found no such device"
        names = [name for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME") if os.environ.get(name)]
        if not names:
            raise ConfigError(
                f"JAX found no device ({reason}). Install JAX for what this machine has (see docs/how-to/accelerators.md), or "
                "set JAX_PLATFORMS=cpu."
            ) from error
        raise ConfigError(
            f"{' and '.join(f'`{name}` (={os.environ[name]!r})' for name in names)} cannot be used ({reason}). Install JAX for "
            f"this device (see docs/how-to/accelerators.md), or unset {' and '.join(names)} to use what this machine has."
        ) from error
