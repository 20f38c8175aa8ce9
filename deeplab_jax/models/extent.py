"""Spatial partitioning: an image's rows are split over devices, which exchange halos with their neighbours.

The network runs inside `jax.shard_map` over one mesh axis, and its arrays [n, h, w, c] hold one device's rows. XLA's own
partitioner is not used, for two reasons. With thin slices, it computes wrong convolution gradients (jax 0.10.2; off by a factor
of 10 if each device holds one row). It would also have to split an image unevenly whenever the height is not a multiple of the
number of devices.

Here, images are instead padded at the bottom so that every device gets the same number of rows. The padding has no effect on
any operation: convolutions treat rows outside the image as zeros, while maxima, means and losses ignore them.
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
from deeplab_jax.models.convolution import ConvForm, choose_convolution, conv2d, kernel_radius
from deeplab_jax.models.operations import PIXELWISE, AnyArray
from deeplab_jax.models.resize import compute_sample_positions, resize_bilinear, resize_by_gather, resize_like
from deeplab_jax.runtime.mesh import padded_height


@dataclasses.dataclass(frozen=True)
class Rows:
    """The distribution of image rows over devices.

    An instance is also an interpreter (see operations.py) that computes on split rows. Under this interpreter, operations
    return the same values as on full images.

    Attributes:
      axis: The mesh axis name.
      devices: The number of devices along the axis.
      height: The number of image rows, without padding.
      local: The number of image rows per device, including padding. It is divisible by the network's strides.
    """

    axis: str
    devices: int
    height: int
    local: int

    def __call__(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Apply an operation to this device's rows.

        Raises:
          ConfigError: The operation is not pixelwise and has no implementation for rows split over devices.
        """
        if operation in PIXELWISE:
            return operation(*args, **kwargs)
        if operation not in _ON_ROWS:
            raise ConfigError(
                f"`mesh.spatial` (={self.devices}) cannot split image rows because the operation {operation.__name__} does not "
                "support it. Set --config.mesh.spatial=1."
            )
        return _ON_ROWS[operation](self, *args, **kwargs)

    def is_split(self, x: Array) -> bool:
        """Return whether `x` is split over devices. If not, `x` is the same on all devices, like an image mean."""
        return self.axis in jax.typeof(x).mat.varying

    def get_height(self, x: Shaped[Array, "n h w c"]) -> int:
        """Return the total height of the features `x` across all devices, without padding."""
        return -(-self.height // (self.local // x.shape[1]))

    def scale_to(self, x: Shaped[Array, "n h w c"]) -> "Rows":
        """Return the row distribution at the resolution of the features `x`."""
        return Rows(self.axis, self.devices, self.get_height(x), x.shape[1])

    def is_inside(self, x: Shaped[Array, "n h w c"], below: int = 0) -> Bool[Array, "1 h 1 1"]:
        """Return a mask over the local rows that is True where the row `below` rows further down is inside the image.

        Args:
          x: This device's rows.
          below: The distance to the row to test, or 0 to test the row itself.
        """
        row = lax.axis_index(self.axis) * x.shape[1] + jnp.arange(x.shape[1]) + below
        return (row < self.get_height(x))[None, :, None, None]

    def fill(self, x: Shaped[Array, "n h w c"], value: float) -> Shaped[Array, "n h w c"]:
        """Return `x` with its padding rows set to `value`."""
        if self.get_height(x) == self.devices * x.shape[1]:
            return x
        return jnp.where(self.is_inside(x), x, jnp.asarray(value, x.dtype))

    def add_halo(self, x: Shaped[Array, "n h w c"], above: int, below: int, value: float = 0.0) -> Shaped[Array, "n h2 w c"]:
        """Return `x` with `above` more rows at the top and `below` more rows at the bottom.

        The rows come from neighbouring devices. Rows outside the image are set to `value`.
        """
        x = self.fill(x, value)
        before = self._receive_rows(x, -1, above, value)
        after = self._receive_rows(x, 1, below, value)
        return jnp.concatenate([*before[::-1], x, *after], axis=1)

    def _receive_rows(self, x: Array, side: int, count: int, value: float) -> list[Array]:
        """Return the nearest `count` rows above (side -1) or below (side 1) this device's rows.

        A halo can span several devices, so the list has one array per device, nearest device first.
        """
        parts = []
        for hop in range(1, -(-count // x.shape[1]) + 1):
            size = min(count - (hop - 1) * x.shape[1], x.shape[1])
            edge = x[:, -size:] if side < 0 else x[:, :size]
            # If every row at this distance is outside the image, `pairs` is empty and there is nothing to exchange.
            pairs = [(d + side * hop, d) for d in range(self.devices) if 0 <= d + side * hop < self.devices]
            part = lax.ppermute(edge, self.axis, pairs) if pairs else jnp.zeros_like(edge)
            if value:
                row = lax.axis_index(self.axis) + side * hop
                part = jnp.where((row >= 0) & (row < self.devices), part, jnp.asarray(value, x.dtype))
            parts.append(part)
        return parts

    def gather(self, x: Float[Array, "... h c"]) -> Float[Array, "... h2 c"]:
        """Gather the rows from all devices onto every device, and drop the padding."""
        local = x.shape[-2]
        zeros = jnp.zeros((*x.shape[:-2], self.devices * local, x.shape[-1]), x.dtype)
        own_rows = lax.dynamic_update_slice_in_dim(zeros, x, lax.axis_index(self.axis) * local, axis=-2)
        # The sum is exact because it only adds zeros. `all_gather` cannot be used, because JAX marks its result as varying
        # over devices.
        return lax.psum(own_rows, self.axis)[..., : -(-self.height // (self.local // local)), :]

    def mark_varying(self, x: Array) -> Array:
        """Return the replicated array `x`, marked as varying over devices.

        The gradient of `x` is then summed over the devices in float32 or wider. A bfloat16 sum would lose precision, and on
        CPUs it makes XLA abort (jax 0.10.2).
        """
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return lax.pcast(x.astype(wide), self.axis, to="varying").astype(x.dtype)

    def take_local(self, x: Shaped[Array, "n h w c"], local: int) -> Shaped[Array, "n local w c"]:
        """Return this device's `local` rows from an array that is replicated on all devices."""
        padding = self.devices * local - x.shape[1]
        x = jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0)))
        return lax.dynamic_slice_in_dim(x, lax.axis_index(self.axis) * local, local, axis=1)

    def interpolate(self, x: Float[Array, "n h w c"], positions: Float[np.ndarray, " height"]) -> Float[Array, "n local w c"]:
        """Return features linearly interpolated to the image rows.

        Args:
          x: This device's rows of the features.
          positions: The position of every image row, in units of feature row indices.
        """
        first = np.arange(self.devices) * x.shape[1]  # each device's first feature row
        padding = self.devices * self.local - self.height
        padded = np.pad(positions, (0, padding), mode="edge").reshape(self.devices, self.local)
        low = np.floor(padded).astype(int)
        high = np.minimum(low + 1, self.get_height(x) - 1)
        above = max(0, int((first - low.min(1)).max()))
        below = max(0, int((high.max(1) - first).max()) - x.shape[1] + 1)
        sources = first[:, None, None] - above + np.arange(above + x.shape[1] + below)
        fraction = (padded - low)[..., None]
        weights = (sources == low[..., None]) * (1 - fraction) + (sources == high[..., None]) * fraction
        own_weights = jnp.asarray(weights, x.dtype)[lax.axis_index(self.axis)]
        return jnp.einsum("oh,nhwc->nowc", own_weights, self.add_halo(x, above, below))


def split_rows(mesh: Mesh, height: int, output_stride: int) -> Rows | None:
    """Return the distribution of image rows over the mesh's "spatial" axis, or None if that axis has only one device.

    Args:
      mesh: The device mesh.
      height: The number of image rows.
      output_stride: The network's output stride. The number of rows per device is padded to a multiple of it.
    """
    devices = mesh.shape["spatial"]
    if devices == 1:
        return None
    return Rows("spatial", devices, height, padded_height(height, devices, output_stride) // devices)


# The functions below implement the non-pixelwise operations on one device's rows.


def _conv2d(rows: Rows, x: Array, kernel: Array, *, stride: int = 1, rate: int = 1, form: ConvForm = "auto") -> Array:
    if not rows.is_split(x):
        return conv2d(x, kernel, stride=stride, rate=rate, form=form)
    convolve, radius = choose_convolution(kernel.shape, x.shape, x.dtype, stride, rate, form), kernel_radius(kernel.shape, rate)
    # The kernel is marked as varying before the cast, so its gradients are summed over the devices in the kernel's own
    # precision.
    kernel = rows.mark_varying(kernel).astype(x.dtype)
    if radius == 0:
        return convolve(x, kernel, stride, rate, 0)

    # The backward pass exchanges the halo again, because storing it would keep a second copy of every input.
    @jax.checkpoint
    def convolve_with_halo(x: Array, kernel: Array) -> Array:
        return convolve(rows.add_halo(x, radius, max(radius - stride + 1, 0)), kernel, stride, rate, 0)

    return convolve_with_halo(x, kernel)


def _batch_moments(rows: Rows, x: Array, expected_mean: AnyArray) -> tuple[Array, Array, int]:
    if not rows.is_split(x):
        return layers.batch_moments(x, expected_mean)

    def pixel_mean(x: Array) -> Array:
        return jnp.mean(rows.gather(jnp.mean(x, 2)), (0, 1))

    return layers.moments(x, expected_mean, x.shape[0] * rows.get_height(x) * x.shape[2], pixel_mean)


def _image_mean(rows: Rows, x: Array) -> Array:
    means = rows.gather(jnp.mean(x.astype(layers.at_least_float32(x.dtype)), 2))
    return jnp.mean(means, 1)[:, None, None]


def _drop(rows: Rows, x: Array, key: Array, rate: float) -> Array:
    # Every device draws the dropout mask for the full image, so the dropped values do not depend on the number of devices.
    kept = jax.random.bernoulli(key, 1 - rate, (x.shape[0], rows.get_height(x), *x.shape[2:]))
    return layers.apply_dropout_mask(x, rows.take_local(kept, x.shape[1]), rate)


def _average_pool_2x2(rows: Rows, x: Array, *, stride: int, rate: int = 1) -> Array:
    x = layers.average_pairs(x, rows.add_halo(x, 0, rate), rows.is_inside(x, rate), stride, rate, axis=1)
    return layers.average_pairs(x, *layers.pad_end(x, rate, axis=2), stride, rate, axis=2)


def _max_pool_3x3(rows: Rows, x: Array) -> Array:
    x = layers.max_of_three(layers.pad_with_infinity(x, axis=2), -(-x.shape[2] // 2), axis=2)
    x = layers.max_of_three(rows.add_halo(x, 1, 0, -jnp.inf), -(-x.shape[1] // 2), axis=1)
    # Infinities in the padding would turn zero gradients there into NaN.
    return rows.fill(x, 0.0)


def _resize_like(rows: Rows, x: Array, like: Array, *, align_corners: bool = False, by_gather: bool = False) -> Array:
    like_rows = rows.scale_to(like)
    x = like_rows.interpolate(x, compute_sample_positions(like_rows.get_height(x), like_rows.height, align_corners))
    resize = resize_by_gather if by_gather else resize_bilinear
    return resize(x, x.shape[1], like.shape[2], align_corners=align_corners)


def _scale_channels(rows: Rows, x: Array, scale: Array) -> Array:
    return layers.scale_channels(x, rows.mark_varying(scale))


def _broadcast_like(rows: Rows, x: Array, like: Array) -> Array:
    return layers.broadcast_like(rows.mark_varying(x), like)


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
