"""Distribute image rows over the devices of a mesh. `extent.py` says how the network computes on them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from deeplab_jax.models.extent import Extent
from deeplab_jax.runtime.mesh import padded_height


def split_rows(mesh: Mesh, height: int, output_stride: int, margin: int = 0) -> Extent | None:
    """Return the distribution of image rows over the mesh's "spatial" axis, or None if that axis has only one device.

    Args:
      mesh: The device mesh.
      height: The number of image rows.
      output_stride: The network's output stride. The number of rows per device is padded to a multiple of it.
      margin: The backbone's margin.
    """
    devices = mesh.shape["spatial"]
    if devices == 1:
        return None
    return Extent("spatial", devices, height, padded_height(height, devices, output_stride) // devices, margin=margin)


def compute_on_rows(
    function: Callable[..., Any], mesh: Mesh, rows: Extent, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """Return `function(*args, rows=rows)`, in which each device computes on its own rows.

    Args:
      function: The function. Its `rows` know the device.
      mesh: The device mesh.
      rows: The distribution of the rows, from `split_rows`.
      in_specs, out_specs: How each argument and result is split over `rows.axis`; see `jax.shard_map`.
    """

    def compute(device: Int[Array, " 1"], *args: Any) -> Any:
        return function(*args, rows=dataclasses.replace(rows, device=device[0]))

    specs = {"in_specs": (P(rows.axis), *in_specs), "out_specs": out_specs, "axis_names": {rows.axis}}
    # With `lax.axis_index` on a mesh that also splits the batch, XLA refuses to compile some networks (jax 0.10.2).
    return functools.partial(jax.shard_map(compute, mesh=mesh, **specs), jnp.arange(rows.devices, dtype=jnp.int32))
