"""The common structure of all backbones: four stages, some of which trade their stride for dilation.

This module also defines `Backbone`, the interface between a backbone and the rest of the package.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from flax import linen as nn
from jaxtyping import Array, Float

from deeplab_jax.config import ModelConfig, last_stage_rates, unit_of_each_block

# The output stride of each stage in the undilated network.
STRIDES_OUT = (4, 8, 16, 32)

Shapes = Mapping[str, tuple[int, ...]]  # the shape of each tensor, by name


class Features(NamedTuple):
    """The features that the heads read.

    Attributes:
      low: Features at stride 4, for the decoder.
      aux: Features of a stage before the last one, for the auxiliary head.
      last: Features of the last stage, at the output stride.
    """

    low: Float[Array, "n h1 w1 c1"]
    aux: Float[Array, "n h3 w3 c3"]
    last: Float[Array, "n h4 w4 c4"]


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A backbone: its network and everything that the rest of the package needs to know about it.

    Attributes:
      make: A function that takes a config and returns a module. The module maps (images, train) to `Features`.
      blocks: The number of blocks in each stage.
      switches: The fields of `ModelConfig` that this backbone uses but some other backbones do not.
      tensor_names: A function that takes a config and the name of a source of weights. It returns the source's name of each
        layer, by the path of our layer below the backbone.
      recognize: A function that takes the shapes of a backbone's tensors, by name. It returns the fields of `ModelConfig` that
        they determine, or None if they belong to a different kind of backbone. It raises a CheckpointError if they are of this
        kind but the network is not supported. The message continues a sentence that starts with the file name, such as "has a
        backbone with ...".
      references: For each source that offers segmentation networks with this backbone, the settings specific to them. The
        modules in `weights/sources` define these settings.
      ignored: The fields of `ModelConfig` that this backbone accepts but does not use.
    """

    make: Callable[[ModelConfig], nn.Module]
    blocks: tuple[int, ...]
    switches: frozenset[str]
    tensor_names: Callable[[ModelConfig, str], dict[str, str]]
    recognize: Callable[[Shapes], dict[str, Any] | None]
    references: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    ignored: frozenset[str] = frozenset()


class Dilation(NamedTuple):
    """The stride and the rates of a block, in pixels of each convolution's input.

    Attributes:
      stride: The stride of the block's strided convolution.
      rate: The rate of the same convolution.
      inner_rate: The rate of the second convolution of a basic block.
      shortcut_rate: The rate of the pool in a pooled shortcut. It is 0 in blocks without a stride in the undilated network.
    """

    stride: int
    rate: int
    inner_rate: int
    shortcut_rate: int


def strides_in(stem_stride: int) -> tuple[int, ...]:
    """Return the stride of the input features of each stage in the undilated network."""
    return (stem_stride, *STRIDES_OUT[:-1])


def stage_dilations(blocks: Sequence[int], config: ModelConfig, stem_stride: int = 4) -> list[list[Dilation]]:
    """Return the dilation of every block, by stage.

    A stage that trades its stride for dilation keeps the previous stage's rate in its first block, because this block still
    reads the grid of the previous stage. As a result, the features at output strides 8 and 16 equal those of the undilated
    network wherever the grids coincide.

    Args:
      blocks: The number of blocks in each stage.
      config: The config of the network.
      stem_stride: The stride of the features that the first stage reads.
    """
    stages, output_stride = [], config.output_stride
    for stage, (undilated_in, undilated_out, count) in enumerate(
        zip(strides_in(stem_stride), STRIDES_OUT, blocks, strict=True)
    ):
        stride_in, stride_out = min(undilated_in, output_stride), min(undilated_out, output_stride)
        stage_rate = undilated_out // stride_out
        previous_rate, rest = undilated_in // stride_in, count - 1
        rates = [previous_rate] + [stage_rate] * rest
        if stage == 2:
            rates[0] = config.stage3_first_rate
        if stage == 3:
            rates = [int(rate) for rate in last_stage_rates(unit_of_each_block(config.multi_grid, count), output_stride)]
        strides = [stride_out // stride_in] + [1] * rest
        inner_rates = [stage_rate if config.dilate_conv2 else 1] * count
        shortcut_rates = [previous_rate if undilated_in < undilated_out else 0] + [0] * rest
        stages.append([Dilation(*each) for each in zip(strides, rates, inner_rates, shortcut_rates, strict=True)])
    return stages
