"""What devices can do: by their data sheets, and measured."""

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

GIB = 2**30
# JAX takes this share of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
GPU_SHARE = 0.75


@dataclasses.dataclass(frozen=True, slots=True)
class Accelerator:
    """A device by its vendor's data sheet; docs/scaling.md names the sources.

    Attributes:
      kinds: regular expression that JAX's `device_kind` of it contains.
      flops: bfloat16 FLOPs a second, accumulated in float32, without sparsity.
      bandwidth: of its memory, bytes a second.
      memory: bytes of it that JAX uses by default.
      link: bytes a second that it sends in a ring of its neighbours, all directions of the ring together; 0 where devices are
        sold without NVLink or an interconnect of their own.
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
    "l4": Accelerator(r"L4$", 121e12, 300e9, GPU_SHARE * 24 * GIB),
    "a10g": Accelerator(r"A10G", 70e12, 600e9, GPU_SHARE * 24 * GIB),
    "v4": Accelerator(r"TPU v4$", 275e12, 1200e9, 32 * GIB, 100e9),
    "v5e": Accelerator(r"TPU v5 ?(e|lite)", 197e12, 819e9, 16 * GIB, 100e9),
    "v5p": Accelerator(r"TPU v5p?$", 459e12, 2765e9, 95 * GIB, 200e9),
    "v6e": Accelerator(r"TPU v6 ?(e|lite)", 918e12, 1640e9, 32 * GIB, 200e9),
}


def peak_rate(kind: str, dtype: str) -> tuple[float, str]:
    """FLOPs a second that this process's first device reaches at best in matrix products, and where that is known from.

    Args:
      kind: its `device_kind`.
      dtype: of the network. Only bfloat16 has a rate in the data sheets that JAX is sure to use.
    """
    for accelerator in ACCELERATORS.values():
        if dtype == "bfloat16" and re.search(accelerator.kinds, kind):
            return accelerator.flops, "its data sheet"
    return matmul_rate(dtype), "measured"


def mesh_peak_rate(mesh: Mesh, dtype: str) -> tuple[float, str]:
    """`peak_rate` of all devices of a mesh together; those of one process are one, where they share its CPU."""
    devices = list(mesh.devices.flat)
    count = len({device.process_index for device in devices}) if devices[0].platform == "cpu" else len(devices)
    rate, source = peak_rate(devices[0].device_kind, dtype)
    return count * rate, source


@functools.cache
def matmul_rate(dtype: str) -> float:
    """FLOPs a second of a large matrix product on this process's first device; takes about half a second."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    multiply = jax.jit(lambda x: x @ x)
    return 2 * size**3 / _seconds(multiply, jnp.full((size, size), 1 / size, dtype))


@functools.cache
def copy_rate() -> float:
    """Bytes a second that this process's first device reads and writes in a large copy; takes about half a second."""
    # In place: of a new array a CPU's memory would first be filled with zeros by the kernel.
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    numbers = jnp.zeros(GIB // 16, jnp.float32)
    size = numbers.nbytes
    return 2 * size / _seconds(add, numbers)


def memory_limit(device: jax.Device) -> float | None:
    """Return the bytes that a program may use on the device (on a CPU, the machine's memory); None if it does not say."""
    if device.platform == "cpu":
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) if hasattr(os, "sysconf") else None
    return (device.memory_stats() or {}).get("bytes_limit")


def _seconds(work: Callable[[jax.Array], jax.Array], x: jax.Array, budget: float = 0.25) -> float:
    """Median time of `work` on an array and then on its own result, warm."""
    x = jax.block_until_ready(work(x))
    times: list[float] = []
    while len(times) < 3 or sum(times) < budget:
        start = time.perf_counter()
        x = jax.block_until_ready(work(x))
        times.append(time.perf_counter() - start)
    return statistics.median(times)
