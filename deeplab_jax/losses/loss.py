"""What a loss is: a function of logits, labels and mask whose value is a mean, given as its sum and its count."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped, UInt8

from deeplab_jax.config import LossConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class Mean:
    """A mean whose parts can be added up.

    Attributes:
      total: sum over what is averaged.
      count: how much that is, by number or weight; above 0, and a function of labels and mask alone.
    """

    total: Float[Array, ""]
    count: Shaped[Array, ""]


# loss(logits, labels, mask, config), written for the whole batch: micro-batches, devices and rows are the step's business.
#   logits: float32 [n, h, w, k], at the labels' size.
#   labels: uint8 [n, h, w], train ids; 255 is ignored.
#   mask: bool [n, h, w], False where there is no image: padding, which counts nowhere. (An ignored pixel does, with
#     `loss.normalizer="all"`.)
Loss = Callable[[Float[Array, "n h w k"], UInt8[Array, "n h w"], Bool[Array, "n h w"], LossConfig], Mean]


def is_class(labels: UInt8[Array, "n h w"], classes: int) -> Bool[Array, "n h w k"]:
    """Return the labels one-hot, all False for 255.

    XLA fuses the comparison into the reduction after it: no one-hot array is made, and the gradient needs no scatter.
    """
    return labels[..., None].astype(jnp.int32) == jnp.arange(classes)[None, None, None]
