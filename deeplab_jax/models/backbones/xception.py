"""A dilated aligned Xception, NHWC.

It is the Xception (Chollet 2016, arXiv:1610.02357) of DeepLabV3+ (Chen et al. 2018, arXiv:1802.02611, section 3.3), with timm's
names. With the default multi-grid, dilation is timm's for `output_stride=16` and 8. The exception is xception71 at 8, because
timm's block that loses its stride there also loses the convolution in its shortcut.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from deeplab_jax.config import ModelConfig
from deeplab_jax.errors import CheckpointError
from deeplab_jax.models.layers import BatchNorm, Conv, add, relu
from deeplab_jax.models.stages import Backbone, Dilation, Features, Shapes, rematerialize, stage_dilations

EPSILON = 1e-3  # of BatchNorm
STEM_FEATURES = (32, 64)
# The images that the published weights expect have values of about -1 to 1.
MEAN = STD = (127.5, 127.5, 127.5)


class Network(NamedTuple):
    """The blocks of the first three stages. All networks have the same last stage, `LAST_STAGE`.

    Attributes:
      stage1, stage2: The number of output channels of each block.
      blocks3: The number of blocks in the third stage. All have 728 output channels.
    """

    stage1: tuple[int, ...]
    stage2: tuple[int, ...]
    blocks3: int


NETWORKS = {
    "xception41": Network((128,), (256,), 9),
    "xception65": Network((128,), (256,), 17),
    "xception71": Network((128, 256), (256, 728), 17),
}
LAST_STAGE = ((728, 1024, 1024), (1536, 1536, 2048))


class Block(NamedTuple):
    """A block's settings that do not depend on the output stride.

    Attributes:
      features: The number of output channels of each separable convolution.
      shortcut: "identity", "1x1" for a shortcut with a convolution, or "none" in the last block.
    """

    features: tuple[int, int, int]
    shortcut: str


def list_blocks(network: Network, width: int) -> list[list[Block]]:
    """Return the blocks in each stage. Channel counts are proportional to `width` and rounded down."""
    equal = [[(channels,) * 3 for channels in stage] for stage in (network.stage1, network.stage2, (728,) * network.blocks3)]
    stages, before = [], STEM_FEATURES[1]
    for stage in (*equal, LAST_STAGE):
        blocks = []
        for position, features in enumerate(stage):
            # The first block in a stage has a stride in the undilated network.
            shortcut = "1x1" if position == 0 or features[-1] != before else "identity"
            a, b, c = (channels * width // 64 for channels in features)
            blocks.append(Block((a, b, c), "none" if features == LAST_STAGE[-1] else shortcut))
            before = features[-1]
        stages.append(blocks)
    return stages


class XceptionBlock(nn.Module):
    """Three depthwise separable convolutions and an optional shortcut.

    A separable convolution is a depthwise 3x3 convolution and a 1x1 convolution, each followed by BatchNorm. In a block with a
    shortcut, ReLU precedes each separable convolution. In a block without one, it follows each BatchNorm.

    Attributes:
      block: The block's settings.
      dilation: The block's stride and rate. The last depthwise convolution has the stride.
      conv, norm: The constructors for convolution and normalisation layers.
    """

    block: Block
    dilation: Dilation
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> tuple[Float[Array, "n h2 w2 k"], Float[Array, "n h w k2"]]:
        """Return the block's features, and those that its last separable convolution reads."""
        stride, rate = self.dilation[:2]
        y = read_last = x
        for i, features in enumerate(self.block.features, start=1):
            read_last = y if self.block.shortcut == "none" else relu(y)
            channels = y.shape[-1]
            y = self.conv(channels, 3, stride if i == 3 else 1, rate, channels, name=f"depthwise_conv{i}")(read_last)
            y = self._normalize(y, train, f"depthwise_bn{i}")
            y = self.conv(features, name=f"conv{i}")(y)
            y = self._normalize(y, train, f"bn{i}")
        if self.block.shortcut == "none":
            return y, read_last
        if self.block.shortcut == "1x1":
            x = self.conv(y.shape[-1], stride=stride, name="shortcut_conv")(x)
            x = self.norm(name="shortcut_bn")(x, train)
        return add(y, x), read_last

    def _normalize(self, y: Array, train: bool, name: str) -> Array:
        y = self.norm(name=name)(y, train)
        return relu(y) if self.block.shortcut == "none" else y


class Xception(nn.Module):
    """A dilated Xception that returns features from three stages.

    Attributes:
      config: The network config. For the effect of `width`, see `list_blocks`.
      network: The network's blocks.
    """

    config: ModelConfig
    network: Network

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Features:
        """Return the features at strides 4, min(16, output_stride) and `output_stride`.

        The features at stride 4 are those that the last convolution in the second stage's first block reads, as in the paper's
        decoder and timm's feature extractor.
        """
        c = self.config
        conv = functools.partial(Conv, dtype=jnp.dtype(c.dtype))
        norm = functools.partial(BatchNorm, epsilon=EPSILON)
        for i, (features, stride) in enumerate(zip(STEM_FEATURES, (2, 1), strict=True), start=1):
            x = conv(features * c.width // 64, 3, stride, name=f"stem_conv{i}")(x)
            x = relu(norm(name=f"stem_bn{i}")(x, train))
        stages = list_blocks(self.network, c.width)
        dilations = stage_dilations([len(stage) for stage in stages], c, stem_stride=2)
        low, outputs = x, []
        for i, (stage, stage_dilation) in enumerate(zip(stages, dilations, strict=True), start=1):
            make = functools.partial(rematerialize(XceptionBlock, i, c), conv=conv, norm=norm)
            for j, (block, dilation) in enumerate(zip(stage, stage_dilation, strict=True), start=1):
                x, read_last = make(block=block, dilation=dilation, name=f"stage{i}_block{j}")(x, train)
                if (i, j) == (2, 1):
                    low = read_last
            outputs.append(x)
        return Features(low, aux=outputs[2], last=outputs[3])


FIRST_TENSOR = "blocks.0.stack.conv1.bn_dw.weight"


def tensor_names(config: ModelConfig, source: str, network: Network) -> dict[str, str]:
    """Return a dict mapping our layer names to timm's, which numbers the blocks of all stages in order."""
    names = {f"stem_{layer}{i}": f"stem.{i - 1}.{layer}" for i in (1, 2) for layer in ("conv", "bn")}
    for number, (ours, block) in enumerate(_iterate_blocks(network, config.width)):
        for i in (1, 2, 3):
            theirs = f"blocks.{number}.stack.conv{i}"
            names |= {f"{ours}/depthwise_{layer}{i}": f"{theirs}.{layer}_dw" for layer in ("conv", "bn")}
            names |= {f"{ours}/{layer}{i}": f"{theirs}.{layer}_pw" for layer in ("conv", "bn")}
        if block.shortcut == "1x1":
            names |= {f"{ours}/shortcut_{layer}": f"blocks.{number}.shortcut.{layer}" for layer in ("conv", "bn")}
    return names


def _iterate_blocks(network: Network, width: int) -> Iterator[tuple[str, Block]]:
    """Yield each block's name in our network and its settings."""
    for i, stage in enumerate(list_blocks(network, width), start=1):
        for j, block in enumerate(stage, start=1):
            yield f"stage{i}_block{j}", block


def recognize(shapes: Shapes) -> dict[str, Any] | None:
    """Return the `ModelConfig` fields for an Xception, or None for any other network.

    timm's xception65p and other networks with ReLU and BatchNorm before their convolutions lack the first tensor.

    Raises:
      CheckpointError: The number of blocks or their channels are not those of a supported network.
    """
    if FIRST_TENSOR not in shapes:
        return None
    blocks = {name for name in shapes if name.startswith("blocks.") and len(shapes[name]) == 4}
    for name, network in NETWORKS.items():
        layers = tensor_names(ModelConfig(backbone=name), "timm", network)
        kernels = {ours: f"{theirs}.weight" for ours, theirs in layers.items() if "conv" in ours.rpartition("/")[2]}
        if blocks != {kernel for kernel in kernels.values() if kernel.startswith("blocks.")}:
            continue
        ends = [shapes[kernels[f"{block}/conv3"]][0] for block, _ in _iterate_blocks(network, 64)]
        width = ends[-1] * 64 // LAST_STAGE[-1][-1]
        if width > 0 and width % 2 == 0 and ends == [block.features[2] for _, block in _iterate_blocks(network, width)]:
            return {"backbone": name, "width": width}
    count = len({name.split(".")[1] for name in blocks})
    raise CheckpointError(
        f"has an Xception with {count} blocks, which is not supported. Use weights of {', '.join(NETWORKS)} at an even width."
    )


def _backbone(name: str) -> Backbone:
    network = NETWORKS[name]
    return Backbone(
        make=functools.partial(Xception, network=network, name="backbone"),
        blocks=tuple(len(stage) for stage in list_blocks(network, 64)),
        switches=frozenset(),
        tensor_names=functools.partial(tensor_names, network=network),
        recognize=recognize,
        first_tensors=(FIRST_TENSOR,),
        classifier=("head.fc",),
        images=lambda source: {"mean": MEAN, "std": STD},
    )


BACKBONES = {name: _backbone(name) for name in NETWORKS}
