"""Image rows split over devices: what an operation needs from its neighbours, written out as a halo exchange.

The network runs inside `jax.shard_map` over one mesh axis, and every array [n, h, w, c] in it holds one device's rows. XLA's
own partitioner is not asked to: it gives wrong gradients of convolutions on thin slices (jax 0.10.2, factor 10 where a device
holds one row), and an image whose height does not divide over the devices would have to be split unevenly.

Such an image is padded below until it divides. No operation sees that padding: what lies outside of the image is zero to a
convolution and missing to a maximum, a mean and a loss.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Shaped

from deeplab_jax.runtime.mesh import padded_height


@dataclasses.dataclass(frozen=True)
class Rows:
    """How the rows of an image lie on the devices.

    Attributes:
      axis: name of the mesh axis.
      devices: its size.
      height: rows of the image.
      local: image rows of one device, padding included; strides divide it.
    """

    axis: str
    devices: int
    height: int
    local: int

    def height_of(self, x: Shaped[Array, "n h w c"]) -> int:
        """Rows of these features over all devices, without the padding."""
        return -(-self.height // (self.local // x.shape[1]))

    def of(self, x: Shaped[Array, "n h w c"]) -> "Rows":
        """How the rows of these features lie on the devices."""
        return Rows(self.axis, self.devices, self.height_of(x), x.shape[1])

    def inside(self, x: Shaped[Array, "n h w c"], below: int = 0) -> Bool[Array, "1 h 1 1"]:
        """True for this device's rows that, or for which the row so far `below` them, lie in the image."""
        row = lax.axis_index(self.axis) * x.shape[1] + jnp.arange(x.shape[1]) + below
        return (row < self.height_of(x))[None, :, None, None]

    def fill(self, x: Shaped[Array, "n h w c"], value: float) -> Shaped[Array, "n h w c"]:
        """`x` with `value` in the rows of padding."""
        if self.height_of(x) == self.devices * x.shape[1]:
            return x
        return jnp.where(self.inside(x), x, jnp.asarray(value, x.dtype))

    def with_halo(self, x: Shaped[Array, "n h w c"], above: int, below: int, value: float = 0.0) -> Shaped[Array, "n h2 w c"]:
        """`x` between the `above` rows before it and the `below` rows after it; `value` outside of the image."""
        x = self.fill(x, value)
        before = self._from(x, -1, above, value)
        after = self._from(x, 1, below, value)
        return jnp.concatenate([*before[::-1], x, *after], axis=1)

    def _from(self, x: Array, side: int, count: int, value: float) -> list[Array]:
        """The nearest `count` rows above (side -1) or below (1), nearest device first; a halo may span several devices."""
        parts = []
        for hop in range(1, -(-count // x.shape[1]) + 1):
            wanted = min(count - (hop - 1) * x.shape[1], x.shape[1])
            # Nobody asks a device that holds no row of them: with few devices most of a wide halo lies outside of the image.
            edge = x[:, -wanted:] if side < 0 else x[:, :wanted]
            pairs = [(d + side * hop, d) for d in range(self.devices) if 0 <= d + side * hop < self.devices]
            part = lax.ppermute(edge, self.axis, pairs) if pairs else jnp.zeros_like(edge)
            if value:
                row = lax.axis_index(self.axis) + side * hop
                part = jnp.where((row >= 0) & (row < self.devices), part, jnp.asarray(value, x.dtype))
            parts.append(part)
        return parts

    def gathered(self, x: Float[Array, "... h c"]) -> Float[Array, "... h2 c"]:
        """All rows of the image, on every device."""
        local = x.shape[-2]
        whole = jnp.zeros((*x.shape[:-2], self.devices * local, x.shape[-1]), x.dtype)
        mine = lax.dynamic_update_slice_in_dim(whole, x, lax.axis_index(self.axis) * local, axis=-2)
        # Adding zeros changes no bit; `all_gather` would leave its result marked as each device's own.
        return lax.psum(mine, self.axis)[..., : -(-self.height // (self.local // local)), :]

    def varying(self, x: Array) -> Array:
        """`x`, the same on all devices, as each device's own: its gradient is then summed over them, in float32 at least.

        A sum in bfloat16 would lose digits, and on CPUs XLA aborts over it (jax 0.10.2).
        """
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return lax.pcast(x.astype(wide), self.axis, to="varying").astype(x.dtype)

    def part(self, x: Shaped[Array, "n h w c"], local: int) -> Shaped[Array, "n local w c"]:
        """This device's `local` rows of an array that every device has whole."""
        padding = self.devices * local - x.shape[1]
        x = jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0)))
        return lax.dynamic_slice_in_dim(x, lax.axis_index(self.axis) * local, local, axis=1)

    def resize(self, x: Float[Array, "n h w c"], at: Float[np.ndarray, " height"]) -> Float[Array, "n local w c"]:
        """Features brought to the rows of the image, interpolated linearly.

        Args:
          x: this device's rows of the features.
          at: for every row of the image, where it lies among the rows of the features.
        """
        first = np.arange(self.devices) * x.shape[1]  # of each device's rows of the features
        padded = np.pad(at, (0, self.devices * self.local - self.height), mode="edge").reshape(self.devices, self.local)
        low = np.floor(padded).astype(int)
        high = np.minimum(low + 1, self.height_of(x) - 1)
        above = max(0, int((first - low.min(1)).max()))
        below = max(0, int((high.max(1) - first).max()) - x.shape[1] + 1)
        sources = first[:, None, None] - above + np.arange(above + x.shape[1] + below)
        share = (padded - low)[..., None]
        weights = (sources == low[..., None]) * (1 - share) + (sources == high[..., None]) * share
        mine = jnp.asarray(weights, x.dtype)[lax.axis_index(self.axis)]
        return jnp.einsum("oh,nhwc->nowc", mine, self.with_halo(x, above, below))


def split_rows(mesh: Mesh, height: int, output_stride: int) -> Rows | None:
    """The rows of images of `height` over the mesh's "spatial" axis; None where that is one device."""
    devices = mesh.shape["spatial"]
    if devices == 1:
        return None
    return Rows("spatial", devices, height, padded_height(height, devices, output_stride) // devices)
