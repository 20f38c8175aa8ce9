"""Dilated residual networks (He et al. 2015, arXiv:1512.03385), NHWC.

Dilation follows DeepLabV3 (arXiv:1706.05587, section 3.1). The deep stem and the pooled shortcut come from ResNet-C and
ResNet-D (He et al. 2018, arXiv:1812.01187).
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from deeplab_jax.config import ModelConfig
from deeplab_jax.errors import CheckpointError
from deeplab_jax.models.backbones import paddle_names
from deeplab_jax.models.layers import BatchNorm, Conv, add_relu, relu
from deeplab_jax.models.pooling import average_pool_2x2, max_pool_3x3
from deeplab_jax.models.stages import Backbone, Dilation, Features, Shapes, rematerialize, stage_dilations

Blocks = tuple[int, int, int, int]

# Maps each network to its number of blocks per stage and whether the blocks are bottlenecks.
DEPTHS: dict[str, tuple[Blocks, bool]] = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}

FIRST_TENSOR = "layer1.0.conv1.weight"


class BasicBlock(nn.Module):
    """A residual block with two 3x3 convolutions and a shortcut.

    The first convolution uses the block's stride and rate, and the second uses `dilation.inner_rate`.
    """

    features: int
    dilation: Dilation
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    pools_shortcut: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 k"]:
        """Return features of shape [n, ceil(h / stride), ceil(w / stride), features]."""
        y = self.conv(self.features, 3, self.dilation.stride, self.dilation.rate, name="conv1")(x)
        y = relu(self.norm(name="bn1")(y, train))
        y = self.conv(self.features, 3, 1, self.dilation.inner_rate, name="conv2")(y)
        y = self.norm(name="bn2")(y, train)
        return add_relu(y, _shortcut(x, self, self.features, train))


class Bottleneck(nn.Module):
    """A residual block with 1x1, 3x3 and 1x1 convolutions and a shortcut.

    As in torchvision, the 3x3 convolution uses the block's stride and rate. The last convolution has 4 * `features` output
    channels.

    Attributes:
      features: The stage width. The block has four times as many output channels.
      dilation: The block's stride and rates; see `stages.Dilation`.
      conv, norm: The constructors for convolution and normalisation layers.
      pools_shortcut: Whether to average-pool before the shortcut convolution.
      groups: The number of groups in the 3x3 convolution: 1 for a ResNet, more for a ResNeXt.
      group_width: The channels per group in the first stage at network width 64: 64 for a ResNet, fewer for a ResNeXt.
    """

    features: int
    dilation: Dilation
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    pools_shortcut: bool = False
    groups: int = 1
    group_width: int = 64

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 k"]:
        """Return features of shape [n, ceil(h / stride), ceil(w / stride), 4 * features]."""
        inner = self.groups * inner_width(self.features, self.group_width)
        y = self.conv(inner, name="conv1")(x)
        y = relu(self.norm(name="bn1")(y, train))
        y = self.conv(inner, 3, self.dilation.stride, self.dilation.rate, self.groups, name="conv2")(y)
        y = relu(self.norm(name="bn2")(y, train))
        y = self.conv(4 * self.features, name="conv3")(y)
        y = self.norm(name="bn3")(y, train)
        return add_relu(y, _shortcut(x, self, 4 * self.features, train))


def inner_width(features: int, group_width: int) -> int:
    """Return the number of channels per group in a bottleneck's 3x3 convolution, for stage width `features`."""
    return max(1, features * group_width // 64)


def _shortcut(x: Array, block: BasicBlock | Bottleneck, features: int, train: bool) -> Array:
    """Return `x`, or a projection of `x` if the block changes the shape.

    The projection consists of an optional average pool, a 1x1 convolution and BatchNorm. Its layers become submodules of
    `block`.
    """
    stride = block.dilation.stride
    if stride == 1 and x.shape[-1] == features:
        return x
    if block.pools_shortcut and block.dilation.shortcut_rate:
        x, stride = average_pool_2x2(x, stride=stride, rate=block.dilation.shortcut_rate), 1
    x = block.conv(features, stride=stride, name="downsample_conv")(x)
    return block.norm(name="downsample_bn")(x, train)


class ResNet(nn.Module):
    """A dilated ResNet that returns features from its first, third and last stages.

    Attributes:
      config: The network config.
      blocks: The number of blocks in each stage.
      is_bottleneck: Whether to use `Bottleneck` rather than `BasicBlock`.
      groups, group_width: The settings for grouped convolutions; see `Bottleneck`.
    """

    config: ModelConfig
    blocks: Blocks
    is_bottleneck: bool
    groups: int = 1
    group_width: int = 64

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Features:
        """Return the features at strides 4, min(16, output_stride) and `output_stride`."""
        c = self.config
        conv = functools.partial(Conv, dtype=jnp.dtype(c.dtype))
        x = max_pool_3x3(self._stem(x, train, conv))
        stages = []
        for i, stage in enumerate(stage_dilations(self.blocks, c)):
            block = rematerialize(Bottleneck if self.is_bottleneck else BasicBlock, i + 1, c)
            if self.is_bottleneck:
                block = functools.partial(block, groups=self.groups, group_width=self.group_width)
            make = functools.partial(block, conv=conv, norm=BatchNorm, pools_shortcut=c.shortcut == "avgpool+1x1")
            for j, dilation in enumerate(stage):
                name = f"stage{i + 1}_block{j + 1}"
                x = make(features=c.width * 2**i, dilation=dilation, name=name)(x, train)
            stages.append(x)
        return Features(stages[0], stages[2], stages[3])

    def _stem(self, x: Array, train: bool, conv: Callable[..., nn.Module]) -> Array:
        width = self.config.width
        if self.config.stem == "7x7":
            x = conv(width, 7, 2, name="stem_conv")(x)
            return relu(BatchNorm(name="stem_bn")(x, train))
        for i, (features, stride) in enumerate(((width // 2, 2), (width // 2, 1), (width, 1)), start=1):
            x = conv(features, 3, stride, name=f"stem_conv{i}")(x)
            x = relu(BatchNorm(name=f"stem_bn{i}")(x, train))
        return x


def tensor_names(config: ModelConfig, source: str, blocks: Blocks) -> dict[str, str]:
    """Return a dict mapping our layer names to those in the given source."""
    if source.startswith("paddle"):
        return paddle_names.tensor_names(source, config.stem, blocks)
    names = {"stem_conv": "conv1", "stem_bn": "bn1"}
    for i in (1, 2, 3):
        # timm gives the last BatchNorm in a deep stem the same name as the only BatchNorm in a plain stem.
        bn = {"mmseg": f"stem.{3 * i - 2}", "timm": "bn1" if i == 3 else f"conv1.{3 * i - 2}"}
        conv = {"mmseg": f"stem.{3 * i - 3}", "timm": f"conv1.{3 * i - 3}"}
        if source in conv:
            names |= {f"stem_conv{i}": conv[source], f"stem_bn{i}": bn[source]}
    first = int(config.shortcut == "avgpool+1x1")  # the average pool, if any, is layer 0 of the shortcut
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            ours, theirs = f"stage{stage}_block{block + 1}", f"layer{stage}.{block}"
            names |= {f"{ours}/{layer}": f"{theirs}.{layer}" for n in (1, 2, 3) for layer in (f"conv{n}", f"bn{n}")}
            shortcut = f"{theirs}.downsample"
            names |= {f"{ours}/downsample_conv": f"{shortcut}.{first}", f"{ours}/downsample_bn": f"{shortcut}.{first + 1}"}
    return names


def count_blocks(shapes: Shapes) -> Blocks:
    """Return the number of blocks in each stage, counted from torchvision's tensor names."""
    blocks = [re.match(r"layer(\d)\.(\d+)\.conv1\.weight", name) for name in shapes]
    counts = [1 + max((int(m[2]) for m in blocks if m and m[1] == str(stage)), default=-1) for stage in (1, 2, 3, 4)]
    return counts[0], counts[1], counts[2], counts[3]


def find_other_tensor(shapes: Shapes) -> str:
    """Return the name of a tensor in the stages that no ResNet, ResNeXt or wide ResNet has, or "" if there is none."""
    own = re.compile(r"(conv[123]\.weight|(bn[123]|downsample\.[012])\.\w+)$")
    matches = [(name, re.match(r"layer[1-4]\.\d+\.", name)) for name in sorted(shapes)]
    return next((name for name, match in matches if match and not own.match(name, match.end())), "")


def has_group_norm(shapes: Shapes) -> bool:
    """Return whether the normalisation layers have no running statistics."""
    return "layer1.0.bn1.weight" in shapes and "layer1.0.bn1.running_mean" not in shapes


def recognize_stem_and_shortcut(shapes: Shapes, width: int) -> dict[str, str]:
    """Return the `ModelConfig` fields `stem` and `shortcut`, inferred from the tensors.

    Raises:
      CheckpointError: A deep stem has other channel counts than ours.
    """
    stems = [[f"{stem}.{i}.weight" for i in (0, 3, 6)] for stem in ("stem", "conv1")]  # mmsegmentation's and timm's names
    deep = next((names for names in stems if names[0] in shapes), None)
    actual = [shapes[name][0] for name in deep if shapes.get(name)] if deep else []
    expected = [width // 2, width // 2, width]
    if actual != expected[: len(actual)]:
        raise CheckpointError(
            f"has a stem with {', '.join(map(str, actual))} channels, like timm's networks with the suffixes s and t, not "
            f"{', '.join(map(str, expected))}. Use weights of a network with the suffix c or d, or without one."
        )
    is_pooled = "layer2.0.downsample.2.weight" in shapes  # BatchNorm is layer 2 only if a pool is layer 0
    return {"stem": "3x3" if deep else "7x7", "shortcut": "avgpool+1x1" if is_pooled else "1x1"}


def recognize(shapes: Shapes) -> dict[str, Any] | None:
    """Return the `ModelConfig` fields for a ResNet, or None for any other network.

    In a ResNet, each block's second convolution is ungrouped and as wide as the stage.

    Raises:
      CheckpointError: No supported depth has these block counts, or the stem or the shortcuts are not supported.
    """
    shapes = paddle_names.to_torchvision(shapes)
    if any(len(shapes.get(name, ())) != 4 for name in (FIRST_TENSOR, "layer1.0.conv2.weight")):
        return None
    if find_other_tensor(shapes) or has_group_norm(shapes):
        return None
    width, (inner, read) = shapes["layer1.0.conv1.weight"][0], shapes["layer1.0.conv2.weight"][:2]
    blocks, is_bottleneck = count_blocks(shapes), "layer1.0.conv3.weight" in shapes
    last = shapes["layer1.0.conv3.weight"][0] if is_bottleneck else width
    if not inner == read == width or last != (4 * width if is_bottleneck else width):
        return None
    depth = next((depth for depth, shape in DEPTHS.items() if shape == (blocks, is_bottleneck)), None)
    if depth is None:
        kind = "bottlenecks" if is_bottleneck else "basic blocks"
        raise CheckpointError(
            f"has a backbone with {blocks} {kind} per stage, which is not supported. Use weights of {', '.join(DEPTHS)}."
        )
    if not is_bottleneck and any(name.startswith("layer1.0.downsample.") for name in shapes):
        raise CheckpointError(
            f"has PaddlePaddle's {depth}, whose first shortcut is a convolution, which is not supported. Use weights of "
            "ResNet50_vd, ResNet101_vd or ResNet152_vd, or another library's."
        )
    return {"backbone": depth, "width": width} | recognize_stem_and_shortcut(shapes, width)


# Maps the names of networks to what they do not share with a supported network that has the same tensors.
OTHER_NETWORKS = {
    r"resnet(?:aa|blur)\d+d?": "the tensors of a plain ResNet, but filters features before each stride",
    r"caffe|msra": "the tensors of a plain ResNet, but has its strides in other convolutions",
    r"resnet\d+_vc": "the tensors of a ResNet_vd, but has other shortcuts",
}


def choose_variant(file_name: str, source: str, name: str) -> tuple[str, str]:
    """Return `name`, the network with a file's tensors, and what is assumed about the layers without tensors, or "".

    timm's networks with anti-aliasing have the tensors of plain ones, because the filters that they insert before a stride are
    constants. In Caffe's networks, the first convolution of a bottleneck has the stride. PaddleClas's ResNet_vc has the
    tensors of its ResNet_vd, but its shortcuts do not pool.

    Raises:
      CheckpointError: The weights belong to one of these networks.
    """
    for pattern, difference in OTHER_NETWORKS.items():
        if match := re.search(pattern, file_name, re.IGNORECASE):
            raise CheckpointError(
                f"is named like a {match[0]} network, which has {difference} and is not supported. Use weights of the other "
                "network. If these are such weights, rename the file or its folder."
            )
    if source == "paddleseg" and not re.search(r"resnet\d+_vd", file_name, re.IGNORECASE):
        return name, "assumed: the weights are those of a ResNet_vd. PaddleClas's ResNet_vc networks are not supported"
    if source != "timm" or re.search(r"resne(t|xt)\d+", file_name, re.IGNORECASE):
        return name, ""
    return name, "assumed: the weights are those of a plain ResNet. timm's resnetaa and resnetblur networks are not supported"


def _backbone(name: str) -> Backbone:
    blocks, is_bottleneck = DEPTHS[name]
    references: dict[str, dict[str, Any]] = {
        "mmseg": {"type": "ResNet", "depth": int(name.removeprefix("resnet"))},
        "smp": {"encoder_name": name},
        **({"paddleseg": {"type": f"ResNet{name.removeprefix('resnet')}_vd"}} if is_bottleneck else {}),
    }
    if name in ("resnet50", "resnet101"):
        references |= {"torchvision": {"name": name, "output_stride": 8}, "vainf": {"name": name}}
    return Backbone(
        make=functools.partial(ResNet, blocks=blocks, is_bottleneck=is_bottleneck, name="backbone"),
        blocks=blocks,
        switches=frozenset(("stem", "shortcut", "pool_dilated_shortcuts", *(() if is_bottleneck else ("dilate_conv2",)))),
        tensor_names=lambda config, source: tensor_names(config, source, blocks),
        recognize=recognize,
        first_tensors=(FIRST_TENSOR, *paddle_names.FIRST_TENSORS),
        variants=(name,),
        choose_variant=functools.partial(choose_variant, name=name),
        classifier=("fc", "out"),
        references=references,
        ignored=frozenset(("dilate_conv2",) if is_bottleneck else ()),
    )


BACKBONES = {name: _backbone(name) for name in DEPTHS}
