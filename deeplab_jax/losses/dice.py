"""The Dice loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from deeplab_jax.config import LossConfig
from deeplab_jax.labels import IGNORE
from deeplab_jax.losses.loss import Mean, is_class


def dice(
    logits: Float[Array, "n h w k"], labels: UInt8[Array, "n h w"], mask: Bool[Array, "n h w"], config: LossConfig
) -> Mean:
    """Return 1 - 2 sum(p y) / (sum(p) + sum(y)), averaged over the classes in an image's labels, then over images.

    p is the softmax, y the one-hot label, and the sums run over the pixels of an image that are not ignored. Images without any
    do not count.

    Of one image that shows all classes it is what DiceLoss("multiclass", ignore_index=255) of segmentation_models.pytorch 0.6
    gives. That one's mean is over all classes, absent ones with loss 0, and its sums run over the batch, so that an image's
    loss depends on the images beside it.
    """
    counted = (mask & (labels != IGNORE))[..., None]
    probability = jnp.where(counted, jax.nn.softmax(logits), 0.0)
    target = is_class(labels, logits.shape[-1]) & counted
    pixels = jnp.sum(target, axis=(1, 2))
    overlap = jnp.sum(jnp.where(target, probability, 0.0), axis=(1, 2))
    # At least 1 where a class is present.
    score = 2 * overlap / jnp.maximum(jnp.sum(probability, axis=(1, 2)) + pixels, 1.0)
    is_present = pixels > 0
    present = jnp.sum(is_present, axis=-1)
    of_image = jnp.sum(jnp.where(is_present, 1 - score, 0.0), axis=-1) / jnp.maximum(present, 1)
    return Mean(jnp.sum(of_image), jnp.maximum(jnp.sum(present > 0), 1))
