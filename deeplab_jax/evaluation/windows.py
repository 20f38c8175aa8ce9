"""Sliding windows: where they lie on an image, and the mean of their logits, computed on the device or a strip at a time.

Both give what mmsegmentation's `slide_inference` gives. Here a network is any function from images to float32 logits of the
same height and width.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt8

Network = Callable[[Float[Array, "n h w c"]], Float[Array, "n h w k"]]
HostNetwork = Callable[[UInt8[np.ndarray, "n h w 3"]], Float[np.ndarray, "n h w k"]]


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows that cover an image.

    Attributes:
      size: height and width of a window.
      rows, columns: where windows start; each row meets each column.
      row_counts, column_counts: number of windows over each row and each column of pixels; a pixel's is their product.
    """

    size: tuple[int, int]
    rows: list[int]
    columns: list[int]
    row_counts: Float[np.ndarray, " h"]
    column_counts: Float[np.ndarray, " w"]


def place_windows(image: tuple[int, int], window: tuple[int, int], stride: tuple[int, int] = (0, 0)) -> Windows:
    """Return the windows of an image.

    Args:
      image: height and width.
      window: height and width; a window larger than the image in a direction is the image in that direction.
      stride: of the windows; (0, 0) is `default_stride`.
    """
    stride = stride if max(stride) else default_stride(window)
    size = (min(window[0], image[0]), min(window[1], image[1]))
    rows, columns = (window_origins(*lengths) for lengths in zip(image, size, stride, strict=True))
    counts = [_count(*lengths) for lengths in zip(image, (rows, columns), size, strict=True)]
    return Windows(size, rows, columns, *counts)


def default_stride(window: tuple[int, int]) -> tuple[int, int]:
    """Return two thirds of the window, rounded: 513 for 769, mmsegmentation's choice."""
    return round(2 * window[0] / 3), round(2 * window[1] / 3)


def window_origins(size: int, window: int, stride: int) -> list[int]:
    """Return where windows start along one direction: every `stride` pixels, the last one moved back to end with the image."""
    last = max(size - window, 0)
    return [*range(0, last, stride), last]


def _count(size: int, origins: list[int], window: int) -> Float[np.ndarray, " size"]:
    counts = np.zeros(size, np.float32)
    for start in origins:
        counts[start : start + window] += 1
    return counts


def slide(
    network: Network, images: Float[Array, "n h w c"], num_classes: int, *, window: tuple[int, int], stride: tuple[int, int]
) -> Float[Array, "n h w k"]:
    """Return logits averaged over the windows that cover a pixel, inside one program.

    The network is compiled for one window, and the sum is the only array of the images' size, however many windows there are.

    Args:
      network: applied to windows.
      images: normalised.
      num_classes: channels of the logits.
      window, stride: see `place_windows`.
    """
    windows = place_windows((images.shape[1], images.shape[2]), window, stride)
    if len(windows.rows) == len(windows.columns) == 1:
        return network(images)

    def add_window(total: Array, origin: Array) -> tuple[Array, None]:
        at = (0, origin[0], origin[1], 0)
        crops = lax.dynamic_slice(images, at, (images.shape[0], *windows.size, images.shape[3]))
        before = lax.dynamic_slice(total, at, (*crops.shape[:3], num_classes))
        return lax.dynamic_update_slice(total, before + network(crops), at), None

    origins = jnp.array([(y, x) for y in windows.rows for x in windows.columns], jnp.int32)
    total, _ = lax.scan(add_window, jnp.zeros((*images.shape[:3], num_classes), jnp.float32), origins)
    return total / (jnp.array(windows.row_counts)[None, :, None, None] * jnp.array(windows.column_counts)[None, None, :, None])


def slide_in_strips(
    network: HostNetwork, image: UInt8[np.ndarray, "h w 3"], *, window: tuple[int, int], batch_size: int
) -> Iterator[tuple[int, Float[np.ndarray, "rows w k"]]]:
    """Compute what `slide` gives for an image too large for one program, holding the logits of one row of windows at a time.

    Args:
      network: applied to batches of `batch_size` windows.
      image: of any size.
      window: see `place_windows`; the stride is the default one.
      batch_size: windows at a time.

    Yields:
      The first row of a strip, and the strip, from the top down.
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
        finished = next_top - top  # rows that no window below covers
        yield top, total[:finished] / (windows.row_counts[top:next_top, None] * windows.column_counts)[..., None]
        total[: height - finished] = total[finished:]
        total[height - finished :] = 0
