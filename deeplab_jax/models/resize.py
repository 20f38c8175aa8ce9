"""Bilinear resizing, NHWC. Training uses matrix products, whereas prediction gathers neighbouring pixels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from deeplab_jax.models.operations import AnyArray, Length, operation

Sizes = tuple[Int[Array, " n"], Int[Array, " n"]]  # each image's height and width


@operation
def resize_like(
    x: Float[Array, "n h w c"], like: Shaped[Array, "n height width _"], *, align_corners: bool = False, by_gather: bool = False
) -> Float[Array, "n height width c"]:
    """Return `x` resized bilinearly to the height and width of `like`.

    The result is computed by `resize_by_gather` if `by_gather` is set, and by `resize_bilinear` otherwise.
    """
    resize = resize_by_gather if by_gather else resize_bilinear
    return resize(x, *like.shape[1:3], align_corners=align_corners)


def resize_bilinear(
    x: Float[AnyArray, "n h w c"], height: Length, width: Length, *, align_corners: bool = False
) -> Float[Array, "n height width c"]:
    """Return `x` resized bilinearly and without antialiasing, as in torchvision and mmsegmentation.

    Args:
      x: The array to resize.
      height, width: The size of the result.
      align_corners: PyTorch's option of the same name. If set, the centres of the corner pixels stay in place. Otherwise, the
        image's outer corners do.
    """
    shape = (x.shape[0], height, width, x.shape[3])
    if not align_corners:
        return jax.image.resize(x, shape, "bilinear", antialias=False)
    scale, shift = jnp.stack([_aligned(x.shape[axis], shape[axis]) for axis in (1, 2)], axis=1)
    return jax.image.scale_and_translate(x, shape, (1, 2), scale, shift, "bilinear", antialias=False)


def _aligned(size: Length, new_size: Length) -> Float[Array, "2"]:
    """Return [scale, translation] for `scale_and_translate` with aligned corners.

    With these values, output pixel i is sampled at input position i (size - 1) / (new_size - 1).
    """
    # The sizes can be symbolic, so this function cannot branch on them in Python.
    old, new = jnp.asarray(size, jnp.float32), jnp.asarray(new_size, jnp.float32)
    scale = jnp.where(new > 1, (new - 1) / jnp.maximum(old - 1, 1), 1.0)
    return jnp.where(old > 1, jnp.stack([scale, 0.5 - 0.5 * scale]), jnp.stack([new, jnp.zeros_like(new)]))


def resize_by_gather(
    x: Float[AnyArray, "n h w c"], height: Length, width: Length, *, align_corners: bool = False
) -> Float[Array, "n height width c"]:
    """Return the result of `resize_bilinear`, computed by gathering neighbouring pixels instead of by matrix products.

    This form is meant for prediction, because XLA can fuse it into an argmax and its run time does not depend on the source
    size (see benchmarks/NOTES.md). However, its gradient is slower. Symbolic sizes fall back to `resize_bilinear`.
    """
    if not all(isinstance(size, int) for size in (*x.shape[1:3], height, width)):
        return resize_bilinear(x, height, width, align_corners=align_corners)
    resized = jnp.asarray(x)
    for axis, new_size in ((1, height), (2, width)):
        size = x.shape[axis]
        if size == new_size:
            continue
        low, fraction = sample_positions(np.arange(new_size), size, new_size, align_corners)
        weight = np.expand_dims(fraction, tuple(other for other in range(4) if other != axis)).astype(np.float32)
        high = np.minimum(low + 1, size - 1)
        resized = jnp.take(resized, low, axis) * (1 - weight) + jnp.take(resized, high, axis) * weight
    return resized


def resize_each(
    x: Float[Array, "n h w c"],
    sizes: Sizes,
    new_sizes: Sizes,
    canvas: tuple[int, int],
    *,
    align_corners: bool = False,
) -> Float[Array, "n height width c"]:
    """Return images of different sizes, each resized as by `resize_bilinear`.

    Args:
      x: The images, each in the top left corner of its array.
      sizes: The images' heights and widths.
      new_sizes: The heights and widths of the results.
      canvas: The height and width of the returned arrays. Pixels outside an image repeat its edge.
      align_corners: See `resize_bilinear`.
    """
    for axis, size, new_size, length in zip((1, 2), sizes, new_sizes, canvas, strict=True):
        x = resize_axis_of_each(x, axis, size, new_size, length, align_corners)
    return x


def resize_axis_of_each(
    x: Float[Array, "n h w c"], axis: int, size: Int[Array, " n"], new_size: Int[Array, " n"], length: int, align_corners: bool
) -> Float[Array, "n h2 w2 c"]:
    """Return the result of `resize_each` along one axis, in the dtype of `x`.

    Args:
      x: See `resize_each`.
      axis: 1 for rows or 2 for columns.
      size, new_size: Each image's old and new length along the axis.
      length: The length of the returned arrays along the axis.
      align_corners: See `resize_bilinear`.

    Raises:
      ValueError: The arrays are too large.
    """
    if 2 * x.shape[axis] * length >= 2**31:
        raise ValueError(f"Images of {x.shape[axis]} and {length} pixels per side are too large for 32-bit sampling positions.")
    low, fraction = sample_positions(jnp.arange(length)[None], size[:, None], new_size[:, None], align_corners)
    high = jnp.minimum(low + 1, size[:, None] - 1)
    weight = jnp.expand_dims(fraction, [other for other in (1, 2, 3) if other != axis])
    first, second = take_of_each(x, low, axis), take_of_each(x, high, axis)
    return (first * (1 - weight) + second * weight).astype(x.dtype)


def take_of_each(x: Shaped[Array, "n h w c"], indices: Int[Array, "n i"], axis: int) -> Shaped[Array, "n h2 w2 c"]:
    """Return each image's pixels at its own indices along `axis` (1 for rows, 2 for columns)."""
    return jax.vmap(lambda image, chosen: jnp.take(image, chosen, axis - 1, mode="clip"))(x, indices)


def sample_positions(indices: Any, size: Any, new_size: Any, align_corners: bool) -> tuple[Any, Any]:
    """Return where output pixels are sampled along one axis, as the input pixel below and the fraction above it.

    The arguments can be NumPy or JAX integers of shapes that broadcast. The positions are computed with integers, so they are
    exact for images of up to 2**14 pixels per side.

    Args:
      indices: The output pixels.
      size, new_size: The number of input and output pixels.
      align_corners: See `resize_bilinear`.
    """
    if align_corners:
        numerator, denominator = indices * (size - 1), new_size - 1 + (new_size == 1)
    else:
        numerator, denominator = (2 * indices + 1) * size - new_size, 2 * new_size
    low = (numerator // denominator).clip(0, size - 1)
    return low, ((numerator - low * denominator) / denominator).clip(0) * (low < size - 1)
