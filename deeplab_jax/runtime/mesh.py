"""The device mesh, how arrays lie on it, and how host batches get there."""

import collections
import itertools
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from deeplab_jax.config import MeshConfig
from deeplab_jax.errors import ConfigError
from deeplab_jax.labels import IGNORE

HOST_ONLY = ("index", "fingerprint")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] = ()) -> Mesh:
    """A ("data", "spatial") mesh over all devices, or over the first data * spatial of them.

    Args:
      config: the mesh's axes.
      devices: of all processes; () for those of JAX's default platform.

    Raises:
      ConfigError: the mesh needs more devices than there are, or does not divide them; of several processes, one would be
        left without devices or share an image with another.
    """
    # On a TPU slice devices are numbered across hosts; a process's rows of a batch must lie together.
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    if not config.data and len(devices) % config.spatial:
        raise ConfigError(
            f"`mesh.spatial` (={config.spatial}) does not divide the {len(devices)} devices: use a divisor, or set mesh.data"
        )
    data = config.data or len(devices) // config.spatial
    if data * config.spatial > len(devices):
        raise ConfigError(
            f"`mesh.data` x `mesh.spatial` (={data} x {config.spatial}) needs {data * config.spatial} devices, "
            f"there are {len(devices)}: use fewer, or mesh.data=0 for all"
        )
    if jax.process_count() > 1 and data * config.spatial < len(devices):
        raise ConfigError(
            f"`mesh.data` (={config.data}) leaves out devices of {jax.process_count()} processes: use mesh.data=0 for all"
        )
    local = sum(device.process_index == jax.process_index() for device in devices)
    if local % config.spatial and data * config.spatial > 1:
        raise ConfigError(
            f"`mesh.spatial` (={config.spatial}) does not divide the {local} devices of a process, which "
            f"reads whole images: use a divisor"
        )
    grid = np.asarray(devices[: data * config.spatial]).reshape(data, config.spatial)
    return Mesh(grid, ("data", "spatial"), axis_types=(AxisType.Auto, AxisType.Auto))


def check_batch(batch_size: int, mesh: Mesh, field: str, micro_batches: int = 1) -> None:
    """Raises ConfigError, naming the nearest sizes that do, if a batch does not divide over the mesh's "data" axis.

    Args:
      batch_size: of the global batch.
      mesh: the devices.
      field: of the config, for the message.
      micro_batches: parts that the batch is computed in, each of which must divide.
    """
    data = mesh.shape["data"]
    parts = data * micro_batches
    if batch_size % parts:
        below, above = batch_size // parts * parts, -(-batch_size // parts) * parts
        sizes = f"{below} or {above}" if below else f"{above}"
        times = f" x {micro_batches} micro-batches" if micro_batches > 1 else ""
        raise ConfigError(
            f"`{field}` (={batch_size}) does not divide over {data} devices{times}: use {sizes}, or another mesh.data"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device: parameters, statistics, optimizer state."""
    return NamedSharding(mesh, P())


def batch_shardings(mesh: Mesh, batch: Iterable[str]) -> dict[str, NamedSharding]:
    """Rows over "data", image rows over "spatial", for the named entries of a batch."""
    specs = {"image": P("data", "spatial"), "label": P("data", "spatial"), "valid": P("data"), "photometric": P("data")}
    return {name: NamedSharding(mesh, specs[name]) for name in batch}


def place(batch: dict[str, np.ndarray], mesh: Mesh, row_unit: int) -> dict[str, jax.Array]:
    """Puts this process's rows of a global batch on its devices; what only the host reads (`HOST_ONLY`) stays there.

    Args:
      batch: NumPy arrays.
      mesh: the devices.
      row_unit: image rows are split over "spatial", padded below to a multiple of this on each device: the output stride.
        0 leaves images whole.
    """
    shardings = batch_shardings(mesh, [name for name in batch if name not in HOST_ONLY])
    if not row_unit:
        shardings = {name: NamedSharding(mesh, P("data")) for name in shardings}
    elif mesh.shape["spatial"] > 1:
        batch = batch | {name: _pad_rows(batch[name], mesh, row_unit) for name in ("image", "label") if name in batch}
    return {name: jax.make_array_from_process_local_data(s, batch[name]) for name, s in shardings.items()}


def _pad_rows(x: np.ndarray, mesh: Mesh, row_unit: int) -> np.ndarray:
    """Padding is ignored as a label; no operation sees it of an image."""
    missing = padded_height(x.shape[1], mesh.shape["spatial"], row_unit) - x.shape[1]
    return np.pad(x, ((0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)), constant_values=IGNORE) if missing else x


def padded_height(height: int, devices: int, row_unit: int) -> int:
    """Rows with which an image of `height` gives each device a multiple of `row_unit`."""
    unit = devices * row_unit
    return -(-height // unit) * unit


def local_rows(x: jax.Array) -> np.ndarray:
    """This process's rows of a batch on the devices, whose other axes are not split."""
    shards = {shard.index[0].start or 0: shard for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)])


def prefetch(
    batches: Iterable[dict[str, np.ndarray]], mesh: Mesh, row_unit: int, ahead: int = 2
) -> Iterator[tuple[dict, dict[str, jax.Array]]]:
    """(host batch, the same on the devices), `ahead` transfers under way while the consumer computes; see `place`."""
    queue: collections.deque[tuple[dict, dict[str, jax.Array]]] = collections.deque()
    batches = iter(batches)
    for batch in itertools.islice(batches, ahead):
        queue.append((batch, place(batch, mesh, row_unit)))
    while queue:
        yield queue.popleft()
        for batch in itertools.islice(batches, 1):
            queue.append((batch, place(batch, mesh, row_unit)))
