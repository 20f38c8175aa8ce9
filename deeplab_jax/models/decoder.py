"""The DeepLabV3+ decoder (arXiv:1802.02611, sections 3.1 and 4.1), NHWC."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from deeplab_jax.models.aspp import ConvBNReLU
from deeplab_jax.models.layers import Dropout, concatenate
from deeplab_jax.models.resize import resize_like


class Decoder(nn.Module):
    """A decoder that upsamples the ASPP features and refines them with low-level features.

    The low-level features are first reduced to fewer channels so that they do not outweigh the ASPP features.

    Attributes:
      features: The number of output channels in the 3x3 convolutions.
      low_level_width: The number of low-level channels after the reduction.
      conv: The kind of the 3x3 convolutions; see `ConvBNReLU`.
      depth: The number of 3x3 convolutions.
      use_bias: Whether the convolutions have a bias.
      dropout: The dropout rate after the last convolution.
      align_corners: Whether to align corners when resizing; see `config.ModelConfig`.
      dtype: The compute dtype of the convolutions.
    """

    features: int = 256
    low_level_width: int = 48
    conv: str = "3x3"
    depth: int = 2
    use_bias: bool = False
    dropout: float = 0.0
    align_corners: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], low: Float[Array, "n h1 w1 c1"], train: bool) -> Float[Array, "n h1 w1 k"]:
        """Return features of shape [n, h1, w1, features]."""
        layer = functools.partial(ConvBNReLU, use_bias=self.use_bias, dtype=self.dtype)
        low = layer(self.low_level_width, "1x1", name="reduce")(low, train)
        x = concatenate([resize_like(x, low, align_corners=self.align_corners), low])
        for i in range(1, self.depth + 1):
            x = layer(self.features, self.conv, name=f"refine{i}")(x, train)
        return Dropout(self.dropout)(x, train)
