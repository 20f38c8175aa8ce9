"""Build the device mesh, define array shardings, and copy batches from the host to the devices."""

import collections
import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from deeplab_jax.config import MeshConfig
from deeplab_jax.errors import ConfigError
from deeplab_jax.labels import IGNORE
from deeplab_jax.runtime.machine import runs_on_cpu, usable_cores

HOST_ONLY = ("index", "fingerprint")  # batch entries that stay on the host


def split_cpu_for(config: MeshConfig) -> None:
    """Let JAX divide the CPU into as many devices as the mesh needs, if it runs on the CPU and there are as many cores.

    With small layers, one device does not keep several cores busy. If a plugin fails to load and JAX falls back to the CPU, the
    CPU is not divided, because a mesh for accelerators must not go unnoticed there.
    """
    devices = config.data * config.spatial
    is_set_by_user = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if devices <= usable_cores() and not is_set_by_user and runs_on_cpu(jax.config.jax_platforms):  # type: ignore[attr-defined, unused-ignore]
        split_cpu(devices)


def split_cpu(devices: int) -> None:
    """Let JAX divide the CPU into `devices` devices. This does nothing if JAX has been initialised or has as many."""
    if devices > max(jax.config.jax_num_cpu_devices, 1):  # type: ignore[attr-defined, unused-ignore]
        with contextlib.suppress(RuntimeError):  # raised if JAX is already initialised
            jax.config.update("jax_num_cpu_devices", devices)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] = ()) -> Mesh:
    """Return a ("data", "spatial") mesh over all devices, or over the first data * spatial devices if `config.data` is set.

    Args:
      config: The size of each axis.
      devices: The devices of all processes. If empty, use those on JAX's default platform.

    Raises:
      ConfigError: The mesh needs more devices than there are, or `config.spatial` does not divide the device count. In a
        multi-process run, this is also raised if devices would be left unused or two processes would share an image.
    """
    # Sort by process, because each process's batch rows must be contiguous, but TPU slices interleave device ids across hosts.
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    if not config.data and len(devices) % config.spatial:
        raise ConfigError(
            f"`mesh.spatial` (={config.spatial}) is not a divisor of the number of devices ({len(devices)}). "
            "Use a divisor, or set mesh.data."
        )
    data = config.data or len(devices) // config.spatial
    if data * config.spatial > len(devices):
        raise ConfigError(
            f"`mesh.data` x `mesh.spatial` (={data} x {config.spatial}) needs {data * config.spatial} devices, "
            f"but the number of devices is {len(devices)}. Use fewer, or set mesh.data=0 to use all devices."
        )
    if jax.process_count() > 1 and data * config.spatial < len(devices):
        raise ConfigError(
            f"`mesh.data` (={config.data}) does not use all devices of the {jax.process_count()} processes. "
            "Set mesh.data=0 to use all devices."
        )
    local = sum(device.process_index == jax.process_index() for device in devices)
    if jax.process_count() > 1 and local % config.spatial:
        raise ConfigError(
            f"`mesh.spatial` (={config.spatial}) is not a divisor of the number of devices per process ({local}), so "
            "two processes would share an image. Use a divisor."
        )
    grid = np.asarray(devices[: data * config.spatial]).reshape(data, config.spatial)
    return Mesh(grid, ("data", "spatial"), axis_types=(AxisType.Auto, AxisType.Auto))


def check_batch(batch_size: int, mesh: Mesh, field: str, micro_batches: int = 1) -> None:
    """Check that a batch can be split evenly over the mesh's "data" axis.

    Args:
      batch_size: The global batch size.
      mesh: The device mesh.
      field: The name of the batch size field in the config, for the error message.
      micro_batches: The number of micro-batches. Each one must also split evenly.

    Raises:
      ConfigError: The batch cannot be split evenly. The message suggests the nearest valid sizes.
    """
    data = mesh.shape["data"]
    parts = data * micro_batches
    if batch_size % parts:
        smallest = (2 if micro_batches > 1 else 1) * micro_batches  # BatchNorm needs two images in each micro-batch
        below = batch_size // parts * parts
        above = -(-max(batch_size, smallest) // parts) * parts
        sizes = f"{below} or {above}" if below >= smallest else f"{above}"
        times = f" x {micro_batches} micro-batches" if micro_batches > 1 else ""
        devices = f"{data} device{'s' * (data > 1)}"
        raise ConfigError(
            f"`{field}` (={batch_size}) cannot be split evenly over {devices}{times}. Use {sizes}, or change mesh.data."
        )


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding for arrays replicated on every device, such as parameters and optimizer state."""
    return NamedSharding(mesh, P())


def batch_shardings(mesh: Mesh, batch: Iterable[str]) -> dict[str, NamedSharding]:
    """Return a dict that maps each entry name in `batch` to its sharding.

    The batch dimension is split over the "data" axis. Image and label rows are split over the "spatial" axis.
    """
    specs = {
        "image": P("data", "spatial"),
        "label": P("data", "spatial"),
        "valid": P("data"),
        "size": P("data"),
        "photometric": P("data"),
    }
    return {name: NamedSharding(mesh, specs[name]) for name in batch}


def place(batch: dict[str, np.ndarray], mesh: Mesh, row_unit: int) -> dict[str, jax.Array]:
    """Copy this process's part of a global batch to its devices, except for the `HOST_ONLY` entries.

    Args:
      batch: This process's batch entries, as NumPy arrays.
      mesh: The device mesh.
      row_unit: The network's output stride. Image and label rows are split over the "spatial" axis, and padded at the bottom
        so that each device gets a multiple of `row_unit` rows. If 0, the rows are not split.
    """
    shardings = batch_shardings(mesh, [name for name in batch if name not in HOST_ONLY])
    if not row_unit:
        shardings = {name: NamedSharding(mesh, P("data")) for name in shardings}
    elif mesh.shape["spatial"] > 1:
        batch = batch | {name: _pad_rows(batch[name], mesh, row_unit) for name in ("image", "label") if name in batch}
    return {name: jax.make_array_from_process_local_data(s, batch[name]) for name, s in shardings.items()}


def _pad_rows(x: np.ndarray, mesh: Mesh, row_unit: int) -> np.ndarray:
    """Pad images or labels at the bottom. Labels are padded with the ignore label. The padded image rows are never read."""
    missing = padded_height(x.shape[1], mesh.shape["spatial"], row_unit) - x.shape[1]
    return np.pad(x, ((0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)), constant_values=IGNORE) if missing else x


def padded_height(height: int, devices: int, row_unit: int) -> int:
    """Round `height` up so that each device gets a multiple of `row_unit` rows."""
    unit = devices * row_unit
    return -(-height // unit) * unit


def local_rows(x: jax.Array) -> np.ndarray:
    """Copy this process's rows of a sharded array to the host. Only the first axis of `x` can be sharded."""
    shards = {shard.index[0].start or 0: shard for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)])


def prefetch(
    batches: Iterable[dict[str, np.ndarray]], mesh: Mesh, row_unit: int, ahead: int = 2
) -> Iterator[tuple[dict, dict[str, jax.Array]]]:
    """Yield batches while the next ones are being copied to the devices.

    Args:
      batches: This process's batches, on the host.
      mesh: The device mesh.
      row_unit: See `place`.
      ahead: The number of batches to copy to the devices before yielding the first one.

    Yields:
      Pairs of a host batch and the same batch on the devices.
    """
    queue: collections.deque[tuple[dict, dict[str, jax.Array]]] = collections.deque()
    batches = iter(batches)
    for batch in itertools.islice(batches, ahead):
        queue.append((batch, place(batch, mesh, row_unit)))
    while queue:
        yield queue.popleft()
        for batch in itertools.islice(batches, 1):
            queue.append((batch, place(batch, mesh, row_unit)))
