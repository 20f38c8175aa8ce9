"""The program of a training step, compiled for the planned devices or for CPU devices that stand in for them."""

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
    """XLA's account of a compiled step, for each device.

    Attributes:
      seconds: that tracing and compiling took.
      flops, accessed: operations, and bytes that they read and write, each instruction once: a loop counts as one pass.
      arguments, outputs, aliased, temporaries: bytes; those aliased are both arguments and outputs.
    """

    seconds: float
    flops: float
    accessed: float
    arguments: int
    outputs: int
    aliased: int
    temporaries: int

    @property
    def held(self) -> int:
        """Peak bytes of a device."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


def find_devices(mesh: MeshConfig, count: int | None) -> list[jax.Device]:
    """Return the devices to plan for: this machine's or, where they are too few, CPU devices that stand in for them.

    Call it before anything asks JAX for devices: how many CPU devices there are is settled then.

    Args:
      mesh: of the config.
      count: how many; None for what `mesh` needs, at least all of this machine.

    Raises:
      ConfigError: `count` is none, or JAX has its devices already, and too few.
    """
    if count is not None and count < 1:
        raise ConfigError(f"`--devices` (={count}) cannot be used: use a number from 1")
    least = count or max(mesh.data, 1) * mesh.spatial
    if least > max(jax.config.jax_num_cpu_devices, 1):  # type: ignore[attr-defined]
        with contextlib.suppress(RuntimeError):  # JAX has its devices already
            jax.config.update("jax_num_cpu_devices", least)
    devices = jax.devices()
    if len(devices) < least:
        devices = jax.devices("cpu")
    if len(devices) < least:
        raise ConfigError(f"`--devices` (={least}) cannot be used: JAX was started with {len(devices)}, use at most those")
    return devices[:count]


def compile_step(setup: Setup) -> Program:
    """Compile the step for the mesh of `setup`; nothing is computed and no memory taken."""
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
    """Return the shapes of a batch as `mesh.place` lays it out."""
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
