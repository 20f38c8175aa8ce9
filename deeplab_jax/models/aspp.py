"""Atrous spatial pyramid pooling (DeepLabV3, 1706.05587, section 3.3), NHWC."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from deeplab_jax.models.layers import BatchNorm, Conv, at_least_float32


class ConvBNReLU(nn.Module):
    """A convolution without bias, BatchNorm, ReLU."""

    features: int
    size: int
    rate: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w k"]:
        """Returns [n, h, w, features]."""
        x = Conv(self.features, self.size, rate=self.rate, dtype=self.dtype, name="conv")(x)
        return nn.relu(BatchNorm(name="bn")(x, train))


class ASPP(nn.Module):
    """A 1x1 branch, one 3x3 branch a rate, an image-pooling branch; concatenated in that order and fused.

    Attributes:
      rates: atrous rates in pixels of the input.
      features: channels of each branch and of the result.
      fusion: see `config.ModelConfig`.
      dropout: share dropped after the first fusion convolution.
      dtype: what the convolutions compute in.
    """

    rates: tuple[int, ...]
    features: int = 256
    fusion: str = "1x1"
    dropout: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w k"]:
        """Returns [n, h, w, features]."""
        branches = [ConvBNReLU(self.features, 1, dtype=self.dtype, name="branch_1x1")(x, train)]
        for i, rate in enumerate(self.rates, start=1):
            branches.append(ConvBNReLU(self.features, 3, rate, self.dtype, name=f"branch_rate{i}")(x, train))
        # Over 65x65 bfloat16 values the mean would lose the digits that make it useful.
        pooled = jnp.mean(x, (1, 2), keepdims=True, dtype=at_least_float32(x.dtype))
        pooled = ConvBNReLU(self.features, 1, dtype=self.dtype, name="branch_pool")(pooled, train)
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        x = jnp.concatenate(branches, axis=-1)
        first, *rest = (int(part[0]) for part in self.fusion.split("+"))
        x = ConvBNReLU(self.features, first, dtype=self.dtype, name="fuse")(x, train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for size in rest:
            x = ConvBNReLU(self.features, size, dtype=self.dtype, name="refine")(x, train)
        return x
