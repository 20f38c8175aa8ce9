"""Slide windows over images and average the window logits.

`slide` averages on the device in a single program, whereas `slide_in_strips` averages on the host, one strip of a large image
at a time. Both give the same logits as mmsegmentation's `slide_inference`. For `sizes`, see `views`.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt8

from deeplab_jax.evaluation.views import Network, round_up
from deeplab_jax.models.resize import Sizes

# A function that maps images on the host to float32 logits of the same height and width.
HostNetwork = Callable[[UInt8[np.ndarray, "n h w c"]], Float[np.ndarray, "n h w k"]]


@dataclasses.dataclass(frozen=True)
class Windows:
    """A grid of windows that covers an image.

    Attributes:
      size: The window height and width.
      rows, columns: The windows' top pixel rows and left pixel columns. Each (row, column) pair is a window's top-left
        corner.
      row_counts, column_counts: How many window rows cover each pixel row, and how many window columns cover each pixel
        column. The number of windows that cover a pixel is the product of its row count and its column count.
    """

    size: tuple[int, int]
    rows: list[int]
    columns: list[int]
    row_counts: Float[np.ndarray, " h"]
    column_counts: Float[np.ndarray, " w"]


def place_windows(image: tuple[int, int], window: tuple[int, int], stride: tuple[int, int] = (0, 0)) -> Windows:
    """Return the windows that cover an image.

    Args:
      image: The image height and width.
      window: The window height and width, which are clipped to the image size.
      stride: The vertical and horizontal distance between windows. (0, 0) selects `default_stride`.
    """
    stride = stride if max(stride) else default_stride(window)
    size = (min(window[0], image[0]), min(window[1], image[1]))
    rows, columns = (window_origins(*lengths) for lengths in zip(image, size, stride, strict=True))
    counts = [_count(*lengths) for lengths in zip(image, (rows, columns), size, strict=True)]
    return Windows(size, rows, columns, *counts)


def default_stride(window: tuple[int, int]) -> tuple[int, int]:
    """Return two thirds of the window size, rounded as in mmsegmentation. For example, a window of 769 gives 513."""
    return round(2 * window[0] / 3), round(2 * window[1] / 3)


def window_origins(size: int, window: int, stride: int) -> list[int]:
    """Return the first pixel of each window along one axis.

    Windows are `stride` pixels apart, except that the last one is moved back to end at the image edge.
    """
    last = max(size - window, 0)
    return [*range(0, last, stride), last]


def _count(size: int, origins: list[int], window: int) -> Float[np.ndarray, " size"]:
    counts = np.zeros(size, np.float32)
    for start in origins:
        counts[start : start + window] += 1
    return counts


def slide(
    network: Network,
    images: Float[Array, "n h w c"],
    sizes: Sizes | None,
    num_classes: int,
    *,
    window: tuple[int, int],
    stride: tuple[int, int],
    unit: int = 1,
) -> Float[Array, "n h w k"]:
    """Return each pixel's logits, averaged over the windows that cover the pixel. Everything runs in one program.

    The network is compiled once, for the window size. However many windows there are, only one full-size array of logits is
    allocated, for the running sum over windows.

    Args:
      network: The network to apply to each window.
      images: The normalised images.
      sizes: The images' heights and widths, or None if they fill their arrays.
      num_classes: The number of logit channels.
      window, stride: The window size and stride (see `place_windows`).
      unit: The number of pixels by which the height and width of a canvas must be divisible.
    """
    if sizes is not None:
        return _slide_over_each(network, images, sizes, num_classes, window, stride, unit)
    windows = place_windows((images.shape[1], images.shape[2]), window, stride)
    if len(windows.rows) == len(windows.columns) == 1:
        return network(images, None)

    def add_window(total: Array, origin: Array) -> tuple[Array, None]:
        first = jnp.int32(0)  # a plain 0 would be 64 bits wide under JAX_ENABLE_X64, and all indices need one type
        at = (first, origin[0], origin[1], first)
        crops = lax.dynamic_slice(images, at, (images.shape[0], *windows.size, images.shape[3]))
        before = lax.dynamic_slice(total, at, (*crops.shape[:3], num_classes))
        return lax.dynamic_update_slice(total, before + network(crops, None), at), None

    origins = jnp.array([(y, x) for y in windows.rows for x in windows.columns], jnp.int32)
    total, _ = lax.scan(add_window, jnp.zeros((*images.shape[:3], num_classes), jnp.float32), origins)
    return total / (jnp.array(windows.row_counts)[None, :, None, None] * jnp.array(windows.column_counts)[None, None, :, None])


@dataclasses.dataclass(frozen=True)
class _LineOfWindows:
    """The windows along one axis of images of different sizes.

    Attributes:
      starts: Each image's first pixel of each window.
      is_used: Whether the image needs the window. Small images need fewer windows than large ones.
      length: The windows' length in each image.
      padded: The length of the arrays that hold the windows.
    """

    starts: Int[Array, "n windows"]
    is_used: Bool[Array, "n windows"]
    length: Int[Array, " n"]
    padded: int

    def count(self, canvas: int) -> Int[Array, "n canvas"]:
        """Return how many windows cover each pixel along the axis."""
        offset = jnp.arange(canvas)[None, None] - self.starts[..., None]
        return jnp.sum((offset >= 0) & (offset < self.length[:, None, None]) & self.is_used[..., None], 1)

    def mask(self, window: Int[Array, ""]) -> Bool[Array, "n padded"]:
        """Return which pixels of a window's array are inside the image."""
        return (jnp.arange(self.padded)[None] < self.length[:, None]) & self.is_used[:, window][:, None]


def _place_line(size: Int[Array, " n"], canvas: int, window: int, stride: int, unit: int) -> _LineOfWindows:
    first = stride * jnp.arange(len(window_origins(canvas, window, stride)))[None]
    last = jnp.maximum(size - window, 0)[:, None]
    padded = round_up(min(window, canvas), unit)
    return _LineOfWindows(jnp.minimum(first, last), first < last + stride, jnp.minimum(size, window), padded)


def _slide_over_each(
    network: Network,
    images: Float[Array, "n h w c"],
    sizes: Sizes,
    num_classes: int,
    window: tuple[int, int],
    stride: tuple[int, int],
    unit: int,
) -> Float[Array, "n h w k"]:
    """Return the result of `slide` for images of different sizes. Each image has windows of its own."""
    canvas, stride = images.shape[1:3], stride if max(stride) else default_stride(window)
    down, across = (_place_line(*each, unit) for each in zip(sizes, canvas, window, stride, strict=True))
    if down.starts.shape[1] == across.starts.shape[1] == 1:
        return network(images, sizes)
    margins = [(0, down.padded - min(window[0], canvas[0])), (0, across.padded - min(window[1], canvas[1]))]
    padded = jnp.pad(images, [(0, 0), *margins, (0, 0)])
    shape = (down.padded, across.padded)

    def add_window(total: Array, position: Array) -> tuple[Array, None]:
        row, column = position[0], position[1]
        at = (down.starts[:, row], across.starts[:, column])
        crops = jax.vmap(lambda image, y, x: lax.dynamic_slice(image, (y, x, 0), (*shape, image.shape[2])))(padded, *at)
        mask = down.mask(row)[:, :, None, None] & across.mask(column)[:, None, :, None]
        values = jnp.where(mask, network(crops, (down.length, across.length)), 0)

        def add(total: Array, values: Array, y: Array, x: Array) -> Array:
            before = lax.dynamic_slice(total, (y, x, 0), values.shape)
            return lax.dynamic_update_slice(total, before + values, (y, x, 0))

        return jax.vmap(add)(total, values, *at), None

    positions = jnp.array([(y, x) for y in range(down.starts.shape[1]) for x in range(across.starts.shape[1])], jnp.int32)
    total, _ = lax.scan(add_window, jnp.zeros((*padded.shape[:3], num_classes), jnp.float32), positions)
    counts = down.count(canvas[0])[:, :, None, None] * across.count(canvas[1])[:, None, :, None]
    return total[:, : canvas[0], : canvas[1]] / jnp.maximum(counts, 1)


def slide_in_strips(
    network: HostNetwork, image: UInt8[np.ndarray, "h w c"], *, window: tuple[int, int], batch_size: int
) -> Iterator[tuple[int, Float[np.ndarray, "rows w k"]]]:
    """Yield the same logits as `slide`, strip by strip, for an image too large for one program.

    Only the logits for one row of windows are in memory at a time.

    Args:
      network: The network to apply to batches of `batch_size` windows.
      image: An image of any size.
      window: The window size (see `place_windows`). The default stride is used.
      batch_size: The number of windows per batch.

    Yields:
      The first pixel row of each strip, and the strip's logits. Strips are yielded from top to bottom.
    """
    windows = place_windows((image.shape[0], image.shape[1]), window)
    (height, width), total = windows.size, None
    for top, next_top in zip(windows.rows, [*windows.rows[1:], len(image)], strict=True):
        for first in range(0, len(windows.columns), batch_size):
            lefts = windows.columns[first : first + batch_size]
            crops = [image[top : top + height, left : left + width] for left in lefts]
            logits = network(np.stack(crops + crops[-1:] * (batch_size - len(crops))))
            if total is None:
                total = np.zeros((height, image.shape[1], logits.shape[3]), np.float32)
            for left, values in zip(lefts, logits, strict=False):
                total[:, left : left + width] += values
        assert total is not None
        finished = next_top - top  # the number of rows that no later window covers
        yield top, total[:finished] / (windows.row_counts[top:next_top, None] * windows.column_counts)[..., None]
        total[: height - finished] = total[finished:]
        total[height - finished :] = 0
