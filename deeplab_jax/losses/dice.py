"""The Dice loss."""

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

    p is the softmax and y the one-hot label. The sums run over the pixels of one image that are not ignored. The class mean
    runs over the classes that appear in the labels of that image. Images without any labelled pixel do not count.

    For a single image that contains all classes, the result equals DiceLoss("multiclass", ignore_index=255) in
    segmentation_models.pytorch 0.6. That implementation averages over all classes, with loss 0 for absent ones. It also sums
    over the batch, which makes the loss of an image depend on the other images.
    """
    valid = (mask & (labels != IGNORE))[..., None]
    probability = jnp.where(valid, jax.nn.softmax(logits), 0.0)
    target = one_hot(labels, logits.shape[-1]) & valid
    pixels = jnp.sum(target, axis=(1, 2))
    overlap = jnp.sum(jnp.where(target, probability, 0.0), axis=(1, 2))
    # The maximum only changes the denominator of absent classes. For a class that is present, the denominator is at least 1.
    score = 2 * overlap / jnp.maximum(jnp.sum(probability, axis=(1, 2)) + pixels, 1.0)
    is_present = pixels > 0
    num_present = jnp.sum(is_present, axis=-1)
    image_loss = jnp.sum(jnp.where(is_present, 1 - score, 0.0), axis=-1) / jnp.maximum(num_present, 1)
    return Mean(jnp.sum(image_loss), jnp.maximum(jnp.sum(num_present > 0), 1))
