"""Bilinear resizing of logits, NHWC: by matrices where gradients are wanted, by neighbours for predictions."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from deeplab_jax.models.operations import AnyArray, Length, operation


@operation
def resize_like(
    x: Float[Array, "n h w c"], like: Shaped[Array, "n height width _"], *, align_corners: bool = False, by_gather: bool = False
) -> Float[Array, "n height width c"]:
    """Resize to the height and width of `like`, bilinearly; see `resize_bilinear` and `resize_by_gather`."""
    resize = resize_by_gather if by_gather else resize_bilinear
    return resize(x, *like.shape[1:3], align_corners=align_corners)


def resize_bilinear(
    x: Float[AnyArray, "n h w c"], height: Length, width: Length, *, align_corners: bool = False
) -> Float[Array, "n height width c"]:
    """Resize bilinearly, without antialiasing, as both references do.

    Args:
      x: what to resize.
      height, width: of the result.
      align_corners: PyTorch's: the centres of the corner pixels coincide, rather than the pixels' outer corners.
    """
    shape = (x.shape[0], height, width, x.shape[3])
    if not align_corners:
        return jax.image.resize(x, shape, "bilinear", antialias=False)
    scale, shift = jnp.stack([_aligned(x.shape[axis], shape[axis]) for axis in (1, 2)], axis=1)
    return jax.image.scale_and_translate(x, shape, (1, 2), scale, shift, "bilinear", antialias=False)


def _aligned(size: Length, new_size: Length) -> Float[Array, "2"]:
    """Return [scale, translation] of pixel corners under which output pixel i lies at i (size - 1) / (new_size - 1)."""
    old, new = jnp.asarray(size, jnp.float32), jnp.asarray(new_size, jnp.float32)  # which may be symbolic: no `if`
    scale = jnp.where(new > 1, (new - 1) / jnp.maximum(old - 1, 1), 1.0)
    return jnp.where(old > 1, jnp.stack([scale, 0.5 - 0.5 * scale]), jnp.stack([new, jnp.zeros_like(new)]))


def resize_by_gather(
    x: Float[AnyArray, "n h w c"], height: Length, width: Length, *, align_corners: bool = False
) -> Float[Array, "n height width c"]:
    """Do what `resize_bilinear` does, for predictions: each value is read from its neighbours, not multiplied by a matrix.

    XLA fuses it into an argmax, and its time does not grow with the source (benchmarks/NOTES.md); its gradient is slower.
    Symbolic sizes fall back to `resize_bilinear`.
    """
    if not all(isinstance(size, int) for size in (*x.shape[1:3], height, width)):
        return resize_bilinear(x, height, width, align_corners=align_corners)
    x = jnp.asarray(x)
    for axis, new_size in ((1, height), (2, width)):
        size = x.shape[axis]
        if size == new_size:
            continue
        at = sampled_at(size, new_size, align_corners)
        low = np.floor(at).astype(np.int32)
        share = np.expand_dims(at - low, [other for other in range(4) if other != axis]).astype(np.float32)
        x = jnp.take(x, low, axis) * (1 - share) + jnp.take(x, np.minimum(low + 1, size - 1), axis) * share
    return x


def sampled_at(size: int, new_size: int, align_corners: bool) -> Float[np.ndarray, " new_size"]:
    """Return where the centres of the new pixels lie, in the old ones' indices."""
    if align_corners:
        return np.linspace(0.0, size - 1, new_size)
    return np.clip((np.arange(new_size) + 0.5) * (size / new_size) - 0.5, 0, size - 1)
