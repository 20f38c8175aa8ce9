"""Compile a training step for the planned devices, or for CPU devices that stand in for them."""

import contextlib
import dataclasses
import time

import jax
import jax.numpy as jnp

from deeplab_jax.config import MeshConfig
from deeplab_jax.errors import ConfigError
from deeplab_jax.runtime.mesh import batch_shardings, padded_height
from deeplab_jax.train.begin import Setup, abstract_state
from deeplab_jax.train.step import batch_names, compile_train_step


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """XLA's cost and memory analysis for a compiled step, per device.

    Attributes:
      seconds: The time spent tracing and compiling, in seconds.
      flops: The floating-point operations per step. XLA counts a loop body only once, however often it runs.
      accessed: The bytes read and written per step. Here too, XLA counts a loop body only once.
      arguments: The total argument size, in bytes.
      outputs: The total output size, in bytes.
      aliased: The total size of the buffers shared by an argument and an output, in bytes.
      temporaries: The total size of temporary buffers, in bytes.
    """

    seconds: float
    flops: float
    accessed: float
    arguments: int
    outputs: int
    aliased: int
    temporaries: int

    @property
    def peak_bytes(self) -> int:
        """The peak device memory, in bytes."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


def find_devices(mesh: MeshConfig, count: int | None) -> list[jax.Device]:
    """Return the devices to plan for. If this machine has too few, return CPU devices as stand-ins.

    Call this before anything uses JAX's devices, because the number of CPU devices is fixed from then on.

    Args:
      mesh: The config's mesh.
      count: The number of devices. If None, use all of this machine's devices or as many as `mesh` needs, whichever is more.

    Raises:
      ConfigError: `count` is below 1, or JAX has already been initialised with too few devices.
    """
    if count is not None and count < 1:
        raise ConfigError(f"`--devices` (={count}) cannot be used. Use 1 or more.")
    needed = count or max(mesh.data, 1) * mesh.spatial
    if needed > max(jax.config.jax_num_cpu_devices, 1):  # type: ignore[attr-defined]
        with contextlib.suppress(RuntimeError):  # raised if JAX is already initialised
            jax.config.update("jax_num_cpu_devices", needed)
    devices = jax.devices()
    if len(devices) < needed:
        devices = jax.devices("cpu")
    if len(devices) < needed:
        raise ConfigError(
            f"`--devices` (={needed}) cannot be used, because JAX was initialised with {len(devices)} devices. "
            f"Use {len(devices)} or fewer."
        )
    return devices[:count]


def compile_step(setup: Setup) -> Program:
    """Compile the training step for `setup.mesh`, without running it or allocating its device memory."""
    config, mesh = setup.config, setup.mesh
    start = time.perf_counter()
    step = compile_train_step(mesh, config=config, model=setup.model, optimizer=setup.optimizer)
    compiled = step.lower(abstract_state(setup), _abstract_batch(setup)).compile()
    seconds = time.perf_counter() - start
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    return Program(
        seconds=seconds,
        flops=cost.get("flops", float("nan")),
        accessed=cost.get("bytes accessed", float("nan")),
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
    )


def _abstract_batch(setup: Setup) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the batch shapes and shardings that `mesh.place` would produce."""
    config, mesh = setup.config, setup.mesh
    (height, width), size = config.data.crop_size, config.data.batch_size
    if mesh.shape["spatial"] > 1:
        height = padded_height(height, mesh.shape["spatial"], config.model.output_stride)
    shapes = {
        "image": ((size, height, width, 3), jnp.uint8),
        "label": ((size, height, width), jnp.uint8),
        "valid": ((size,), jnp.bool),
        "photometric": ((size, 5), jnp.float32),
    }
    shardings = batch_shardings(mesh, batch_names(config))
    return {name: jax.ShapeDtypeStruct(*shapes[name], sharding=sharding) for name, sharding in shardings.items()}
