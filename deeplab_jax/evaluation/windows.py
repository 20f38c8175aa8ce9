"""Place sliding windows on images and average the logits of the windows.

`slide` averages in one program on the device. `slide_in_strips` averages on the host, one strip of a large image at a time.
Both give the same logits as `slide_inference` in mmsegmentation. A network is any function from images to float32 logits of
the same height and width.
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
      size: The height and width of a window.
      rows, columns: The first pixel rows and columns of the windows. Every combination of the two is a window.
      row_counts, column_counts: The number of windows that cover each pixel row and each pixel column. The product of the two
        is the number of windows that cover a pixel.
    """

    size: tuple[int, int]
    rows: list[int]
    columns: list[int]
    row_counts: Float[np.ndarray, " h"]
    column_counts: Float[np.ndarray, " w"]


def place_windows(image: tuple[int, int], window: tuple[int, int], stride: tuple[int, int] = (0, 0)) -> Windows:
    """Return the windows that cover an image.

    Args:
      image: The height and width of the image.
      window: The height and width of a window. They are clipped to those of the image.
      stride: The vertical and horizontal distance between windows. (0, 0) selects `default_stride`.
    """
    stride = stride if max(stride) else default_stride(window)
    size = (min(window[0], image[0]), min(window[1], image[1]))
    rows, columns = (window_origins(*lengths) for lengths in zip(image, size, stride, strict=True))
    counts = [_count(*lengths) for lengths in zip(image, (rows, columns), size, strict=True)]
    return Windows(size, rows, columns, *counts)


def default_stride(window: tuple[int, int]) -> tuple[int, int]:
    """Return two thirds of the window size, rounded, as mmsegmentation does. For 769 this is 513."""
    return round(2 * window[0] / 3), round(2 * window[1] / 3)


def window_origins(size: int, window: int, stride: int) -> list[int]:
    """Return the first pixels of the windows along one axis.

    Windows are `stride` pixels apart. The last window is moved back so that it ends at the edge of the image.
    """
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
    """Return the logits of each pixel, averaged over the windows that cover it. Everything runs in one program.

    The network is compiled once, for the size of a window. The sum of the logits is the only array of the size of the images,
    regardless of the number of windows.

    Args:
      network: The network to apply to each window.
      images: The normalised images.
      num_classes: The number of channels of the logits.
      window, stride: The size and distance of the windows (see `place_windows`).
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
    """Yield the logits that `slide` computes, strip by strip, for an image that is too large for one program.

    Only the logits of one row of windows are in memory at a time.

    Args:
      network: The network to apply to batches of `batch_size` windows.
      image: An image of any size.
      window: The size of the windows (see `place_windows`). The stride is the default one.
      batch_size: The number of windows per batch.

    Yields:
      The position of the first row of a strip, and the logits of the strip. Strips are in order from top to bottom.
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
        finished = next_top - top  # number of rows that no later window covers
        yield top, total[:finished] / (windows.row_counts[top:next_top, None] * windows.column_counts)[..., None]
        total[: height - finished] = total[finished:]
        total[height - finished :] = 0
