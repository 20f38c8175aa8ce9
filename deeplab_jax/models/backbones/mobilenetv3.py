"""A dilated MobileNetV3-Large (Howard et al. 2019, 1905.02244, table 1), as torchvision has it, NHWC."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from deeplab_jax.config import ModelConfig
from deeplab_jax.errors import CheckpointError
from deeplab_jax.models.layers import BatchNorm, Conv, add, hard_sigmoid, hard_swish, image_mean, relu, scale_channels
from deeplab_jax.models.stages import Backbone, Features, Shapes, stage_dilations

EPSILON, MOMENTUM = 1e-3, 0.99  # of its BatchNorm


class BlockConfig(NamedTuple):
    """What a block is, whatever precedes it.

    Attributes:
      size: of the depthwise kernel.
      expanded: channels of the depthwise convolution.
      features: channels that the block gives.
      squeezes: whether it has squeeze-and-excitation.
      is_hard_swish: its activation, instead of ReLU.
    """

    size: int
    expanded: int
    features: int
    squeezes: bool
    is_hard_swish: bool


class Block(NamedTuple):
    """A block in its place.

    Attributes:
      config: with the channels of this network.
      expands: whether a 1x1 convolution precedes the depthwise one.
      is_residual: whether its input is added.
    """

    config: BlockConfig
    expands: bool
    is_residual: bool


# At width 64.
STEM = BlockConfig(3, 16, 16, False, False)
STAGES = (
    (BlockConfig(3, 64, 24, False, False), BlockConfig(3, 72, 24, False, False)),
    (BlockConfig(5, 72, 40, True, False), BlockConfig(5, 120, 40, True, False), BlockConfig(5, 120, 40, True, False)),
    (
        BlockConfig(3, 240, 80, False, True),
        BlockConfig(3, 200, 80, False, True),
        BlockConfig(3, 184, 80, False, True),
        BlockConfig(3, 184, 80, False, True),
        BlockConfig(3, 480, 112, True, True),
        BlockConfig(3, 672, 112, True, True),
    ),
    (BlockConfig(5, 672, 160, True, True), BlockConfig(5, 960, 160, True, True), BlockConfig(5, 960, 160, True, True)),
)
LAST_EXPANSION = 6  # of the 1x1 convolution after the last block


def scaled(channels: int, width: int) -> int:
    """Channels of a network of `width`, a multiple of 8 no more than a tenth below width / 64 of those."""
    return _divisible(channels * width / 64)


def _divisible(channels: float) -> int:
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class SqueezeExcitation(nn.Module):
    """Scales each channel by a function of the means of all (Hu et al. 2017, 1709.01507)."""

    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Return x, scaled by 0 to 1."""
        channels = x.shape[-1]
        layer = functools.partial(self.conv, use_bias=True)
        squeezed = relu(layer(_divisible(channels // 4), name="reduce")(image_mean(x)))
        return scale_channels(x, hard_sigmoid(layer(channels, name="expand")(squeezed)))


class InvertedResidual(nn.Module):
    """1x1 to more channels, a depthwise convolution, squeeze-and-excitation, 1x1 to fewer; an optional identity beside it.

    Attributes:
      block: its form.
      stride, rate: of the depthwise convolution.
      conv, norm: make a layer.
    """

    block: Block
    stride: int
    rate: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 k"]:
        """Return [n, ceil(h / stride), ceil(w / stride), block.config.features]."""
        size, expanded, features, squeezes, is_hard_swish = self.block.config
        activation = hard_swish if is_hard_swish else relu
        y = x
        if self.block.expands:
            y = self.conv(expanded, name="expand_conv")(y)
            y = activation(self.norm(name="expand_bn")(y, train))
        y = self.conv(expanded, size, self.stride, self.rate, expanded, name="depthwise_conv")(y)
        y = activation(self.norm(name="depthwise_bn")(y, train))
        if squeezes:
            y = SqueezeExcitation(self.conv, name="se")(y)
        y = self.conv(features, name="project_conv")(y)
        y = self.norm(name="project_bn")(y, train)
        return add(x, y) if self.block.is_residual else y


def blocks_of(width: int) -> list[list[Block]]:
    """By stage, the stem's block before the first."""
    channels, stages = scaled(STEM.features, width), []
    for i, stage in enumerate(((STEM,), *STAGES)):
        blocks = []
        for j, config in enumerate(stage):
            own = config._replace(expanded=scaled(config.expanded, width), features=scaled(config.features, width))
            # A stage's first block has a stride, or had one before it was dilated.
            keeps_grid = i == 0 or j > 0
            blocks.append(Block(own, own.expanded != channels, keeps_grid and own.features == channels))
            channels = own.features
        stages.append(blocks)
    return stages


class MobileNetV3(nn.Module):
    """Its features, of three stages; the auxiliary ones are those of torchvision's segmentation network, at stride 8.

    Attributes:
      config: of the network; see `scaled` for widths.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 3"], train: bool) -> Features:
        """Return features at strides 4, 8 and `output_stride`."""
        c = self.config
        conv = functools.partial(Conv, dtype=jnp.dtype(c.dtype))
        norm = functools.partial(BatchNorm, momentum=MOMENTUM, epsilon=EPSILON)
        (stem,), *stages = blocks_of(c.width)
        x = conv(scaled(STEM.features, c.width), 3, 2, name="stem_conv")(x)
        x = hard_swish(norm(name="stem_bn")(x, train))
        x = InvertedResidual(stem, 1, 1, conv, norm, name="stem_block")(x, train)
        dilations = stage_dilations([len(stage) for stage in stages], c, stem_stride=2)
        by_stage = []
        for i, (stage, own) in enumerate(zip(stages, dilations, strict=True), start=1):
            make: Any = nn.remat(InvertedResidual, static_argnums=(2,)) if i in c.remat else InvertedResidual
            outputs = []
            for j, (block, dilation) in enumerate(zip(stage, own, strict=True), start=1):
                name = f"stage{i}_block{j}"
                x = make(block, dilation.stride, dilation.rate, conv, norm, name=name)(x, train)
                outputs.append(x)
            by_stage.append(outputs)
        last = conv(LAST_EXPANSION * x.shape[-1], name="stage4_conv")(x)
        last = hard_swish(norm(name="stage4_bn")(last, train))
        return Features(low=by_stage[0][-1], aux=by_stage[1][0], last=last)


MARK = "15.block.2.fc1.weight"  # a tensor of the last block, which torchvision's MobileNetV3-Large alone has


def tensor_names(config: ModelConfig, source: str) -> dict[str, str]:
    """Return torchvision's names, which number the parts: the stem, its block, all others, the last convolution."""
    names = {"stem_conv": "0.0", "stem_bn": "0.1"}
    (stem,), *stages = blocks_of(config.width)
    blocks = {"stem_block": stem}
    blocks |= {f"stage{i}_block{j}": block for i, stage in enumerate(stages, 1) for j, block in enumerate(stage, 1)}
    for number, (ours, block) in enumerate(blocks.items(), start=1):
        parts = ["expand"] * block.expands + ["depthwise"] + ["se"] * block.config.squeezes + ["project"]
        for i, part in enumerate(parts):
            pair = ("se/reduce", "se/expand") if part == "se" else (f"{part}_conv", f"{part}_bn")
            theirs = ("fc1", "fc2") if part == "se" else ("0", "1")
            names |= {f"{ours}/{a}": f"{number}.block.{i}.{b}" for a, b in zip(pair, theirs, strict=True)}
    last = len(blocks) + 1
    return names | {"stage4_conv": f"{last}.0", "stage4_bn": f"{last}.1"}


def recognize(shapes: Shapes) -> dict[str, Any] | None:
    """Return the fields of a MobileNetV3-Large: the width whose blocks have these channels.

    All are multiples of 8, so that neighbouring widths share most of them.
    """
    if MARK not in shapes:
        return None
    channels = tuple(shapes.get(name, (0,))[0] for name in ("0.0.weight", "15.block.0.0.weight", "16.0.weight"))
    last = STAGES[-1][-1]
    # The widest layer differs between all even widths.
    width = max(2, 2 * round(channels[1] * 64 / last.expanded / 2))
    if channels != (scaled(STEM.features, width), scaled(last.expanded, width), LAST_EXPANSION * scaled(last.features, width)):
        stem, expanded, wide = channels
        raise CheckpointError(
            f"has a MobileNetV3-Large of {stem}, {expanded} and {wide} channels (stem, last expansion, last "
            "convolution), which no even model.width gives: give weights of another width"
        )
    return {"backbone": "mobilenetv3_large", "width": width}


# torchvision dilates one stage, its first block included.
TORCHVISION = {
    "name": "mobilenet_v3_large",
    "output_stride": 16,
    "multi_grid": (1.0, 1.0, 1.0),
    "atrous_rates": (12, 24, 36),
}


BACKBONES = {
    "mobilenetv3_large": Backbone(
        make=functools.partial(MobileNetV3, name="backbone"),
        blocks=(2, 3, 6, 3),
        switches=frozenset(),
        tensor_names=tensor_names,
        recognize=recognize,
        references={"torchvision": TORCHVISION},
    )
}
