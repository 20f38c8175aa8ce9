"""Atrous spatial pyramid pooling (DeepLabV3, arXiv:1706.05587, section 3.3), NHWC."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from deeplab_jax.models.layers import BatchNorm, Conv, Dropout, broadcast_like, concatenate, image_mean, relu


class ConvBNReLU(nn.Module):
    """A convolution, followed by BatchNorm and ReLU.

    Attributes:
      features: The number of output channels.
      kind: `1x1`, `3x3`, or the layers of a depthwise separable convolution, such as `depthwise+bn+1x1`. The depthwise
        convolution is 3x3.
      rate: The atrous rate of the 3x3 convolution.
      use_bias: Whether the convolutions have a bias.
      dtype: The compute dtype of the convolutions.
    """

    features: int
    kind: str
    rate: int = 1
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w k"]:
        """Return features of shape [n, h, w, features]."""
        *layers, last = self.kind.split("+")
        conv = functools.partial(Conv, use_bias=self.use_bias, dtype=self.dtype)
        for layer in layers:
            if layer == "depthwise":
                channels = x.shape[-1]
                x = conv(channels, 3, rate=self.rate, groups=channels, name="depthwise")(x)
            else:
                x = BatchNorm(name="depthwise_bn")(x, train) if layer == "bn" else relu(x)
        rate = 1 if layers else self.rate
        x = conv(self.features, int(last[0]), rate=rate, name="conv")(x)
        return relu(BatchNorm(name="bn")(x, train))


class ASPP(nn.Module):
    """The ASPP head: a 1x1 branch, one 3x3 branch per rate and an image-pooling branch.

    The branches are concatenated in this order and then fused.

    Attributes:
      rates: The atrous rates, in input pixels.
      features: The number of channels in each branch and in the output.
      conv: The kind of convolution in the 3x3 branches; see `ConvBNReLU`.
      fusion: The convolutions after the concatenation; see `config.ModelConfig`.
      use_bias: Whether the convolutions have a bias, except for the one in the image-pooling branch.
      dropout: The dropout rate after the first fusion convolution.
      dtype: The compute dtype of the convolutions.
    """

    rates: tuple[int, ...]
    features: int = 256
    conv: str = "3x3"
    fusion: str = "1x1"
    use_bias: bool = False
    dropout: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w k"]:
        """Return features of shape [n, h, w, features]."""
        layer = functools.partial(ConvBNReLU, use_bias=self.use_bias, dtype=self.dtype)
        branches = [layer(self.features, "1x1", name="branch_1x1")(x, train)]
        for i, rate in enumerate(self.rates, start=1):
            branches.append(layer(self.features, self.conv, rate, name=f"branch_rate{i}")(x, train))
        pooled = layer(self.features, "1x1", use_bias=False, name="branch_pool")(image_mean(x), train)
        branches.append(broadcast_like(pooled, branches[0]))
        first, _, rest = self.fusion.partition("+")
        x = layer(self.features, first, name="fuse")(concatenate(branches), train)
        x = Dropout(self.dropout)(x, train)
        return layer(self.features, rest, name="refine")(x, train) if rest else x
