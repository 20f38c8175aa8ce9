"""The interface of a loss: a function of logits, labels and mask that returns a mean as its sum and its count."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped, UInt8

from deeplab_jax.config import LossConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class Mean:
    """A mean, stored as a sum and a count that can be added up over the parts of a batch.

    Attributes:
      total: The sum of the averaged values.
      count: The number of averaged values, or the sum of their weights. It is positive and depends only on labels and mask.
    """

    total: Float[Array, ""]
    count: Shaped[Array, ""]


# The signature of every loss: loss(logits, labels, mask, config). A loss is written for the full batch. The training step
# takes care of micro-batches, devices and split rows.
#   logits: float32 [n, h, w, k], at the size of the labels.
#   labels: uint8 [n, h, w], train ids. 255 is ignored.
#   mask: bool [n, h, w], False in the padding. Padding never counts; an ignored pixel does with `loss.normalizer="all"`.
Loss = Callable[[Float[Array, "n h w k"], UInt8[Array, "n h w"], Bool[Array, "n h w"], LossConfig], Mean]


def one_hot(labels: UInt8[Array, "n h w"], classes: int) -> Bool[Array, "n h w k"]:
    """Return the labels as one-hot booleans. A pixel with label 255 is False for every class.

    XLA fuses the comparison into the reduction that follows. The one-hot array is therefore never stored, and the gradient
    needs no scatter.
    """
    return labels[..., None].astype(jnp.int32) == jnp.arange(classes)[None, None, None]
