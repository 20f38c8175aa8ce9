"""What backbones have in common: four stages, some of which trade their stride for a rate, and what they give."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Array, Float

from deeplab_jax.config import last_stage_rates, unit_of_each_block

# Stride of the features that each stage gives, where none trades its stride for a rate.
STRIDES_OUT = (4, 8, 16, 32)


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
    """Stride of the features that each stage gets, as `STRIDES_OUT`."""
    return (stem_stride, *STRIDES_OUT[:-1])


def stage_dilations(
    blocks: Sequence[int],
    output_stride: int,
    multi_grid: tuple[float, ...],
    *,
    stem_stride: int = 4,
    dilate_conv2: bool = True,
) -> list[list[Dilation]]:
    """Of every block, by stage.

    A stage whose stride is gone starts with the rate of the stage before: its first convolution still sees that stage's
    grid. This is what keeps the features at every output stride equal, subsampled.

    Args:
      blocks: how many a stage has.
      output_stride, multi_grid, dilate_conv2: see `config.ModelConfig`.
      stem_stride: of the features that the first stage gets.
    """
    stages = []
    for stage, (natural_in, natural_out, count) in enumerate(zip(strides_in(stem_stride), STRIDES_OUT, blocks, strict=True)):
        stride_in, stride_out = min(natural_in, output_stride), min(natural_out, output_stride)
        own = natural_out // stride_out
        before, rest = natural_in // stride_in, count - 1
        rates = [before] + [own] * rest
        if stage == 3:
            rates = [int(rate) for rate in last_stage_rates(unit_of_each_block(multi_grid, count), output_stride)]
        strides, inner = [stride_out // stride_in] + [1] * rest, [own if dilate_conv2 else 1] * count
        pooled = [before if natural_in < natural_out else 0] + [0] * rest
        stages.append([Dilation(*each) for each in zip(strides, rates, inner, pooled, strict=True)])
    return stages
