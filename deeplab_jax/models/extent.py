"""Image rows split over devices: what each operation needs from its neighbours, written out as a halo exchange.

The network runs inside `jax.shard_map` over one mesh axis, and its arrays [n, h, w, c] hold one device's rows. XLA's own
partitioner is not used: it gives wrong gradients of convolutions on thin slices (jax 0.10.2, factor 10 where a device holds
one row), and an image whose height does not divide over the devices would have to be split unevenly.

Such an image is padded below until it divides. No operation sees that padding: what lies outside of the image is zero to a
convolution and missing to a maximum, a mean and a loss.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Shaped

from deeplab_jax.errors import ConfigError
from deeplab_jax.models import layers
from deeplab_jax.models.convolution import ConvForm, choose_convolution, conv2d, reach_of
from deeplab_jax.models.operations import PIXELWISE
from deeplab_jax.models.resize import resize_bilinear, resize_by_gather, resize_like, sampled_at
from deeplab_jax.runtime.mesh import padded_height


@dataclasses.dataclass(frozen=True)
class Rows:
    """How the rows of an image lie on the devices. It interprets operations (operations.py): they compute as on whole images.

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

    def __call__(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Compute an operation of a network on this device's rows.

        Raises:
          ConfigError: it sees other pixels, and has no form here.
        """
        if operation in PIXELWISE:
            return operation(*args, **kwargs)
        if operation not in _ON_ROWS:
            raise ConfigError(f"`mesh.spatial` (={self.devices}) cannot split the rows of {operation.__name__}: use 1")
        return _ON_ROWS[operation](self, *args, **kwargs)

    def holds_rows(self, x: Array) -> bool:
        """Return whether `x` differs between devices: a value for the whole image, such as a mean, is the same on all."""
        return self.axis in jax.typeof(x).mat.varying

    def height_of(self, x: Shaped[Array, "n h w c"]) -> int:
        """Return the rows of these features over all devices, without the padding."""
        return -(-self.height // (self.local // x.shape[1]))

    def at_stride_of(self, x: Shaped[Array, "n h w c"]) -> "Rows":
        """Return how the rows of these features lie on the devices."""
        return Rows(self.axis, self.devices, self.height_of(x), x.shape[1])

    def inside(self, x: Shaped[Array, "n h w c"], below: int = 0) -> Bool[Array, "1 h 1 1"]:
        """Return True where the local row, or the row `below` it, is inside the image."""
        row = lax.axis_index(self.axis) * x.shape[1] + jnp.arange(x.shape[1]) + below
        return (row < self.height_of(x))[None, :, None, None]

    def fill(self, x: Shaped[Array, "n h w c"], value: float) -> Shaped[Array, "n h w c"]:
        """Return `x` with `value` in the rows of padding."""
        if self.height_of(x) == self.devices * x.shape[1]:
            return x
        return jnp.where(self.inside(x), x, jnp.asarray(value, x.dtype))

    def with_halo(self, x: Shaped[Array, "n h w c"], above: int, below: int, value: float = 0.0) -> Shaped[Array, "n h2 w c"]:
        """Return `x` between the `above` rows before it and the `below` rows after it; `value` outside of the image."""
        x = self.fill(x, value)
        before = self._neighbours(x, -1, above, value)
        after = self._neighbours(x, 1, below, value)
        return jnp.concatenate([*before[::-1], x, *after], axis=1)

    def _neighbours(self, x: Array, side: int, count: int, value: float) -> list[Array]:
        """Return the nearest `count` rows above (side -1) or below (1), nearest device first: a halo may span several."""
        parts = []
        for hop in range(1, -(-count // x.shape[1]) + 1):
            wanted = min(count - (hop - 1) * x.shape[1], x.shape[1])
            # Devices that hold none of these rows are skipped: with few devices most of a wide halo lies outside of the image.
            edge = x[:, -wanted:] if side < 0 else x[:, :wanted]
            pairs = [(d + side * hop, d) for d in range(self.devices) if 0 <= d + side * hop < self.devices]
            part = lax.ppermute(edge, self.axis, pairs) if pairs else jnp.zeros_like(edge)
            if value:
                row = lax.axis_index(self.axis) + side * hop
                part = jnp.where((row >= 0) & (row < self.devices), part, jnp.asarray(value, x.dtype))
            parts.append(part)
        return parts

    def gather(self, x: Float[Array, "... h c"]) -> Float[Array, "... h2 c"]:
        """Return all rows of the image, on every device."""
        local = x.shape[-2]
        whole = jnp.zeros((*x.shape[:-2], self.devices * local, x.shape[-1]), x.dtype)
        mine = lax.dynamic_update_slice_in_dim(whole, x, lax.axis_index(self.axis) * local, axis=-2)
        # Adding zeros changes no bit; `all_gather` would leave its result marked as each device's own.
        return lax.psum(mine, self.axis)[..., : -(-self.height // (self.local // local)), :]

    def as_own(self, x: Array) -> Array:
        """Mark `x`, the same on all devices, as each device's own: its gradient is then summed over them in float32 at least.

        A sum in bfloat16 would lose digits, and on CPUs XLA aborts over it (jax 0.10.2).
        """
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return lax.pcast(x.astype(wide), self.axis, to="varying").astype(x.dtype)

    def part(self, x: Shaped[Array, "n h w c"], local: int) -> Shaped[Array, "n local w c"]:
        """Return this device's `local` rows of an array that every device has whole."""
        padding = self.devices * local - x.shape[1]
        x = jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0)))
        return lax.dynamic_slice_in_dim(x, lax.axis_index(self.axis) * local, local, axis=1)

    def interpolate(self, x: Float[Array, "n h w c"], at: Float[np.ndarray, " height"]) -> Float[Array, "n local w c"]:
        """Bring features to the rows of the image, interpolated linearly.

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
    """Return the rows of images of `height` over the mesh's "spatial" axis; None where that is one device."""
    devices = mesh.shape["spatial"]
    if devices == 1:
        return None
    return Rows("spatial", devices, height, padded_height(height, devices, output_stride) // devices)


# The operations that see other pixels, or values of the whole image, on one device's rows.


def _conv2d(rows: Rows, x: Array, kernel: Array, *, stride: int = 1, rate: int = 1, form: ConvForm = "auto") -> Array:
    if not rows.holds_rows(x):
        return conv2d(x, kernel, stride=stride, rate=rate, form=form)
    convolve, reach = choose_convolution(kernel.shape, x.shape, x.dtype, stride, rate, form), reach_of(kernel.shape, rate)
    # Before the cast: so the devices' gradients are added up in the kernel's own precision.
    kernel = rows.as_own(kernel).astype(x.dtype)
    if reach == 0:
        return convolve(x, kernel, stride, rate, 0)

    # Exchanged again in the backward pass: kept, the rows with their halo would be a second copy of every input.
    @jax.checkpoint
    def with_halo(x: Array, kernel: Array) -> Array:
        return convolve(rows.with_halo(x, reach, max(reach - stride + 1, 0)), kernel, stride, rate, 0)

    return with_halo(x, kernel)


def _batch_moments(rows: Rows, x: Array) -> tuple[Array, Array, int]:
    if not rows.holds_rows(x):
        return layers.batch_moments(x)
    return layers.moments(x, lambda x: rows.gather(jnp.mean(x, 2)), x.shape[0] * rows.height_of(x) * x.shape[2])


def _image_mean(rows: Rows, x: Array) -> Array:
    means = rows.gather(jnp.mean(x.astype(layers.at_least_float32(x.dtype)), 2))
    return jnp.mean(means, 1)[:, None, None]


def _drop(rows: Rows, x: Array, key: Array, rate: float) -> Array:
    kept = jax.random.bernoulli(key, 1 - rate, (x.shape[0], rows.height_of(x), *x.shape[2:]))
    return layers.keep(x, rows.part(kept, x.shape[1]), rate)


def _average_pool_2x2(rows: Rows, x: Array, *, stride: int, rate: int = 1) -> Array:
    x = layers.average_pairs(x, rows.with_halo(x, 0, rate), rows.inside(x, rate), stride, rate, axis=1)
    return layers.average_pairs(x, *layers.beyond_the_end(x, rate, axis=2), stride, rate, axis=2)


def _max_pool_3x3(rows: Rows, x: Array) -> Array:
    x = layers.max_of_three(layers.pad_with_infinity(x, axis=2), -(-x.shape[2] // 2), axis=2)
    x = layers.max_of_three(rows.with_halo(x, 1, 0, -jnp.inf), -(-x.shape[1] // 2), axis=1)
    # Infinities in the padding would make its zero gradient nan.
    return rows.fill(x, 0.0)


def _resize_like(rows: Rows, x: Array, like: Array, *, align_corners: bool = False, by_gather: bool = False) -> Array:
    own = rows.at_stride_of(like)
    x = own.interpolate(x, sampled_at(own.height_of(x), own.height, align_corners))
    resize = resize_by_gather if by_gather else resize_bilinear
    return resize(x, x.shape[1], like.shape[2], align_corners=align_corners)


def _scale_channels(rows: Rows, x: Array, scale: Array) -> Array:
    return layers.scale_channels(x, rows.as_own(scale))


def _broadcast_like(rows: Rows, x: Array, like: Array) -> Array:
    return layers.broadcast_like(rows.as_own(x), like)


_ON_ROWS: dict[Callable[..., Any], Callable[..., Any]] = {
    conv2d: _conv2d,
    layers.batch_moments: _batch_moments,
    layers.image_mean: _image_mean,
    layers.drop: _drop,
    layers.average_pool_2x2: _average_pool_2x2,
    layers.max_pool_3x3: _max_pool_3x3,
    resize_like: _resize_like,
    layers.scale_channels: _scale_channels,
    layers.broadcast_like: _broadcast_like,
}
