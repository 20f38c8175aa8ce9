"""The inverted residual block of mobile backbones (Sandler et al. 2018, arXiv:1801.04381), NHWC."""

from collections.abc import Callable

from flax import linen as nn
from jaxtyping import Array, Float

from deeplab_jax.models.layers import add


class InvertedResidual(nn.Module):
    """An inverted residual block with an optional identity shortcut.

    The block consists of a 1x1 expansion to more channels, a depthwise convolution, squeeze-and-excitation and a 1x1 projection
    to fewer channels. The expansion and squeeze-and-excitation are optional.

    Attributes:
      size: The height and width of the depthwise kernel.
      expanded: The number of channels in the depthwise convolution.
      features: The number of output channels.
      stride, rate: The stride and rate of the depthwise convolution.
      has_expansion: Whether a 1x1 convolution precedes the depthwise convolution.
      is_residual: Whether the block adds its input to its output.
      activation: The activation after the expansion and the depthwise convolution.
      pads_input: Whether the pixels outside the image are zeros in front of the expansion instead of behind it.
      conv, norm: The constructors for convolution and normalisation layers.
      squeeze: The constructor for the squeeze-and-excitation layer, or None for a block without it.
    """

    size: int
    expanded: int
    features: int
    stride: int
    rate: int
    has_expansion: bool
    is_residual: bool
    activation: Callable[[Array], Array]
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    squeeze: Callable[..., nn.Module] | None = None
    pads_input: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 k"]:
        """Return features of shape [n, ceil(h / stride), ceil(w / stride), features]."""
        y, border = x, None
        if self.has_expansion:
            y = self.conv(self.expanded, name="expand_conv")(y)
            if self.pads_input:
                y, border = self.norm(returns_border=True, name="expand_bn")(y, train)
                border = self.activation(border)
            else:
                y = self.norm(name="expand_bn")(y, train)
            y = self.activation(y)
        depthwise = self.conv(self.expanded, self.size, self.stride, self.rate, self.expanded, name="depthwise_conv")
        y = depthwise(y) if border is None else depthwise(y, border)
        y = self.activation(self.norm(name="depthwise_bn")(y, train))
        if self.squeeze is not None:
            y = self.squeeze(self.conv, name="se")(y)
        y = self.conv(self.features, name="project_conv")(y)
        y = self.norm(name="project_bn")(y, train)
        return add(x, y) if self.is_residual else y


def scale_channel_count(channels: float, width: int) -> int:
    """Return a layer's number of channels at `ModelConfig.width`, a multiple of 8.

    Args:
      channels: The number at width 64, the published network.
      width: The width. Rounding to a multiple of 8 never lowers the number by more than 10 %.
    """
    return round_to_multiple_of_8(channels * width / 64)


def round_to_multiple_of_8(channels: float) -> int:
    """Return the nearest multiple of 8, or the next one if the nearest would be more than 10 % less."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
