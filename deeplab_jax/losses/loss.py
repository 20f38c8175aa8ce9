"""The loss interface: a function of (logits, labels, mask, config) that returns a mean as a sum and a count."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped, UInt8

from deeplab_jax.config import LossConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class Mean:
    """A mean stored as a sum and a count. Both can be summed over parts of a batch.

    Attributes:
      total: The sum of the values.
      count: The number of values, or the sum of their weights. It is positive and depends only on labels and mask.
    """

    total: Float[Array, ""]
    count: Shaped[Array, ""]


# The signature of every loss: loss(logits, labels, mask, config). A loss is written for the full batch, because the training
# step handles micro-batches, devices and split rows.
#   logits: float32 [n, h, w, k], at the labels' resolution.
#   labels: uint8 [n, h, w], train ids. 255 is ignored.
#   mask: bool [n, h, w], False in the padding. Unlike padding, ignored pixels are counted if `loss.normalizer="all"`.
Loss = Callable[[Float[Array, "n h w k"], UInt8[Array, "n h w"], Bool[Array, "n h w"], LossConfig], Mean]


def one_hot(labels: UInt8[Array, "n h w"], classes: int) -> Bool[Array, "n h w k"]:
    """Return the labels as one-hot booleans. A pixel with label 255 is False for every class.

    XLA fuses the comparison into the reduction that follows, so the one-hot array is never stored and the gradient needs no
    scatter.
    """
    return labels[..., None].astype(jnp.int32) == jnp.arange(classes)[None, None, None]
