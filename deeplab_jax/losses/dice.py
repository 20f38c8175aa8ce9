"""The multi-class Dice loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from deeplab_jax.config import LossConfig
from deeplab_jax.labels import IGNORE
from deeplab_jax.losses.loss import Mean, one_hot


def dice(
    logits: Float[Array, "n h w k"], labels: UInt8[Array, "n h w"], mask: Bool[Array, "n h w"], config: LossConfig
) -> Mean:
    """Return the Dice loss: 1 - 2 sum(p y) / (sum(p) + sum(y)), averaged over classes and then over images.

    Here, p is the softmax and y is the one-hot label. The sums run over one image's non-ignored pixels, and the class mean runs
    over the classes present in that image's labels. Images without labelled pixels are skipped.

    For a single image with all classes present, the result equals DiceLoss("multiclass", ignore_index=255) in
    segmentation_models.pytorch 0.6. Unlike this function, that implementation averages over all classes, with loss 0 for absent
    ones. It also sums over the batch, so each image's loss depends on the other images.
    """
    valid = (mask & (labels != IGNORE))[..., None]
    probability = jnp.where(valid, jax.nn.softmax(logits), 0.0)
    target = one_hot(labels, logits.shape[-1]) & valid
    pixels = jnp.sum(target, axis=(1, 2))
    overlap = jnp.sum(jnp.where(target, probability, 0.0), axis=(1, 2))
    # The maximum only affects absent classes, because the denominator is at least 1 for every class that is present.
    score = 2 * overlap / jnp.maximum(jnp.sum(probability, axis=(1, 2)) + pixels, 1.0)
    is_present = pixels > 0
    num_present = jnp.sum(is_present, axis=-1)
    image_loss = jnp.sum(jnp.where(is_present, 1 - score, 0.0), axis=-1) / jnp.maximum(num_present, 1)
    return Mean(jnp.sum(image_loss), jnp.maximum(jnp.sum(num_present > 0), 1))
