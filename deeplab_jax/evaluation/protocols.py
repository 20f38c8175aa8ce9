"""Evaluation protocols: sliding windows, and the average over scaled and mirrored views.

A network is here any function from images [n, h, w, c] to float32 logits [n, h, w, k] of the same height and width.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.models.resize import resize_by_gather

Network = Callable[[Float[Array, "n h w c"]], Float[Array, "n h w k"]]


def slide(
    network: Network, images: Float[Array, "n h w c"], num_classes: int, *, window: tuple[int, int], stride: tuple[int, int]
) -> Float[Array, "n h w k"]:
    """Logits averaged over the windows that see a pixel, as mmsegmentation's `slide_inference` does.

    The network is compiled for one window and the sum is the only array of the images' size, however many windows there are.

    Args:
      network: of the windows.
      images: normalised.
      num_classes: channels of the logits.
      window: height and width; a window larger than the image in a direction is the image in that direction.
      stride: of the windows; (0, 0) is `default_stride`.
    """
    size = images.shape[1:3]
    stride = stride if max(stride) else default_stride(window)
    window = (min(window[0], size[0]), min(window[1], size[1]))
    rows, columns = (window_origins(*lengths) for lengths in zip(size, window, stride, strict=True))
    if len(rows) == len(columns) == 1:
        return network(images)

    def add_window(total: Array, origin: Array) -> tuple[Array, None]:
        at = (0, origin[0], origin[1], 0)
        crops = lax.dynamic_slice(images, at, (images.shape[0], *window, images.shape[3]))
        before = lax.dynamic_slice(total, at, (*crops.shape[:3], num_classes))
        return lax.dynamic_update_slice(total, before + network(crops), at), None

    origins = jnp.array([(y, x) for y in rows for x in columns], jnp.int32)
    total, _ = lax.scan(add_window, jnp.zeros((*images.shape[:3], num_classes), jnp.float32), origins)
    seen = [_times_seen(*lengths) for lengths in zip(size, (rows, columns), window, strict=True)]
    return total / (jnp.array(seen[0])[None, :, None, None] * jnp.array(seen[1])[None, None, :, None])


def default_stride(window: tuple[int, int]) -> tuple[int, int]:
    """Two thirds of the window, rounded: 513 for 769, mmsegmentation's choice."""
    return round(2 * window[0] / 3), round(2 * window[1] / 3)


def window_origins(size: int, window: int, stride: int) -> list[int]:
    """Where windows start along one direction: every `stride` pixels, the last one moved back to end with the image."""
    last = max(size - window, 0)
    return [*range(0, last, stride), last]


def _times_seen(size: int, origins: list[int], window: int) -> Float[np.ndarray, " size"]:
    seen = np.zeros(size, np.float32)
    for start in origins:
        seen[start : start + window] += 1
    return seen


def average_views(
    network: Network,
    images: Float[Array, "n h w c"],
    num_classes: int,
    *,
    scales: tuple[float, ...],
    flip: bool,
    align_corners: bool = False,
) -> Float[Array, "n h w k"]:
    """Logits whose softmax is the mean of the views' softmax: mmsegmentation's test-time augmentation, DeepLab's multi-scale.

    A single view gives its own logits. The mean is taken over probabilities because logits of other scales are not
    calibrated alike; its logarithm is returned, of at least the smallest float32. Images are resized with half-pixel centres
    and without antialiasing, in float32: mmcv rounds resized images to 8 bits.

    Args:
      network: of the whole view; `slide` makes one of windows.
      images: normalised, which commutes with resizing.
      num_classes: channels of the logits.
      scales: factors by which images are resized.
      flip: see the mirror image of every scale too.
      align_corners: how the views' logits are resized to the images.
    """
    height, width = images.shape[1:3]

    def view(scaled: Array) -> Array:
        return _resized(network(scaled), height, width, align_corners)

    # A loop, so that plain and mirrored views share one compiled network and never wait in memory for each other.
    def add_views(total: Array, scaled: Array) -> Array:
        def add_view(total: Array, mirrored: Array) -> tuple[Array, None]:
            seen = view(jnp.where(mirrored, scaled[:, :, ::-1], scaled))
            return total + jax.nn.softmax(jnp.where(mirrored, seen[:, :, ::-1], seen)), None

        return lax.scan(add_view, total, jnp.array([False, True][: 1 + flip]))[0]

    sizes = [(height, width) if scale == 1 else scaled_size((height, width), scale) for scale in scales]
    if len(scales) == 1 and not flip:
        return view(_resized(images, *sizes[0]))
    total = jnp.zeros((*images.shape[:3], num_classes), jnp.float32)
    for size in sizes:
        total = add_views(total, _resized(images, *size))
    return jnp.log(jnp.maximum(total / (len(scales) * (1 + flip)), jnp.finfo(jnp.float32).tiny))


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Height and width times `scale`, rounded as mmcv does; at least 1."""
    return max(int(size[0] * scale + 0.5), 1), max(int(size[1] * scale + 0.5), 1)


def _resized(x: Float[Array, "n h w c"], height: int, width: int, align_corners: bool = False) -> Array:
    return x if x.shape[1:3] == (height, width) else resize_by_gather(x, height, width, align_corners=align_corners)
