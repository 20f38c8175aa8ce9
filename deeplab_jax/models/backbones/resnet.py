"""Dilated residual networks (He et al. 2015, 1512.03385; dilation as in DeepLabV3, 1706.05587, section 3.1), NHWC.

The deep stem and the pooled shortcut are those of He et al. 2018 (1812.01187): ResNet-C and -D.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from deeplab_jax.models.extent import Rows
from deeplab_jax.models.layers import BatchNorm, Conv, add_relu, average_pool_2x2, max_pool_3x3
from deeplab_jax.models.stages import Dilation, Features, stage_dilations

# Blocks a stage, and whether they are bottlenecks.
DEPTHS: dict[str, tuple[tuple[int, int, int, int], bool]] = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the first of which has stride and rate, and a shortcut."""

    features: int
    dilation: Dilation
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    pool: Callable[..., Array] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 k"]:
        """Returns [n, ceil(h / stride), ceil(w / stride), features]."""
        y = self.conv(self.features, 3, self.dilation.stride, self.dilation.rate, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train))
        y = self.conv(self.features, 3, 1, self.dilation.inner_rate, name="conv2")(y)
        y = self.norm(name="bn2")(y, train)
        return add_relu(y, _shortcut(x, self, self.features, train))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which holds the stride and the rate, as in torchvision) and 1x1 to four times `features`; a shortcut."""

    features: int
    dilation: Dilation
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    pool: Callable[..., Array] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 k"]:
        """Returns [n, ceil(h / stride), ceil(w / stride), 4 * features]."""
        y = self.conv(self.features, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train))
        y = self.conv(self.features, 3, self.dilation.stride, self.dilation.rate, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y, train))
        y = self.conv(4 * self.features, name="conv3")(y)
        y = self.norm(name="bn3")(y, train)
        return add_relu(y, _shortcut(x, self, 4 * self.features, train))


def _shortcut(x: Array, block: BasicBlock | Bottleneck, features: int, train: bool) -> Array:
    """Identity, or a 1x1 convolution where the shape changes, whose layers belong to `block`; perhaps a pool before it."""
    stride = block.dilation.stride
    if stride == 1 and x.shape[-1] == features:
        return x
    if block.pool and block.dilation.shortcut_rate:
        x, stride = block.pool(x, stride, block.dilation.shortcut_rate), 1
    x = block.conv(features, stride=stride, name="downsample_conv")(x)
    return block.norm(name="downsample_bn")(x, train)


class ResNet(nn.Module):
    """A dilated ResNet's features, those of its first, third and last stage.

    Attributes:
      depth: a key of `DEPTHS`.
      width: channels of the first stage.
      stem, shortcut: see `config.ModelConfig`.
      output_stride: 8, 16 or 32; stages beyond it trade their stride for a rate.
      multi_grid, dilate_conv2: see `config.ModelConfig`.
      dtype: what the convolutions compute in.
      remat: stages, from 1, whose blocks are computed again in the backward pass.
      rows: see `convolution.conv2d`.
    """

    depth: str
    width: int = 64
    stem: str = "7x7"
    shortcut: str = "1x1"
    output_stride: int = 16
    multi_grid: tuple[float, ...] = (0.5, 1.0, 1.0)
    dilate_conv2: bool = True
    dtype: Any = jnp.float32
    remat: tuple[int, ...] = ()
    rows: Rows | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 3"], train: bool) -> Features:
        """Returns features at strides 4, min(16, output_stride) and `output_stride`."""
        blocks, is_bottleneck = DEPTHS[self.depth]
        conv = functools.partial(Conv, dtype=self.dtype, rows=self.rows)
        norm = functools.partial(BatchNorm, rows=self.rows)
        pool = functools.partial(average_pool_2x2, rows=self.rows) if self.shortcut == "avgpool+1x1" else None
        x = max_pool_3x3(self._stem(x, train, conv, norm), self.rows)
        stages = []
        dilations = stage_dilations(blocks, self.output_stride, self.multi_grid, dilate_conv2=self.dilate_conv2)
        for i, stage in enumerate(dilations):
            block = Bottleneck if is_bottleneck else BasicBlock
            if i + 1 in self.remat:
                block = nn.remat(block, static_argnums=(2,))
            make = functools.partial(block, conv=conv, norm=norm, pool=pool)
            for j, dilation in enumerate(stage):
                name = f"stage{i + 1}_block{j + 1}"
                x = make(features=self.width * 2**i, dilation=dilation, name=name)(x, train)
            stages.append(x)
        return Features(stages[0], stages[2], stages[3])

    def _stem(self, x: Array, train: bool, conv: Callable[..., nn.Module], norm: Callable[..., nn.Module]) -> Array:
        if self.stem == "7x7":
            x = conv(self.width, 7, 2, name="stem_conv")(x)
            return nn.relu(norm(name="stem_bn")(x, train))
        for i, (features, stride) in enumerate(((self.width // 2, 2), (self.width // 2, 1), (self.width, 1)), start=1):
            x = conv(features, 3, stride, name=f"stem_conv{i}")(x)
            x = nn.relu(norm(name=f"stem_bn{i}")(x, train))
        return x
