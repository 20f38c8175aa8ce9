"""Segmentation losses: a sum and the number of pixels it is over, so that any share of a batch can be added up."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from deeplab_jax.labels import IGNORE


def cross_entropy(
    logits: Float[Array, "n h w k"], labels: UInt8[Array, "n h w"], mask: Bool[Array, "n h w"]
) -> Float[Array, ""]:
    """Softmax cross-entropy summed over the pixels of `mask`, in nats.

    Args:
      logits: float32, at the labels' size.
      labels: train ids; what is outside `mask` is never read.
      mask: which pixels count, see `valid_pixels`.
    """
    # A comparison that XLA fuses into the reductions: no one-hot array is made, and the gradient needs no scatter.
    hit = labels[..., None].astype(jnp.int32) == jnp.arange(logits.shape[-1])[None, None, None]
    picked = jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
    return jnp.sum(jnp.where(mask, jax.nn.logsumexp(logits, axis=-1) - picked, 0.0))


def valid_pixels(labels: UInt8[Array, "n h w"], valid: Bool[Array, " n"]) -> Bool[Array, "n h w"]:
    """True where the label is not 255 and the row is no padding."""
    return (labels != IGNORE) & valid[:, None, None]


def normalizer(mask: Bool[Array, "n h w"]) -> Int[Array, ""]:
    """Number of pixels of the global batch that count, at least 1: a batch without any has loss 0, not nan."""
    return jnp.maximum(jnp.sum(mask), 1)
