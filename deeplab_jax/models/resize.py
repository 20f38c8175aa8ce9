"""Bilinear resizing, NHWC. Training uses matrix products, whereas prediction gathers neighbouring pixels."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from deeplab_jax.models.operations import AnyArray, Length, operation


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
    x = jnp.asarray(x)
    for axis, new_size in ((1, height), (2, width)):
        size = x.shape[axis]
        if size == new_size:
            continue
        positions = compute_sample_positions(size, new_size, align_corners)
        low = np.floor(positions).astype(np.int32)
        fraction = np.expand_dims(positions - low, [other for other in range(4) if other != axis]).astype(np.float32)
        x = jnp.take(x, low, axis) * (1 - fraction) + jnp.take(x, np.minimum(low + 1, size - 1), axis) * fraction
    return x


def compute_sample_positions(size: int, new_size: int, align_corners: bool) -> Float[np.ndarray, " new_size"]:
    """Return each output pixel centre's position along one axis, in units of input pixel indices."""
    if align_corners:
        return np.linspace(0.0, size - 1, new_size)
    return np.clip((np.arange(new_size) + 0.5) * (size / new_size) - 0.5, 0, size - 1)
