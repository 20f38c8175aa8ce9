"""A dilated version of torchvision's MobileNetV3-Large (Howard et al. 2019, arXiv:1905.02244, table 1), NHWC."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from deeplab_jax.config import ModelConfig
from deeplab_jax.errors import CheckpointError
from deeplab_jax.models.inverted_residual import InvertedResidual, round_to_multiple_of_8, scale_channel_count
from deeplab_jax.models.layers import BatchNorm, Conv, hard_sigmoid, hard_swish, image_mean, relu, scale_channels
from deeplab_jax.models.stages import Backbone, Dilation, Features, Shapes, rematerialize, stage_dilations

EPSILON, MOMENTUM = 1e-3, 0.99  # BatchNorm settings


class BlockConfig(NamedTuple):
    """The block settings that do not depend on preceding blocks.

    Attributes:
      size: The height and width of the depthwise kernel.
      expanded: The number of channels in the depthwise convolution.
      features: The number of output channels.
      has_squeeze: Whether the block uses squeeze-and-excitation.
      has_hard_swish: Whether the activation is hard-swish rather than ReLU.
    """

    size: int
    expanded: int
    features: int
    has_squeeze: bool
    has_hard_swish: bool


class Block(NamedTuple):
    """A block's config, plus the settings that depend on the preceding block.

    Attributes:
      config: The block's settings, with channel counts scaled to the network's width.
      has_expansion: Whether a 1x1 convolution precedes the depthwise convolution.
      is_residual: Whether the block adds its input to its output.
    """

    config: BlockConfig
    has_expansion: bool
    is_residual: bool


# The channel counts below are for width 64, the published network.
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
LAST_EXPANSION = 6  # expansion factor of the 1x1 convolution after the last block


class SqueezeExcitation(nn.Module):
    """A squeeze-and-excitation layer (Hu et al. 2017, arXiv:1709.01507).

    It multiplies each channel by a factor computed from all channel means.
    """

    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Return `x` with each channel multiplied by a factor from 0 to 1."""
        channels = x.shape[-1]
        layer = functools.partial(self.conv, use_bias=True)
        squeezed = relu(layer(round_to_multiple_of_8(channels // 4), name="reduce")(image_mean(x)))
        return scale_channels(x, hard_sigmoid(layer(channels, name="expand")(squeezed)))


def list_blocks(width: int) -> list[list[Block]]:
    """Return the blocks in each stage at the given width. The first list holds the stem block."""
    channels, stages = scale_channel_count(STEM.features, width), []
    for i, stage in enumerate(((STEM,), *STAGES)):
        blocks = []
        for j, published in enumerate(stage):
            expanded, features = scale_channel_count(published.expanded, width), scale_channel_count(published.features, width)
            config = published._replace(expanded=expanded, features=features)
            # The first block in a stage is never residual, because it is strided in the undilated network.
            keeps_grid = i == 0 or j > 0
            blocks.append(Block(config, expanded != channels, keeps_grid and features == channels))
            channels = features
        stages.append(blocks)
    return stages


class MobileNetV3(nn.Module):
    """A dilated MobileNetV3-Large that returns features from three stages.

    The auxiliary features have stride 8, as in torchvision's segmentation network.

    Attributes:
      config: The network config. For the effect of `width`, see `scale_channel_count`.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Features:
        """Return the features at strides 4, 8 and `output_stride`."""
        c = self.config
        conv = functools.partial(Conv, dtype=jnp.dtype(c.dtype))
        norm = functools.partial(BatchNorm, momentum=MOMENTUM, epsilon=EPSILON)
        (stem,), *stages = list_blocks(c.width)
        x = conv(scale_channel_count(STEM.features, c.width), 3, 2, name="stem_conv")(x)
        x = hard_swish(norm(name="stem_bn")(x, train))
        x = _make_block(InvertedResidual, stem, Dilation(1, 1, 1, 0), conv, norm, "stem_block")(x, train)
        dilations = stage_dilations([len(stage) for stage in stages], c, stem_stride=2)
        outputs_by_stage = []
        for i, (stage, stage_dilation) in enumerate(zip(stages, dilations, strict=True), start=1):
            kind, outputs = rematerialize(InvertedResidual, i, c), []
            for j, (block, dilation) in enumerate(zip(stage, stage_dilation, strict=True), start=1):
                x = _make_block(kind, block, dilation, conv, norm, f"stage{i}_block{j}")(x, train)
                outputs.append(x)
            outputs_by_stage.append(outputs)
        last = conv(LAST_EXPANSION * x.shape[-1], name="stage4_conv")(x)
        last = hard_swish(norm(name="stage4_bn")(last, train))
        return Features(low=outputs_by_stage[0][-1], aux=outputs_by_stage[1][0], last=last)


def _make_block(
    kind: Any, block: Block, dilation: Dilation, conv: Callable[..., nn.Module], norm: Callable[..., nn.Module], name: str
) -> nn.Module:
    c = block.config
    return kind(
        size=c.size,
        expanded=c.expanded,
        features=c.features,
        stride=dilation.stride,
        rate=dilation.rate,
        has_expansion=block.has_expansion,
        is_residual=block.is_residual,
        activation=hard_swish if c.has_hard_swish else relu,
        conv=conv,
        norm=norm,
        squeeze=SqueezeExcitation if c.has_squeeze else None,
        name=name,
    )


# A tensor in the last block. Only torchvision's MobileNetV3-Large has a tensor with this name.
MARKER = "15.block.2.fc1.weight"


def tensor_names(config: ModelConfig, source: str) -> dict[str, str]:
    """Return a dict mapping our layer names to torchvision's.

    torchvision numbers the network's parts in order: the stem, the stem block, all other blocks and the last convolution.
    """
    names = {"stem_conv": "0.0", "stem_bn": "0.1"}
    (stem,), *stages = list_blocks(config.width)
    blocks = {"stem_block": stem}
    blocks |= {f"stage{i}_block{j}": block for i, stage in enumerate(stages, 1) for j, block in enumerate(stage, 1)}
    for number, (ours, block) in enumerate(blocks.items(), start=1):
        parts = ["expand"] * block.has_expansion + ["depthwise"] + ["se"] * block.config.has_squeeze + ["project"]
        for i, part in enumerate(parts):
            pair = ("se/reduce", "se/expand") if part == "se" else (f"{part}_conv", f"{part}_bn")
            theirs = ("fc1", "fc2") if part == "se" else ("0", "1")
            names |= {f"{ours}/{a}": f"{number}.block.{i}.{b}" for a, b in zip(pair, theirs, strict=True)}
    last = len(blocks) + 1
    return names | {"stage4_conv": f"{last}.0", "stage4_bn": f"{last}.1"}


def recognize(shapes: Shapes) -> dict[str, Any] | None:
    """Return the `ModelConfig` fields for a MobileNetV3-Large, or None for any other network.

    The width is computed from the last expansion and checked against two other layers. Neighbouring widths share most channel
    counts, because all counts are rounded to multiples of 8.

    Raises:
      CheckpointError: No even width gives these channel counts.
    """
    if MARKER not in shapes:
        return None
    channels = tuple(shapes.get(name, (0,))[0] for name in ("0.0.weight", "15.block.0.0.weight", "16.0.weight"))
    last = STAGES[-1][-1]
    # Only the last expansion is wide enough to have a different channel count at every even width.
    width = max(2, 2 * round(channels[1] * 64 / last.expanded / 2))
    expected = (
        scale_channel_count(STEM.features, width),
        scale_channel_count(last.expanded, width),
        LAST_EXPANSION * scale_channel_count(last.features, width),
    )
    if channels != expected:
        stem, expanded, wide = channels
        raise CheckpointError(
            f"holds a MobileNetV3-Large with {stem}, {expanded} and {wide} channels (in the stem, the last expansion and the "
            "last convolution). No even model.width gives these numbers. Use weights of a supported width."
        )
    return {"backbone": "mobilenetv3_large", "width": width}


# torchvision dilates only the last stage, including its first block.
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
        first_tensors=(MARKER,),
        classifier=("classifier.0", "classifier.3"),
        references={"torchvision": TORCHVISION},
    )
}
