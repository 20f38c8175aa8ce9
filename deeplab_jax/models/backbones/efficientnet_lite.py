"""A dilated EfficientNet-Lite (github.com/tensorflow/tpu, models/official/efficientnet/lite), NHWC.

It is an EfficientNet (Tan and Le 2019, arXiv:1905.11946) without squeeze-and-excitation, with ReLU6 and with a stem of fixed
width. The last 1x1 convolution of the ImageNet network, to 1280 channels, belongs to its classifier and is left out.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from deeplab_jax.config import ModelConfig
from deeplab_jax.errors import CheckpointError
from deeplab_jax.models.inverted_residual import InvertedResidual, scale_channel_count
from deeplab_jax.models.layers import BatchNorm, Conv, relu6
from deeplab_jax.models.stages import Backbone, Dilation, Features, Shapes, rematerialize, stage_dilations

EPSILON, MOMENTUM = 1e-3, 0.99  # BatchNorm settings
EXPANSION = 6
STEM_FEATURES = 32
# The images that the published weights expect have values of about -1 to 1.
MEAN, STD = (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)


class Group(NamedTuple):
    """Consecutive blocks with the same number of output channels, in EfficientNet-Lite0.

    Attributes:
      blocks: The number of blocks.
      size: The height and width of the depthwise kernels.
      features: The number of output channels.
    """

    blocks: int
    size: int
    features: int


# The groups in each stage. The stem group has stride 2. The numbers of blocks in the first and last groups are the same in all
# networks.
STEM = Group(1, 3, 16)
STAGES = (
    (Group(2, 3, 24),),
    (Group(2, 5, 40),),
    (Group(3, 3, 80), Group(3, 5, 112)),
    (Group(4, 5, 192), Group(1, 3, 320)),
)


class Scale(NamedTuple):
    """The factors by which a network is wider and deeper than EfficientNet-Lite0."""

    width: float
    depth: float


NETWORKS = {
    "efficientnet_lite0": Scale(1.0, 1.0),
    "efficientnet_lite1": Scale(1.0, 1.1),
    "efficientnet_lite2": Scale(1.1, 1.2),
}


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


def list_blocks(scale: Scale, width: int) -> list[list[Block]]:
    """Return the blocks in each stage. The first list holds the stem block."""
    stages, group = [], 0
    for stage in ((STEM,), *STAGES):
        blocks: list[Block] = []
        for blocks_of_lite0, size, features in stage:
            is_fixed = group in (0, sum(map(len, STAGES)))
            count = blocks_of_lite0 if is_fixed else math.ceil(blocks_of_lite0 * scale.depth)
            channels = scale_channel_count(features * scale.width, width)
            blocks += [Block(group, position, size, channels) for position in range(count)]
            group += 1
        stages.append(blocks)
    return stages


class EfficientNetLite(nn.Module):
    """A dilated EfficientNet-Lite that returns features from three stages.

    Attributes:
      config: The network config. For the effect of `width`, see `scale_channel_count`.
      scale: The network's size relative to EfficientNet-Lite0.
    """

    config: ModelConfig
    scale: Scale

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Features:
        """Return the features at strides 4, min(16, output_stride) and `output_stride`."""
        c = self.config
        conv = functools.partial(Conv, dtype=jnp.dtype(c.dtype), padding="same")
        norm = functools.partial(BatchNorm, momentum=MOMENTUM, epsilon=EPSILON)
        (stem,), *stages = list_blocks(self.scale, c.width)
        x = conv(scale_channel_count(STEM_FEATURES, c.width), 3, 2, name="stem_conv")(x)
        x = relu6(norm(name="stem_bn")(x, train))
        x = _make_block(InvertedResidual, stem, x.shape[-1], Dilation(1, 1, 1, 0), conv, norm, "stem_block")(x, train)
        dilations = stage_dilations([len(stage) for stage in stages], c, stem_stride=2)
        outputs = []
        for i, (stage, stage_dilation) in enumerate(zip(stages, dilations, strict=True), start=1):
            kind = rematerialize(InvertedResidual, i, c)
            for j, (block, dilation) in enumerate(zip(stage, stage_dilation, strict=True), start=1):
                x = _make_block(kind, block, x.shape[-1], dilation, conv, norm, f"stage{i}_block{j}")(x, train)
            outputs.append(x)
        return Features(low=outputs[0], aux=outputs[2], last=outputs[3])


def _make_block(
    kind: Any,
    block: Block,
    channels: int,
    dilation: Dilation,
    conv: Callable[..., nn.Module],
    norm: Callable[..., nn.Module],
    name: str,
) -> nn.Module:
    """Return a block that reads features with the given number of channels. The stem block has no expansion."""
    return kind(
        size=block.size,
        expanded=channels * (EXPANSION if block.group else 1),
        features=block.features,
        stride=dilation.stride,
        rate=dilation.rate,
        has_expansion=block.group > 0,
        is_residual=block.position > 0,
        activation=relu6,
        conv=conv,
        norm=norm,
        name=name,
    )


# The first block's depthwise kernel, as timm and efficientnet_pytorch name it.
FIRST_TENSORS = ("blocks.0.0.conv_dw.weight", "_blocks.0._depthwise_conv.weight")


def tensor_names(config: ModelConfig, source: str, scale: Scale) -> dict[str, str]:
    """Return a dict mapping our layer names to those in efficientnet_pytorch, or to timm's for any other source."""
    is_numbered = source == "efficientnet_pytorch"  # all blocks of the network are numbered in order
    names = {"stem_conv": "_conv_stem", "stem_bn": "_bn0"} if is_numbered else {"stem_conv": "conv_stem", "stem_bn": "bn1"}
    for number, (ours, block) in enumerate(_iterate_blocks(scale, config.width)):
        has_expansion = block.group > 0
        convs, norms = ["expand_conv"] * has_expansion + ["depthwise_conv", "project_conv"], ["depthwise_bn", "project_bn"]
        norms = ["expand_bn"] * has_expansion + norms
        if is_numbered:
            prefix, first = f"_blocks.{number}.", 0 if has_expansion else 1
            theirs, norm = [f"_{conv}" for conv in convs], "_bn"
        else:
            prefix, first = f"blocks.{block.group}.{block.position}.", 1
            theirs, norm = (["conv_pw", "conv_dw", "conv_pwl"] if has_expansion else ["conv_dw", "conv_pw"]), "bn"
        names |= {f"{ours}/{a}": prefix + b for a, b in zip(convs, theirs, strict=True)}
        names |= {f"{ours}/{a}": f"{prefix}{norm}{i}" for i, a in enumerate(norms, start=first)}
    return names


def _iterate_blocks(scale: Scale, width: int) -> Iterator[tuple[str, Block]]:
    """Yield each block's name in our network and its settings."""
    (stem,), *stages = list_blocks(scale, width)
    yield "stem_block", stem
    for i, stage in enumerate(stages, start=1):
        for j, block in enumerate(stage, start=1):
            yield f"stage{i}_block{j}", block


def recognize(shapes: Shapes) -> dict[str, Any] | None:
    """Return the `ModelConfig` fields for an EfficientNet-Lite, or None for any other network.

    Other networks in timm have blocks with the same names. They differ in the number of blocks, in their channels or in having
    squeeze-and-excitation.
    """
    kernels = {name: shape for name, shape in shapes.items() if len(shape) == 4}
    first = next((name for name in FIRST_TENSORS if name in kernels), None)
    if first is None or any(re.search(r"(^|\.)_?se(_|\.)", name) for name in kernels):
        return None
    source = "timm" if first == FIRST_TENSORS[0] else "efficientnet_pytorch"
    for name, scale in NETWORKS.items():
        layers = tensor_names(ModelConfig(backbone=name), source, scale)
        ends = {block: layers[f"{block}/project_conv"] + ".weight" for block, _ in _iterate_blocks(scale, 64)}
        kernel_names = {f"{theirs}.weight" for ours, theirs in layers.items() if ours.endswith("_conv")}
        blocks = {each for each in kernels if re.match(r"_?blocks\.", each)}
        if blocks != kernel_names & blocks or not set(ends.values()) <= kernels.keys():
            continue
        actual = [kernels[end][0] for end in ends.values()]
        # Only the last block is wide enough to have a different number of channels at every even width.
        nearest = 2 * round(actual[-1] * 32 / (STAGES[-1][-1].features * scale.width))
        for width in (64, nearest, nearest - 2, nearest + 2):
            if width > 0 and actual == [block.features for _, block in _iterate_blocks(scale, width)]:
                has_rgb = kernels.get(f"{layers['stem_conv']}.weight", (0, 3))[1] == 3
                return {"backbone": name, "width": width} | ({"mean": MEAN, "std": STD} if has_rgb else {})
    return None


def check_origin(file_name: str, source: str) -> str:
    """Return what is assumed about the padding and epsilon, which the tensors do not show, or "" if the origin is clear.

    timm's `efficientnet_lite0` and segmentation_models.pytorch's encoders have the tensors of `tf_efficientnet_lite0`, but they
    pad symmetrically and have another epsilon. With the same weights, ImageNet logits differ by 13 %.

    Raises:
      CheckpointError: The weights belong to one of the other networks.
    """
    advice = "Use weights of timm's tf_efficientnet_lite networks."
    if source == "smp":
        raise CheckpointError(
            "has segmentation_models.pytorch's EfficientNet-Lite encoder, which pads images differently from TensorFlow's and "
            f"is not supported. {advice}"
        )
    if source != "timm" or re.search(r"tf_efficientnet_lite\d", file_name):
        return ""
    if match := re.search(r"efficientnet_lite\d", file_name):
        raise CheckpointError(
            f"is named like timm's {match[0]}, which has the same tensors as tf_{match[0]} but pads images differently and is "
            f"not supported. {advice} If these are such weights, rename the file to tf_{match[0]}."
        )
    return "assumed: the weights are those of a tf_efficientnet_lite network. timm's networks without tf_ are not supported"


def _backbone(name: str) -> Backbone:
    scale = NETWORKS[name]
    return Backbone(
        make=functools.partial(EfficientNetLite, scale=scale, name="backbone"),
        blocks=tuple(len(stage) for stage in list_blocks(scale, 64)[1:]),
        switches=frozenset(),
        tensor_names=functools.partial(tensor_names, scale=scale),
        recognize=recognize,
        first_tensors=FIRST_TENSORS,
        check_origin=check_origin,
        classifier=("conv_head", "bn2", "classifier", "_conv_head", "_bn1", "_fc"),
    )


BACKBONES = {name: _backbone(name) for name in NETWORKS}
