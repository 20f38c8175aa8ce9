"""The decoder of DeepLabV3+ (1802.02611, sections 3.1 and 4.1), NHWC."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from deeplab_jax.models.aspp import ConvBNReLU
from deeplab_jax.models.layers import concatenate
from deeplab_jax.models.resize import resize_like


class Decoder(nn.Module):
    """The ASPP's features at the resolution of the low-level ones, which are reduced so as not to outweigh them.

    Attributes:
      features: channels of the 3x3 convolutions.
      low_level_width: channels that the low-level features are reduced to.
      align_corners: see `config.ModelConfig`.
      dtype: what the convolutions compute in.
    """

    features: int = 256
    low_level_width: int = 48
    align_corners: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], low: Float[Array, "n h1 w1 c1"], train: bool) -> Float[Array, "n h1 w1 k"]:
        """Return [n, h1, w1, features]."""
        layer = functools.partial(ConvBNReLU, dtype=self.dtype)
        low = layer(self.low_level_width, 1, name="reduce")(low, train)
        x = concatenate([resize_like(x, low, align_corners=self.align_corners), low])
        x = layer(self.features, 3, name="refine1")(x, train)
        return layer(self.features, 3, name="refine2")(x, train)
