"""Atrous spatial pyramid pooling (DeepLabV3, arXiv:1706.05587, section 3.3), NHWC."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from deeplab_jax.models.layers import BatchNorm, Conv, Dropout, broadcast_like, concatenate, image_mean, relu


class ConvBNReLU(nn.Module):
    """A bias-free convolution, followed by BatchNorm and ReLU."""

    features: int
    size: int
    rate: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w k"]:
        """Return features of shape [n, h, w, features]."""
        x = Conv(self.features, self.size, rate=self.rate, dtype=self.dtype, name="conv")(x)
        return relu(BatchNorm(name="bn")(x, train))


class ASPP(nn.Module):
    """The ASPP head: a 1x1 branch, one 3x3 branch per rate and an image-pooling branch.

    The branches are concatenated in this order and then fused.

    Attributes:
      rates: The atrous rates, in input pixels.
      features: The number of channels in each branch and in the output.
      fusion: The convolutions after the concatenation; see `config.ModelConfig`.
      dropout: The dropout rate after the first fusion convolution.
      dtype: The compute dtype of the convolutions.
    """

    rates: tuple[int, ...]
    features: int = 256
    fusion: str = "1x1"
    dropout: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w k"]:
        """Return features of shape [n, h, w, features]."""
        layer = functools.partial(ConvBNReLU, dtype=self.dtype)
        branches = [layer(self.features, 1, name="branch_1x1")(x, train)]
        for i, rate in enumerate(self.rates, start=1):
            branches.append(layer(self.features, 3, rate, name=f"branch_rate{i}")(x, train))
        pooled = layer(self.features, 1, name="branch_pool")(image_mean(x), train)
        branches.append(broadcast_like(pooled, branches[0]))
        first, *rest = (int(part[0]) for part in self.fusion.split("+"))
        x = layer(self.features, first, name="fuse")(concatenate(branches), train)
        x = Dropout(self.dropout)(x, train)
        for size in rest:
            x = layer(self.features, size, name="refine")(x, train)
        return x
