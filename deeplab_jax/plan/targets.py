"""Describe accelerators to their compilers, which can then compile programs for them on any machine.

XLA's compiler for TPUs is in the package `libtpu`, and the one for NVIDIA GPUs is in `jax-cuda12-plugin`.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from deeplab_jax.errors import ConfigError, one_line
from deeplab_jax.runtime.accelerators import ACCELERATORS


@dataclasses.dataclass(frozen=True, slots=True)
class Gpu:
    """The figures of a GPU that XLA's compiler uses. They come from the vendor's data sheets and CUDA's device queries.

    Attributes:
      description: The GPU's name, as CUDA reports it.
      capability: The (major, minor) compute capability.
      cores: The number of streaming multiprocessors (SMs).
      float32_units: The number of float32 units in each SM.
      shared_memory: The shared memory of each SM, in KiB. A block can use all of it but 1 KiB.
      cache: The L2 cache, in MiB.
      clock: The boost clock, in GHz.
      memory: The device memory, in bytes.
    """

    description: str
    capability: tuple[int, int]
    cores: int
    float32_units: int
    shared_memory: int
    cache: float
    clock: float
    memory: float


GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 164, 40, 1.41, 80 * 2**30),
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 228, 50, 1.98, 80 * 2**30),
    "h200": Gpu("NVIDIA H200", (9, 0), 132, 128, 228, 50, 1.98, 141e9),
    "b200": Gpu("NVIDIA B200", (10, 0), 148, 128, 228, 126.5, 1.965, 180e9),
}
# The number of topology axes. A TPU v4 is missing, because libtpu describes each of its chips as two devices, whereas JAX uses
# it as one.
TPUS = {"v5e": 2, "v5p": 3, "v6e": 2}


def describe_devices(accelerator: str, count: int | None, topology: str) -> Sequence[jax.Device]:
    """Return devices that programs can be compiled for, but cannot run on.

    Args:
      accelerator: A key in `ACCELERATORS`.
      count: The number of devices. If None, it follows from `topology`, or is 1.
      topology: The arrangement of TPU chips, such as "4x4" or "2x2x4". If "", it follows from `count`.

    Raises:
      ConfigError: The accelerator's compiler is not installed, or the arguments do not describe any machine.
    """
    if accelerator in GPUS:
        if topology:
            raise ConfigError(f"`--topology` (={topology!r}) is only for TPUs. Set --devices for GPUs.")
        _require(("jax_cuda12_plugin", "jax_cuda13_plugin"), accelerator, "plan-gpu")
        devices: Sequence[jax.Device] = topologies.get_topology_desc(
            platform="cuda", target_config=_gpu_target(accelerator), topology=f"1x1x{count or 1}"
        ).devices
    elif accelerator in TPUS:
        _require(("libtpu",), accelerator, "plan-tpu")
        devices = _describe_tpus(accelerator, _choose_topology(accelerator, count, topology))
    else:
        raise ConfigError(
            f"`--accelerator` (={accelerator!r}) is not supported by the compilers, only {', '.join([*GPUS, *TPUS])}. Add "
            "--no-compile to plan without them."
        )
    if count and len(devices) != count:
        raise ConfigError(f"`--devices` (={count}) and `--topology` (={topology!r}, {len(devices)} devices) differ. Give one.")
    return devices


def _require(packages: tuple[str, ...], accelerator: str, extra: str) -> None:
    if not any(map(importlib.util.find_spec, packages)):
        raise ConfigError(
            f"`--accelerator` (={accelerator!r}) needs a compiler that is not installed. Install it with "
            f'`pip install -e ".[{extra}]"`, or add --no-compile to plan without it.'
        )


def _gpu_target(accelerator: str) -> str:
    """Return the GPU's description in the text format of XLA's GpuTargetConfigProto."""
    gpu = GPUS[accelerator]
    info = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 * 1024,
        "shared_memory_per_block_optin": (gpu.shared_memory - 1) * 1024,
        "shared_memory_per_core": gpu.shared_memory * 1024,
        "threads_per_core_limit": 2048,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        "core_count": gpu.cores,
        "fpus_per_core": gpu.float32_units,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": int(ACCELERATORS[accelerator].bandwidth),
        "l2_cache_size": int(gpu.cache * 2**20),
        "clock_rate_ghz": gpu.clock,
        "device_memory_size": int(gpu.memory),
    }
    lines = [f"  {name}: {value}" for name, value in info.items()]
    major, minor = gpu.capability
    lines.append(f"  cuda_compute_capability {{ major: {major} minor: {minor} }}")
    return (
        "gpu_device_info {\n" + "\n".join(lines) + '\n}\nplatform_name: "CUDA"\n'
        "dnn_version_info { major: 9 minor: 8 }\nruntime_version { major: 12 minor: 8 patch: 0 }\n"
        f'device_description_str: "{gpu.description}"\n'
    )


def _choose_topology(accelerator: str, count: int | None, topology: str) -> str:
    """Return the chips per axis, such as "2x4". Without a topology, arrange the chips as evenly as possible."""
    axes = TPUS[accelerator]
    if topology:
        if not re.fullmatch(r"[1-9]\d*" + r"x[1-9]\d*" * (axes - 1), topology):
            example = "x".join(["4"] * axes)
            raise ConfigError(f"`--topology` (={topology!r}) cannot be used for {accelerator}. Use for example {example}.")
        return topology
    sizes, left = [], count or 1
    for axis in range(axes, 0, -1):
        size = next(size for size in range(round(left ** (1 / axis)), 0, -1) if left % size == 0)
        sizes.append(size)
        left //= size
    return "x".join(map(str, sizes))


def count_chips(accelerator: str, topology: str) -> int:
    """Return the number of TPU chips in a topology.

    Raises:
      ConfigError: The accelerator is not a TPU, or the topology is not one of its topologies.
    """
    if accelerator not in TPUS:
        raise ConfigError(f"`--topology` (={topology!r}) is only for --accelerator {', '.join(TPUS)}.")
    return math.prod(map(int, _choose_topology(accelerator, None, topology).split("x")))


def _describe_tpus(accelerator: str, topology: str) -> Sequence[jax.Device]:
    # Otherwise libtpu looks for the TPUs of this machine, and accepts only one process at a time.
    quiet = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    sizes = [int(size) for size in topology.split("x")]
    # A host has four chips, in a square, unless there are fewer.
    host = (math.gcd(sizes[0], 2), math.gcd(sizes[1], 2), 1)
    try:
        return topologies.get_topology_desc(f"{accelerator}:{topology}", "tpu", chips_per_host_bounds=host).devices
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(
            f"`--topology` (={topology!r}) cannot be used for {accelerator} ({one_line(error)}). Use the size of a real slice."
        ) from None
