"""The Lovász-softmax loss (Berman et al. 2018, arXiv:1705.08790), a convex surrogate of 1 - IoU."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped, UInt8

from deeplab_jax.config import LossConfig
from deeplab_jax.labels import IGNORE
from deeplab_jax.losses.loss import Mean, one_hot


def lovasz(
    logits: Float[Array, "n h w k"], labels: UInt8[Array, "n h w"], mask: Bool[Array, "n h w"], config: LossConfig
) -> Mean:
    """Return the Lovász-softmax loss, averaged over the classes in an image's labels and then over images.

    It equals lovasz_softmax(classes="present", per_image=True, ignore=255) in the authors' implementation, except that images
    without labelled pixels are skipped rather than counted with loss 0.
    """
    valid = (mask & (labels != IGNORE))[..., None]
    target = one_hot(labels, logits.shape[-1]) & valid
    error = jnp.where(valid, jnp.abs(target - jax.nn.softmax(logits)), 0.0)
    is_present = jnp.any(target, axis=(1, 2))
    class_loss = jnp.where(is_present, extend_jaccard(_flatten_pixels(error), _flatten_pixels(target)), 0.0)
    num_present = jnp.sum(is_present, axis=-1)
    image_loss = jnp.sum(class_loss, axis=-1) / jnp.maximum(num_present, 1)
    return Mean(jnp.sum(image_loss), jnp.maximum(jnp.sum(num_present > 0), 1))


def extend_jaccard(error: Float[Array, "n k p"], target: Bool[Array, "n k p"]) -> Float[Array, "n k"]:
    """Return the Lovász extension of the Jaccard loss 1 - IoU, evaluated at the pixels' errors (paper, algorithm 1).

    Each error is weighted by how much the Jaccard loss grows when the pixel is added to those with larger errors, which are
    taken to be wrong. Pixels with error 0 have no effect.
    """
    negative_error, is_target = lax.sort((-error, target.astype(jnp.int32)), num_keys=1)
    pixels = jnp.sum(is_target, axis=-1, keepdims=True)
    intersection = pixels - jnp.cumsum(is_target, axis=-1)
    union = pixels + jnp.cumsum(1 - is_target, axis=-1)
    # The differences of consecutive losses are written out, because subtracting them would lose precision.
    smaller = jnp.maximum(union - 1, 1).astype(error.dtype)
    growth = jnp.where(is_target > 0, 1 / jnp.maximum(union, 1), intersection / (smaller * jnp.maximum(union, 1)))
    return -jnp.sum(negative_error * growth, axis=-1)


def _flatten_pixels(x: Shaped[Array, "n h w k"]) -> Shaped[Array, "n k p"]:
    return jnp.moveaxis(x.reshape(len(x), -1, x.shape[-1]), -1, 1)
