"""What backbones have in common: four stages, some of which trade stride for dilation; and what the package asks of them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from flax import linen as nn
from jaxtyping import Array, Float

from deeplab_jax.config import ModelConfig, last_stage_rates, unit_of_each_block

# Stride of the features that each stage gives, where none trades its stride for a rate.
STRIDES_OUT = (4, 8, 16, 32)

Shapes = Mapping[str, tuple[int, ...]]  # of tensors, by name


class Features(NamedTuple):
    """What the heads read.

    Attributes:
      low: at stride 4, for a decoder.
      aux: of a stage before the last, for the auxiliary head.
      last: of the last stage, at the output stride.
    """

    low: Float[Array, "n h1 w1 c1"]
    aux: Float[Array, "n h3 w3 c3"]
    last: Float[Array, "n h4 w4 c4"]


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A backbone: its network, and all that the rest of the package knows about it.

    Attributes:
      make: from a config to the module that returns `Features` of (images, train).
      blocks: how many blocks each stage has.
      switches: the fields of `ModelConfig` that it uses and not every backbone does.
      ignored: those that it accepts and makes no use of.
      tensor_names: (config, source) -> what the source calls each layer, by our layer's path below the backbone.
      recognize: from the shapes of a backbone's tensors, by name, to the fields of `ModelConfig` that they show; None where
        they are of another backbone. CheckpointError, "has a backbone of ...", where they are of this kind, but of no network
        that is known.
      references: for each source that has segmentation networks of this backbone, what is special about them; see the source.
    """

    make: Callable[[ModelConfig], nn.Module]
    blocks: tuple[int, ...]
    switches: frozenset[str]
    tensor_names: Callable[[ModelConfig, str], dict[str, str]]
    recognize: Callable[[Shapes], dict[str, Any] | None]
    references: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    ignored: frozenset[str] = frozenset()


class Dilation(NamedTuple):
    """A block's stride and rates, in pixels of its convolutions' inputs.

    Attributes:
      stride: of the strided convolution.
      rate: of that convolution.
      inner_rate: of a basic block's second convolution.
      shortcut_rate: of a pooled shortcut, 0 in blocks that have no stride in the undilated network.
    """

    stride: int
    rate: int
    inner_rate: int
    shortcut_rate: int


def strides_in(stem_stride: int) -> tuple[int, ...]:
    """Return the stride of the features that each stage gets, as `STRIDES_OUT`."""
    return (stem_stride, *STRIDES_OUT[:-1])


def stage_dilations(blocks: Sequence[int], config: ModelConfig, stem_stride: int = 4) -> list[list[Dilation]]:
    """Return the dilation of every block, by stage.

    A stage that trades its stride for dilation keeps the previous stage's rate in its first block, which still reads that
    grid. This is what keeps the features at every output stride equal, subsampled.

    Args:
      blocks: how many a stage has.
      config: of the network.
      stem_stride: of the features that the first stage gets.
    """
    stages, output_stride = [], config.output_stride
    for stage, (natural_in, natural_out, count) in enumerate(zip(strides_in(stem_stride), STRIDES_OUT, blocks, strict=True)):
        stride_in, stride_out = min(natural_in, output_stride), min(natural_out, output_stride)
        own = natural_out // stride_out
        before, rest = natural_in // stride_in, count - 1
        rates = [before] + [own] * rest
        if stage == 2:
            rates[0] = config.stage3_first_rate
        if stage == 3:
            rates = [int(rate) for rate in last_stage_rates(unit_of_each_block(config.multi_grid, count), output_stride)]
        strides, inner = [stride_out // stride_in] + [1] * rest, [own if config.dilate_conv2 else 1] * count
        pooled = [before if natural_in < natural_out else 0] + [0] * rest
        stages.append([Dilation(*each) for each in zip(strides, rates, inner, pooled, strict=True)])
    return stages
