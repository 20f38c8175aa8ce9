"""The focal loss (Lin et al. 2017, arXiv:1708.02002, equation 4), with a softmax over the classes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from deeplab_jax.config import LossConfig
from deeplab_jax.labels import IGNORE
from deeplab_jax.losses.loss import Mean, one_hot


def focal(
    logits: Float[Array, "n h w k"], labels: UInt8[Array, "n h w"], mask: Bool[Array, "n h w"], config: LossConfig
) -> Mean:
    """Return the focal loss -(1 - p)^gamma log p, averaged over all non-ignored pixels.

    Here, p is the softmax probability of a pixel's class and gamma is `config.focal_gamma`. It equals PaddleSeg's
    MultiClassFocalLoss. (The focal losses of mmsegmentation and segmentation_models.pytorch have a sigmoid for each class.)
    """
    valid = mask & (labels != IGNORE)
    log_p = jnp.sum(jnp.where(one_hot(labels, logits.shape[-1]), jax.nn.log_softmax(logits), 0.0), axis=-1)
    # The bound keeps the gradient finite where p is 1.
    rest = jnp.maximum(-jnp.expm1(log_p), jnp.finfo(log_p.dtype).eps)
    return Mean(jnp.sum(jnp.where(valid, -(rest**config.focal_gamma) * log_p, 0.0)), jnp.maximum(jnp.sum(valid), 1))
