"""The device mesh, how arrays lie on it, and how host batches get there."""

import collections
import itertools
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from deeplab_jax.config import MeshConfig
from deeplab_jax.errors import ConfigError


def make_mesh(config: MeshConfig) -> Mesh:
    """A ("data", "spatial") mesh over all devices, or over the first data * spatial of them.

    Raises:
      ConfigError: the mesh needs more devices than there are, or does not divide them.
    """
    devices = jax.devices()
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
    grid = np.asarray(devices[: data * config.spatial]).reshape(data, config.spatial)
    return Mesh(grid, ("data", "spatial"), axis_types=(AxisType.Auto, AxisType.Auto))


def check_batch(batch_size: int, mesh: Mesh, field: str) -> None:
    """Raises ConfigError, naming the nearest sizes that do, if `batch_size` does not divide over the mesh's "data" axis."""
    data = mesh.shape["data"]
    if batch_size % data:
        below, above = batch_size // data * data, -(-batch_size // data) * data
        sizes = f"{below} or {above}" if below else f"{above}"
        raise ConfigError(f"`{field}` (={batch_size}) does not divide over {data} devices: use {sizes}, or another mesh.data")


def check_rows(rows: int, output_stride: int, mesh: Mesh) -> None:
    """Raises ConfigError if crops of `rows` rows cannot be split over the mesh's "spatial" axis.

    Every device must get two rows of the features: with one, XLA's partitioner gives wrong gradients of convolutions
    (jax 0.10.2; forward passes are right).
    """
    spatial = mesh.shape["spatial"]
    if spatial > 1 and (rows % spatial or rows < 2 * output_stride * spatial):
        raise ConfigError(
            f"`data.crop_size` (={rows} rows) cannot be split over mesh.spatial={spatial}: use a multiple of {spatial} from "
            f"{2 * output_stride * spatial} rows, or fewer devices"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device: parameters, statistics, optimizer state."""
    return NamedSharding(mesh, P())


def batch_shardings(mesh: Mesh, batch: Iterable[str]) -> dict[str, NamedSharding]:
    """Rows over "data", image rows over "spatial", for the named entries of a batch."""
    specs = {"image": P("data", "spatial"), "label": P("data", "spatial"), "valid": P("data")}
    return {name: NamedSharding(mesh, specs[name]) for name in batch}


def place(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's rows of a global batch on its devices; "index" stays on the host.

    Image rows that do not divide over "spatial" (whole images of odd height, in evaluation) are not split.
    """
    shardings = batch_shardings(mesh, [name for name in batch if name != "index"])
    if batch["image"].shape[1] % mesh.shape["spatial"]:
        shardings = {name: NamedSharding(mesh, P("data")) for name in shardings}
    return {name: jax.make_array_from_process_local_data(s, batch[name]) for name, s in shardings.items()}


def prefetch(
    batches: Iterable[dict[str, np.ndarray]], mesh: Mesh, ahead: int = 2
) -> Iterator[tuple[dict, dict[str, jax.Array]]]:
    """(host batch, the same on the devices), `ahead` transfers under way while the consumer computes."""
    queue: collections.deque[tuple[dict, dict[str, jax.Array]]] = collections.deque()
    batches = iter(batches)
    for batch in itertools.islice(batches, ahead):
        queue.append((batch, place(batch, mesh)))
    while queue:
        yield queue.popleft()
        for batch in itertools.islice(batches, 1):
            queue.append((batch, place(batch, mesh)))
