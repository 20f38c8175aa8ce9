"""True image edges inside larger arrays: rows split over devices, and canvases with images of different sizes.

**Split rows.** The network runs inside `jax.shard_map` over one mesh axis, and its arrays [n, h, w, c] hold one device's rows.
XLA's own partitioner is not used, for two reasons. With thin slices, it computes wrong convolution gradients (jax 0.10.2; off
by a factor of 10 if each device holds one row). It would also have to split an image unevenly whenever the height is not a
multiple of the number of devices. Here, images are instead padded at the bottom so that every device gets the same number of
rows.

**Canvases.** Images of different sizes lie in the top left corners of arrays of one size. Each image's height and width are
data, so one compiled program serves them all.

In both cases, the padding has no effect on any operation: convolutions treat pixels outside the image as zeros, while maxima,
means, resizes and losses ignore them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from deeplab_jax.errors import ConfigError
from deeplab_jax.models import layers, pooling
from deeplab_jax.models.convolution import (
    ConvForm,
    Padding,
    add_border,
    choose_convolution,
    conv2d,
    kernel_radii,
    kernel_shifts,
    missing_pixels,
    shift_by,
)
from deeplab_jax.models.operations import PIXELWISE, AnyArray
from deeplab_jax.models.resize import (
    Sizes,
    resize_axis_of_each,
    resize_bilinear,
    resize_by_gather,
    resize_like,
    sample_positions,
)

# How many feature rows beyond a device's own rows it reads to resize them. Sizes are halved and rounded up once per stride, so
# a sampling position differs by less than one row from the row number divided by the stride.
RESIZE_HALO = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Extent:
    """Where the images end inside their arrays, and how the arrays' rows are distributed over devices.

    An instance is also an interpreter (see operations.py). Under this interpreter, operations return the same values inside the
    images as on arrays that end where the images end.

    Attributes:
      axis: The mesh axis over which the rows are split, or None if they are not split.
      devices: The number of devices along the axis.
      height: The number of image rows, without padding. On a canvas, each image has its own.
      local: The number of image rows per device, including padding. It is divisible by the network's strides.
      width: On a canvas, each image's number of columns, without padding. None if images fill their arrays' columns.
      columns: On a canvas, the number of columns, including padding. It is divisible by the network's strides.
      margin: The number of image rows, and of columns, that the first layer takes off; see `Backbone`.
      device: This device's number along the axis, an int32 scalar. Only `rows.compute_on_rows` sets it.
    """

    axis: str | None
    devices: int
    height: int | Int[Array, " n"]
    local: int
    width: Int[Array, " n"] | None = None
    columns: int = 0
    margin: int = 0
    device: Int[Array, ""] | None = None

    def __call__(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Apply an operation to this device's rows.

        Raises:
          ConfigError: The operation is not pixelwise and has no implementation for arrays with padding.
        """
        if operation in PIXELWISE:
            return operation(*args, **kwargs)
        if operation not in _WITHIN_EXTENT or (self.width is not None and operation in _TRAINING_ONLY):
            name = f"the operation {operation.__name__} does not support it"
            if self.axis is None:
                raise ConfigError(f"Images of different sizes cannot share a batch because {name}. Use images of one size.")
            raise ConfigError(
                f"`mesh.spatial` (={self.devices}) cannot split image rows because {name}. Set --config.mesh.spatial=1."
            )
        return _WITHIN_EXTENT[operation](self, *args, **kwargs)

    @property
    def _device(self) -> Array:
        assert self.device is not None, "split rows are only used in rows.compute_on_rows"
        return self.device

    def is_split(self, x: Array) -> bool:
        """Return whether `x` is split over devices. If not, `x` is the same on all devices, like an image mean."""
        return self.axis is not None and self.axis in jax.typeof(x).mat.varying

    def get_height(self, x: Shaped[Array, "n h w c"]) -> Any:
        """Return the total height of the features `x` across all devices, without padding: an int, or int32 [n] on a canvas."""
        return self._divide(self.height, self.local // x.shape[1])

    def get_width(self, x: Shaped[Array, "n h w c"]) -> Any:
        """Return the width of the features `x`, without padding: an int, or int32 [n] on a canvas."""
        return x.shape[2] if self.width is None else self._divide(self.width, self.columns // x.shape[2])

    def _divide(self, size: Any, stride: int) -> Any:
        """Return the size of features with the given stride, for a height or width of the image."""
        if stride > 1 and self.margin:  # the first layer has at least one output
            size = max(size - self.margin, 1) if isinstance(size, int) else jnp.maximum(size - self.margin, 1)
        return -(-size // stride)

    def scale_to(self, x: Shaped[Array, "n h w c"]) -> "Extent":
        """Return the extent at the resolution of the features `x`."""
        return dataclasses.replace(
            self,
            height=self.get_height(x),
            local=x.shape[1],
            width=None if self.width is None else self.get_width(x),
            columns=x.shape[2],
            margin=self.margin if x.shape[1] == self.local else 0,
        )

    def list_rows(self, x: Shaped[Array, "n h w c"]) -> Int[Array, "1 h"]:
        """Return the number of each of this device's rows within the whole image."""
        first = 0 if self.axis is None else self._device * x.shape[1]
        return first + jnp.arange(x.shape[1])[None]

    def is_row_inside(self, x: Shaped[Array, "n h w c"], below: int = 0) -> Bool[Array, "_ h 1 1"]:
        """Return a mask over the local rows that is True where the row `below` rows further down is inside the image.

        Args:
          x: This device's rows.
          below: The distance to the row to test, or 0 to test the row itself.
        """
        return (self.list_rows(x) + below < _column(self.get_height(x)))[:, :, None, None]

    def is_column_inside(self, x: Shaped[Array, "n h w c"], right: int = 0) -> Bool[Array, "_ 1 w 1"]:
        """Return a mask that is True where the column `right` columns further right is inside the image."""
        return (jnp.arange(x.shape[2])[None] + right < _column(self.get_width(x)))[:, None, :, None]

    def fill(self, x: Shaped[Array, "n h w c"], value: float) -> Shaped[Array, "n h w c"]:
        """Return `x` with its padding set to `value`."""
        if self.width is not None:
            mask = self.is_row_inside(x) & self.is_column_inside(x)
        elif self.get_height(x) < self.devices * x.shape[1]:
            mask = self.is_row_inside(x)
        else:
            return x
        return jnp.where(mask, x, jnp.asarray(value, x.dtype))

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
                row = self._device + side * hop
                part = jnp.where((row >= 0) & (row < self.devices), part, jnp.asarray(value, x.dtype))
            parts.append(part)
        return parts

    def gather(self, x: Float[Array, "... h c"]) -> Float[Array, "... h2 c"]:
        """Gather the rows from all devices onto every device. If all images have the same height, drop the padding."""
        if self.axis is None:
            return x
        local = x.shape[-2]
        zeros = jnp.zeros((*x.shape[:-2], self.devices * local, x.shape[-1]), x.dtype)
        own_rows = lax.dynamic_update_slice_in_dim(zeros, x, self._device * local, axis=-2)
        # The sum is exact because it only adds zeros. `all_gather` cannot be used, because JAX marks its result as varying
        # over devices.
        rows = lax.psum(own_rows, self.axis)
        return rows[..., : self._divide(self.height, self.local // local), :] if isinstance(self.height, int) else rows

    def mark_varying(self, x: AnyArray) -> Array:
        """Return the replicated array `x`, marked as varying over devices.

        The gradient of `x` is then summed over the devices in float32 or wider. A bfloat16 sum would lose precision, and on
        CPUs it makes XLA abort (jax 0.10.2).
        """
        if self.axis is None:
            return jnp.asarray(x)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return lax.pcast(x.astype(wide), self.axis, to="varying").astype(x.dtype)

    def take_local(self, x: Shaped[Array, "n h w c"], local: int) -> Shaped[Array, "n local w c"]:
        """Return this device's `local` rows from an array that is replicated on all devices."""
        padding = self.devices * local - x.shape[1]
        x = jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0)))
        return lax.dynamic_slice_in_dim(x, self._device * local, local, axis=1)

    def interpolate_rows(self, x: Float[Array, "n h w c"], align_corners: bool) -> Float[Array, "n local w c"]:
        """Return features on split rows, linearly interpolated to this extent's rows.

        Args:
          x: This device's rows of the features.
          align_corners: See `resize_bilinear`.
        """
        assert self.axis is not None
        device, height = self._device, self.get_height(x)
        rows = device * self.local + jnp.arange(self.local)[None]
        low, fraction = sample_positions(rows, _column(height), _column(self.height), align_corners)
        low, fraction = low[..., None], fraction[..., None]
        sources = device * x.shape[1] - RESIZE_HALO + jnp.arange(x.shape[1] + 2 * RESIZE_HALO)[None, None]
        weights = ((sources == low) * (1 - fraction) + (sources == low + 1) * fraction).astype(x.dtype)
        x = self.add_halo(x, RESIZE_HALO, RESIZE_HALO)
        # As in `resize_bilinear`, accelerators must not round the logits and weights to fewer bits.
        if len(weights) == 1:
            return jnp.einsum("oh,nhwc->nowc", weights[0], x, precision="highest")
        return jnp.einsum("noh,nhwc->nowc", weights, x, precision="highest")


def _column(size: int | Int[Array, " n"]) -> Any:
    """Return a size as a column, to compare it with every image's indices."""
    return jnp.reshape(jnp.asarray(size), (-1, 1))


def place_on_canvas(sizes: Sizes, canvas: tuple[int, int], rows: Extent | None, margin: int = 0) -> Extent:
    """Return the extent of images of different sizes in the top left corners of arrays of one size.

    Args:
      sizes: Each image's height and width.
      canvas: The arrays' height and width. Both are divisible by the network's strides.
      rows: How the arrays' rows are split over devices, from `rows.split_rows`, or None if they are not split.
      margin: The backbone's margin.
    """
    height, width = sizes
    if rows is None:
        return Extent(None, 1, height, canvas[0], width, canvas[1], margin)
    return dataclasses.replace(rows, height=height, width=width, columns=canvas[1], margin=margin)


# The functions below implement the non-pixelwise operations on arrays with padding.


def _conv2d(
    extent: Extent,
    x: Array,
    kernel: AnyArray,
    *,
    stride: int = 1,
    rate: int = 1,
    padding: Padding = "symmetric",
    border: Array | None = None,
    form: ConvForm = "auto",
) -> Array:
    if border is not None:
        border = extent.mark_varying(border)
        y = _conv2d(extent, x - border, kernel, stride=stride, rate=rate, padding=padding, form=form)
        return add_border(y, extent.mark_varying(kernel), border)
    radii, is_padded = kernel_radii(kernel.shape, rate), padding != "valid"
    if not is_padded and radii != (extent.margin // 2,) * 2:
        raise ValueError(f"`margin` (={extent.margin}) must be 2 * {radii[0]} for this convolution without padding.")
    size = (extent.get_height(x), extent.get_width(x))
    shifts = kernel_shifts(size, kernel.shape, stride, rate, padding)
    is_shifted_by_data = not all(isinstance(shift, int) for shift in shifts)
    if not extent.is_split(x) and not is_shifted_by_data and is_padded:
        x = extent.fill(x, 0.0) if extent.axis is None and radii != (0, 0) else x
        return conv2d(x, kernel, stride=stride, rate=rate, padding=padding, form=form)
    convolve = choose_convolution(kernel.shape, x.shape, x.dtype, stride, rate, form)
    # The kernel is marked as varying before the cast, so its gradients are summed over the devices in the kernel's own
    # precision.
    kernel = extent.mark_varying(kernel).astype(x.dtype)
    if radii == (0, 0):
        return convolve(x, kernel, stride, rate, ((0, 0), (0, 0)))

    # The backward pass exchanges the halo again, because storing it would keep a second copy of every input.
    @jax.checkpoint
    def convolve_with_halo(x: Array, kernel: Array) -> Array:
        rows, columns = radii
        if is_shifted_by_data:
            x = extent.add_halo(x, rows, max(rows - stride + 1, 0) + 1)
            x = jnp.pad(x, ((0, 0), (0, 0), (columns, columns + 1), (0, 0)))
            for axis, shift in enumerate(shifts, start=1):
                x = shift_by(x, shift, axis)
            return convolve(x, kernel, stride, rate, ((0, 0), (0, 0)))
        x = extent.add_halo(x, rows - shifts[0], max(rows - stride + 1 + shifts[0], 0))
        # On a canvas, features have as many columns as with padding. The last ones are outside the images.
        end = columns if is_padded or extent.width is not None else missing_pixels(x.shape[2], columns)
        return convolve(x, kernel, stride, rate, ((0, 0), (columns - shifts[1], end)))

    return convolve_with_halo(x, kernel)


def _batch_moments(extent: Extent, x: Array, expected_mean: AnyArray) -> tuple[Array, Array, int]:
    if not extent.is_split(x):
        return layers.batch_moments(x, expected_mean)

    def pixel_mean(x: Array) -> Array:
        return jnp.mean(extent.gather(jnp.mean(x, 2)), (0, 1))

    return layers.moments(x, expected_mean, x.shape[0] * extent.get_height(x) * x.shape[2], pixel_mean)


def _image_mean(extent: Extent, x: Array) -> Array:
    x = x.astype(layers.at_least_float32(x.dtype))
    if extent.width is None:
        return jnp.mean(extent.gather(jnp.mean(x, 2)), 1)[:, None, None]
    row_means = jnp.sum(extent.fill(x, 0.0), 2) / _column(extent.get_width(x))[..., None]
    return (jnp.sum(extent.gather(row_means), 1) / _column(extent.get_height(x)))[:, None, None]


def _drop(extent: Extent, x: Array, key: Array, rate: float) -> Array:
    # Every device draws the dropout mask for the full image, so the dropped values do not depend on the number of devices.
    kept = layers.draw_dropout_mask(key, rate, (x.shape[0], extent.get_height(x), *x.shape[2:]))
    return layers.apply_dropout_mask(x, extent.take_local(kept, x.shape[1]), rate)


def _average_pool_2x2(extent: Extent, x: Array, *, stride: int, rate: int = 1) -> Array:
    below = pooling.pad_end(x, rate, axis=1)[0] if extent.axis is None else extent.add_halo(x, 0, rate)
    x = pooling.average_pairs(x, below, extent.is_row_inside(x, rate), stride, rate, axis=1)
    right, _ = pooling.pad_end(x, rate, axis=2)
    return pooling.average_pairs(x, right, extent.is_column_inside(x, rate), stride, rate, axis=2)


def _max_pool_3x3(extent: Extent, x: Array) -> Array:
    x = extent.fill(x, -jnp.inf)
    x = pooling.max_of_three(pooling.pad_with_infinity(x, axis=2), -(-x.shape[2] // 2), axis=2)
    rows = pooling.pad_with_infinity(x, axis=1) if extent.axis is None else extent.add_halo(x, 1, 0, -jnp.inf)
    x = pooling.max_of_three(rows, -(-x.shape[1] // 2), axis=1)
    # Infinities in the padding would turn zero gradients there into NaN.
    return extent.fill(x, 0.0)


def _resize_like(extent: Extent, x: Array, like: Array, *, align_corners: bool = False, by_gather: bool = False) -> Array:
    target = extent.scale_to(like)
    if target.width is None:
        x = target.interpolate_rows(x, align_corners)
        resize = resize_by_gather if by_gather else resize_bilinear
        return resize(x, x.shape[1], like.shape[2], align_corners=align_corners)
    width = extent.get_width(x)
    if extent.axis is None:
        x = resize_axis_of_each(x, 1, extent.get_height(x), target.get_height(like), like.shape[1], align_corners)
    else:
        x = target.interpolate_rows(x, align_corners)
    return resize_axis_of_each(x, 2, width, target.width, like.shape[2], align_corners)


def _scale_channels(extent: Extent, x: Array, scale: Array) -> Array:
    return layers.scale_channels(x, extent.mark_varying(scale))


def _broadcast_like(extent: Extent, x: Array, like: Array) -> Array:
    return layers.broadcast_like(extent.mark_varying(x), like)


_TRAINING_ONLY = (layers.batch_moments, layers.drop)
_WITHIN_EXTENT: dict[Callable[..., Any], Callable[..., Any]] = {
    conv2d: _conv2d,
    layers.batch_moments: _batch_moments,
    layers.image_mean: _image_mean,
    layers.drop: _drop,
    pooling.average_pool_2x2: _average_pool_2x2,
    pooling.max_pool_3x3: _max_pool_3x3,
    resize_like: _resize_like,
    layers.scale_channels: _scale_channels,
    layers.broadcast_like: _broadcast_like,
}
