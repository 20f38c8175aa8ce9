"""Compile the training and evaluation steps for the planned devices, and read what their programs need."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from deeplab_jax.config import MeshConfig
from deeplab_jax.errors import ConfigError
from deeplab_jax.evaluation.inference import Evaluator, evaluation_model
from deeplab_jax.files import write_atomically
from deeplab_jax.models.cost import layers, total, training_flops
from deeplab_jax.plan.hlo import Traffic, measure_traffic
from deeplab_jax.runtime.compilation import cache_folder
from deeplab_jax.runtime.mesh import batch_shardings, padded_height, split_cpu
from deeplab_jax.training.begin import Setup, abstract_state
from deeplab_jax.training.step import batch_names, compile_train_step

COMPILERS = ("deeplab_jax", "jax", "jaxlib", "libtpu", "jax-cuda12-plugin")


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """What a compiled program needs on each device, according to XLA and to the program's text.

    Attributes:
      seconds: The time spent compiling, in seconds.
      flops: The floating-point operations per step. XLA counts a loop body only once, however often it runs. For GPU
        programs, XLA reports no count, so this is computed from the network's definition.
      arguments: The total argument size, in bytes.
      outputs: The total output size, in bytes.
      aliased: The total size of the buffers shared by an argument and an output, in bytes.
      temporaries: The total size of temporary buffers, in bytes.
      traffic: The data that the program moves between devices, and to and from device memory.
    """

    seconds: float
    flops: float
    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    traffic: Traffic

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
      ConfigError: JAX has already been initialised with too few devices.
    """
    needed = count or max(mesh.data, 1) * mesh.spatial
    split_cpu(needed)
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
    step = compile_train_step(mesh, config=config, model=setup.model, optimizer=setup.optimizer)
    unit = config.model.output_stride
    batch = _abstract_batch(setup, batch_names(config), config.data.batch_size, config.data.crop_size, unit)
    return _compile(step.lower(abstract_state(setup), batch), setup, training_flops(config))


def compile_evaluation(setup: Setup, size: tuple[int, int]) -> Program:
    """Compile the evaluation step for images of (height, width) `size`, like `compile_step`."""
    evaluator, state = Evaluator(setup.config, setup.mesh), abstract_state(setup)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    config = setup.config
    batch = _abstract_batch(setup, ("image", "label", "valid"), config.eval.batch_size, size, evaluator.row_unit)
    network = evaluation_model(config).config
    flops = total(layers(network, config.labels.num_classes, size)).flops * config.eval.batch_size
    return _compile(evaluator.lower(variables, batch, size[0]), setup, flops)


def _compile(lowered: Any, setup: Setup, flops: int) -> Program:
    """Compile a program, or read its figures if it was compiled before. `flops` are those of the global batch."""
    devices = setup.mesh.devices.flat
    versions = {name: _find_version(name) for name in COMPILERS}
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    key = json.dumps([versions, flags, [str(device) for device in devices], devices[0].device_kind, lowered.as_text()])
    with contextlib.suppress(
        OSError, RuntimeError, ValueError, TypeError, KeyError
    ):  # there is no usable file for this program
        path = _cache_file(key)
        stored = json.loads(path.read_text())
        return Program(**stored | {"traffic": Traffic(**stored["traffic"])})
    start = time.perf_counter()
    # With a GPU, XLA measures which matrix products to compute with its own kernels. Without one, its first guess can fail.
    options = {"xla_gpu_enable_triton_gemm": False} if devices[0].platform == "gpu" else {}
    compiled = lowered.compile(compiler_options=options)
    program = _describe(compiled, flops / setup.mesh.size, time.perf_counter() - start)
    with contextlib.suppress(OSError, RuntimeError, ConfigError):  # a cache is not required
        path = _cache_file(key)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with write_atomically(epath.Path(path)) as file:
            file.write(json.dumps(dataclasses.asdict(program)).encode())
    return program


def _find_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cache_file(key: str) -> pathlib.Path:
    return cache_folder().parent.parent / "plan" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def _describe(compiled: Any, flops: float, seconds: float) -> Program:
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    return Program(
        seconds=seconds,
        flops=cost.get("flops") or flops,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        traffic=measure_traffic(compiled.as_text()),
    )


def _abstract_batch(
    setup: Setup, names: tuple[str, ...], batch_size: int, size: tuple[int, int], row_unit: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the batch shapes and shardings that `mesh.place` would produce.

    Args:
      setup: The run's setup.
      names: The names of the batch entries.
      batch_size: The global batch size.
      size: The image height and width.
      row_unit: See `mesh.place`.
    """
    height, width = size
    if setup.mesh.shape["spatial"] > 1 and row_unit:
        height = padded_height(height, setup.mesh.shape["spatial"], row_unit)
    shapes = {
        "image": ((batch_size, height, width, setup.config.model.channels), jnp.uint8),
        "label": ((batch_size, height, width), jnp.uint8),
        "valid": ((batch_size,), jnp.bool),
        "photometric": ((batch_size, 5), jnp.float32),
    }
    shardings = batch_shardings(setup.mesh, names)
    if not row_unit:
        shardings = {name: NamedSharding(setup.mesh, P("data")) for name in names}
    return {name: jax.ShapeDtypeStruct(*shapes[name], sharding=sharding) for name, sharding in shardings.items()}
