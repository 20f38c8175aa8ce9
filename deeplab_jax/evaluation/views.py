"""Average a network's predictions over scaled and mirrored views of an image.

The images can have different sizes and share arrays of one size, called the canvas. `sizes` then holds each image's height and
width, and each view of an image is computed from the image alone. With `sizes` None, images fill their arrays.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from deeplab_jax.models.operations import AnyArray, Length
from deeplab_jax.models.resize import Sizes, resize_by_gather, resize_each, take_of_each

# A function that maps images and their sizes to float32 logits of the same height and width.
Network = Callable[[Float[Array, "n h w c"], Sizes | None], Float[Array, "n h w k"]]


def average_views(
    network: Network,
    images: Float[AnyArray, "n h w c"],
    sizes: Sizes | None,
    num_classes: int,
    *,
    scales: tuple[float, ...],
    flip: bool,
    align_corners: bool = False,
    unit: int = 1,
) -> Float[Array, "n h w k"]:
    """Return logits whose softmax is the mean of the views' softmax outputs, as in mmsegmentation's test-time augmentation.

    A single view's logits are only resized to the image size. With several views, probabilities are averaged instead of logits,
    because logits at different scales are not calibrated the same way. The result is the logarithm of the mean probability,
    which is first clamped to at least the smallest normal float32. Images are resized in float32 with half-pixel centres and no
    antialiasing, whereas mmcv rounds resized images to 8 bits.

    Args:
      network: A function that maps a full view to its logits. Use `slide` to build one that works on windows.
      images: Normalised images. Normalising before or after resizing gives the same result.
      sizes: The images' heights and widths, or None if they fill their arrays.
      num_classes: The number of logit channels.
      scales: The factors by which to resize the images.
      flip: Whether to also average over the mirror image at each scale.
      align_corners: Whether to use aligned corners when resizing logits to the image size.
      unit: The number of pixels by which the height and width of a canvas must be divisible.
    """
    images = jnp.asarray(images)
    canvas = (images.shape[1], images.shape[2])

    def view(scaled: Array, scaled_sizes: Sizes | None) -> Array:
        return _resize(network(scaled, scaled_sizes), scaled_sizes, canvas, sizes, align_corners)

    # The loop lets the plain and mirrored views share one compiled network, and keeps only one view in memory at a time.
    def add_views(total: Array, scaled: Array, scaled_sizes: Sizes | None) -> Array:
        def add_view(total: Array, mirrored: Array) -> tuple[Array, None]:
            logits = view(jnp.where(mirrored, _mirror(scaled, scaled_sizes), scaled), scaled_sizes)
            return total + jax.nn.softmax(jnp.where(mirrored, _mirror(logits, sizes), logits)), None

        return lax.scan(add_view, total, jnp.array([False, True][: 1 + flip]))[0]

    if len(scales) == 1 and not flip:
        return view(*_scale(images, sizes, scales[0], unit))
    # Made from the images, because a sum over split rows must start with an array that is split like them.
    total = jnp.broadcast_to(jnp.zeros_like(images[..., :1], jnp.float32), (*images.shape[:3], num_classes))
    for scale in scales:
        total = add_views(total, *_scale(images, sizes, scale, unit))
    return jnp.log(jnp.maximum(total / (len(scales) * (1 + flip)), jnp.finfo(jnp.float32).tiny))


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return the height and width multiplied by `scale` and rounded as in mmcv, but at least 1."""
    return _scaled_length(size[0], scale), _scaled_length(size[1], scale)


def round_up(length: int, unit: int) -> int:
    """Return the smallest multiple of `unit` that is at least `length`."""
    return -(-length // unit) * unit


def _scaled_length(length: int, scale: float) -> int:
    return max(int(length * scale + 0.5), 1)


def _scale(images: Array, sizes: Sizes | None, scale: float, unit: int) -> tuple[Array, Sizes | None]:
    """Return the images resized by a factor, and their new sizes."""
    canvas = (images.shape[1], images.shape[2])
    if scale == 1:
        return images, sizes
    if sizes is None:
        return _resize(images, None, scaled_size(canvas, scale), None), None
    height, width = (round_up(length, unit) for length in scaled_size(canvas, scale))
    scaled = (_scale_each(sizes[0], canvas[0], scale), _scale_each(sizes[1], canvas[1], scale))
    return _resize(images, sizes, (height, width), scaled), scaled


def _scale_each(lengths: Int[Array, " n"], largest: int, scale: float) -> Int[Array, " n"]:
    # Looked up, because float32 arithmetic on the device could round a product to the other side of one half.
    return jnp.asarray(np.array([_scaled_length(length, scale) for length in range(largest + 1)], np.int32))[lengths]


def _resize(
    x: Array, sizes: Sizes | None, canvas: tuple[Length, Length], new_sizes: Sizes | None, align_corners: bool = False
) -> Array:
    """Return `x` resized to the height and width `canvas`, or from `sizes` to `new_sizes` on that canvas."""
    if sizes is None or new_sizes is None:
        return x if x.shape[1:3] == canvas else resize_by_gather(x, *canvas, align_corners=align_corners)
    return x if sizes is new_sizes else resize_each(x, sizes, new_sizes, canvas, align_corners=align_corners)


def _mirror(x: Array, sizes: Sizes | None) -> Array:
    """Return the images mirrored horizontally. On a canvas, the padding stays on the right."""
    if sizes is None:
        return x[:, :, ::-1]
    column, width = jnp.arange(x.shape[2])[None], sizes[1][:, None]
    return take_of_each(x, jnp.where(column < width, width - 1 - column, column), axis=2)
