"""A dilated network of inverted residual blocks, the common design of MobileNetV2 and EfficientNet-Lite, NHWC."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from deeplab_jax.config import ModelConfig
from deeplab_jax.models.convolution import Padding
from deeplab_jax.models.inverted_residual import InvertedResidual, scale_channel_count
from deeplab_jax.models.layers import BatchNorm, Conv, relu6
from deeplab_jax.models.stages import Dilation, Features, Shapes, rematerialize, stage_dilations

EXPANSION = 6


class Group(NamedTuple):
    """Consecutive blocks with the same number of output channels.

    Attributes:
      blocks: The number of blocks.
      size: The height and width of the depthwise kernels.
      features: The number of output channels at width 64, before it is rounded to a multiple of 8.
    """

    blocks: int
    size: int
    features: float


class Design(NamedTuple):
    """The settings that distinguish one network of this kind from another.

    Attributes:
      stem_features: The number of channels after the first convolution at width 64.
      stages: The groups in each stage. The first tuple holds the stem group, whose blocks have stride 1 and no expansion.
      padding: The kind of padding; see `convolution.conv2d`.
      epsilon, momentum: The BatchNorm settings.
      last_features: The number of channels after a 1x1 convolution that follows the blocks, or 0 for none. It is larger at a
        width above 64, but never smaller.
      pads_input: Whether every block pads its input with zeros, so that what its depthwise convolution reads outside the image
        went through the expansion. The first convolution then has no padding.
    """

    stem_features: int
    stages: tuple[tuple[Group, ...], ...]
    padding: Padding = "symmetric"
    epsilon: float = 1e-5
    momentum: float = 0.9
    last_features: int = 0
    pads_input: bool = False


class Block(NamedTuple):
    """A block's settings that do not depend on the output stride.

    Attributes:
      group: The number of the block's group in the network. The stem group is 0.
      position: The number of the block in its group.
      size: The height and width of the depthwise kernel.
      features: The number of output channels.
    """

    group: int
    position: int
    size: int
    features: int


def list_blocks(design: Design, width: int) -> list[list[Block]]:
    """Return the blocks in each stage at the given width. The first list holds the stem blocks."""
    stages, group = [], 0
    for stage in design.stages:
        blocks: list[Block] = []
        for count, size, features in stage:
            channels = scale_channel_count(features, width)
            blocks += [Block(group, position, size, channels) for position in range(count)]
            group += 1
        stages.append(blocks)
    return stages


class MobileNetwork(nn.Module):
    """A dilated network of inverted residual blocks that returns features from three stages.

    Attributes:
      config: The network config. For the effect of `width`, see `scale_channel_count`.
      design: The settings of this network.
    """

    config: ModelConfig
    design: Design

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Features:
        """Return the features at strides 4, min(16, output_stride) and `output_stride`."""
        c, design = self.config, self.design
        conv = functools.partial(Conv, dtype=jnp.dtype(c.dtype), padding=design.padding)
        norm = functools.partial(BatchNorm, momentum=design.momentum, epsilon=design.epsilon)
        (stem,), *stages = list_blocks(design, c.width)
        stem_conv = functools.partial(conv, padding="valid") if design.pads_input else conv
        x = stem_conv(scale_channel_count(design.stem_features, c.width), 3, 2, name="stem_conv")(x)
        x = relu6(norm(name="stem_bn")(x, train))
        settings: dict[str, Any] = {"activation": relu6, "conv": conv, "norm": norm, "pads_input": design.pads_input}
        stem_block = functools.partial(InvertedResidual, **settings, name="stem_block")
        x = _make_block(stem_block, stem, x.shape[-1], Dilation(1, 1, 1, 0), keeps_grid=True)(x, train)
        dilations = stage_dilations([len(stage) for stage in stages], c, stem_stride=2)
        outputs = []
        for i, (stage, stage_dilation) in enumerate(zip(stages, dilations, strict=True), start=1):
            kind = functools.partial(rematerialize(InvertedResidual, i, c), **settings)
            for j, (block, dilation) in enumerate(zip(stage, stage_dilation, strict=True), start=1):
                named = functools.partial(kind, name=f"stage{i}_block{j}")
                # The first block in a stage is never residual, because it is strided in the undilated network.
                x = _make_block(named, block, x.shape[-1], dilation, keeps_grid=j > 1)(x, train)
            outputs.append(x)
        last = outputs[3]
        if design.last_features:
            last = conv(_count_last_features(design, c.width), name="stage4_conv")(last)
            last = relu6(norm(name="stage4_bn")(last, train))
        return Features(low=outputs[0], aux=outputs[2], last=last)


def _make_block(
    kind: Callable[..., nn.Module], block: Block, channels: int, dilation: Dilation, *, keeps_grid: bool
) -> nn.Module:
    """Return a block that reads features with the given number of channels."""
    return kind(
        size=block.size,
        expanded=channels * (EXPANSION if block.group else 1),
        features=block.features,
        stride=dilation.stride,
        rate=dilation.rate,
        has_expansion=block.group > 0,
        is_residual=keeps_grid and block.features == channels,
    )


def _count_last_features(design: Design, width: int) -> int:
    return scale_channel_count(design.last_features, max(width, 64))


# A function of (number of a block in the network, block). It returns the names of the block's convolutions and those of its
# BatchNorm layers. Each are two, or three with an expansion.
BlockNames = Callable[[int, Block], tuple[Sequence[str], Sequence[str]]]


def name_blocks(design: Design, width: int, names: BlockNames) -> dict[str, str]:
    """Return a dict mapping the names of the layers in our blocks to a source's."""
    layers: dict[str, str] = {}
    for number, (ours, block) in enumerate(_iterate_blocks(design, width)):
        parts = ["expand"] * (block.group > 0) + ["depthwise", "project"]
        convs, norms = names(number, block)
        layers |= {f"{ours}/{part}_conv": theirs for part, theirs in zip(parts, convs, strict=True)}
        layers |= {f"{ours}/{part}_bn": theirs for part, theirs in zip(parts, norms, strict=True)}
    return layers


def timm_names(design: Design, width: int) -> dict[str, str]:
    """Return a dict mapping the names of our layers to timm's, which all networks of this kind share."""

    def name_block(_: int, block: Block) -> tuple[list[str], list[str]]:
        convs = ["conv_pw", "conv_dw", "conv_pwl"] if block.group else ["conv_dw", "conv_pw"]
        prefix = f"blocks.{block.group}.{block.position}."
        return [prefix + conv for conv in convs], [f"{prefix}bn{i}" for i, _ in enumerate(convs, start=1)]

    names = {"stem_conv": "conv_stem", "stem_bn": "bn1"} | name_blocks(design, width, name_block)
    return names | ({"stage4_conv": "conv_head", "stage4_bn": "bn2"} if design.last_features else {})


def _iterate_blocks(design: Design, width: int) -> Iterator[tuple[str, Block]]:
    """Yield each block's name in our network and its settings."""
    (stem,), *stages = list_blocks(design, width)
    yield "stem_block", stem
    for i, stage in enumerate(stages, start=1):
        for j, block in enumerate(stage, start=1):
            yield f"stage{i}_block{j}", block


def find_width(shapes: Shapes, design: Design, layers: Mapping[str, str]) -> int | None:
    """Return the width of a network in a weights file, or None if the file has a network of another design.

    Args:
      shapes: The tensor shapes, without the backbone prefix.
      design: The expected design.
      layers: A dict mapping the names of our layers to those in the file.
    """
    kernels = {name: shape for name, shape in shapes.items() if len(shape) == 4}
    blocks = dict(_iterate_blocks(design, 64))
    convs = {f"{theirs}.weight" for ours, theirs in layers.items() if ours.endswith("_conv")}
    modules = {layers[f"{ours}/depthwise_conv"].partition(".")[0] for ours in blocks}
    if any((name in convs) != (name in kernels) for name in convs | kernels.keys() if name.partition(".")[0] in modules):
        return None
    sizes = [kernels[f"{layers[f'{ours}/depthwise_conv']}.weight"][2] for ours in blocks]
    if sizes != [block.size for block in blocks.values()]:
        return None
    ends = [kernels[f"{layers[f'{ours}/project_conv']}.weight"][0] for ours in blocks]
    # Only the last block is wide enough to have a different number of channels at every even width.
    nearest = 2 * round(ends[-1] * 32 / design.stages[-1][-1].features)
    if design.last_features:
        ends.append(kernels.get(f"{layers['stage4_conv']}.weight", (0,))[0])
    for width in (64, nearest, nearest - 2, nearest + 2):
        if width > 0 and ends == _list_channels(design, width):
            return width
    return None


def _list_channels(design: Design, width: int) -> list[int]:
    """Return the number of channels after each block, and after the last convolution if there is one."""
    last = [_count_last_features(design, width)] * (design.last_features > 0)
    return [block.features for _, block in _iterate_blocks(design, width)] + last
