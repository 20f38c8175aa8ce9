"""The structure shared by all backbones: four stages, some of which trade their stride for dilation.

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

# The possible names of the convolution that reads the image, in the modules and in `Backbone.tensor_names`.
FIRST_LAYERS = ("stem_conv", "stem_conv1")

Shapes = Mapping[str, tuple[int, ...]]  # tensor shapes, keyed by tensor name


class Features(NamedTuple):
    """The backbone features used by the heads.

    Attributes:
      low: Features at stride 4, for the decoder.
      aux: Features from a stage before the last one, for the auxiliary head.
      last: Features from the last stage, at the output stride.
    """

    low: Float[Array, "n h1 w1 c1"]
    aux: Float[Array, "n h3 w3 c3"]
    last: Float[Array, "n h4 w4 c4"]


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A backbone's network, plus everything the rest of the package needs to know about it.

    Attributes:
      make: A function that builds the backbone module from a config. The module maps (images, train) to `Features`.
      blocks: The number of blocks in each stage.
      switches: The `ModelConfig` fields used by this backbone but not by every backbone.
      tensor_names: A function of (config, source), where `source` names a weights source such as "timm". It returns a dict
        mapping our layer paths, relative to the backbone, to the source's layer names. The convolution that reads the image
        is one of FIRST_LAYERS.
      recognize: A function of the tensor shapes in a weights file. It returns the `ModelConfig` fields determined by the
        shapes, or None for a different kind of backbone. It raises a CheckpointError for an unsupported network of this kind.
        The error message continues a sentence starting with the file name, such as "has a backbone with ...".
      variants: The names of this backbone and of those with the same tensors that compute differently. () if it has none.
      choose_variant: A function of (folder and file name, source), for a backbone with variants. It returns the name of the one
        that the file has, and what is assumed, or "" if the name or the source is clear.
      unused: A function of (config, source) that returns the shapes of the backbone's tensors in the source's segmentation
        network that the network does not compute with, keyed by name. Exports contain them as zeros, and as ones where they
        are variances.
      margin: The number of rows, and of columns, that the first layer takes off the image.
      images: A function of the source that returns the `ModelConfig` fields `mean` and `std` for the images that its published
        weights expect. {} for ImageNet's.
      first_tensors: The names that sources give to one tensor, so that every weights file with this kind of backbone has one of
        them. What precedes this name is a prefix that training code added.
      classifier: The layers that the sources' ImageNet networks have after the features. Weights files can contain them.
      references: The settings for published segmentation networks with this backbone, keyed by source. The modules in
        `weights/sources` define which settings each source has.
      ignored: The `ModelConfig` fields that this backbone accepts but does not use.
    """

    make: Callable[[ModelConfig], nn.Module]
    blocks: tuple[int, ...]
    switches: frozenset[str]
    tensor_names: Callable[[ModelConfig, str], dict[str, str]]
    recognize: Callable[[Shapes], dict[str, Any] | None]
    first_tensors: tuple[str, ...]
    classifier: tuple[str, ...] = ("fc",)
    references: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    variants: tuple[str, ...] = ()
    choose_variant: Callable[[str, str], tuple[str, str]] | None = None
    unused: Callable[[ModelConfig, str], Shapes] = lambda config, source: {}
    margin: int = 0
    images: Callable[[str], Mapping[str, Any]] = lambda source: {}


class Dilation(NamedTuple):
    """A block's stride and rates. Each is in pixels of its layer's input.

    Attributes:
      stride: The block's stride.
      rate: The rate of the convolution that applies the stride.
      inner_rate: The rate of the second convolution in a basic block.
      shortcut_rate: The pooling rate in a pooled shortcut, or 0 for a block whose shortcut does not pool.
    """

    stride: int
    rate: int
    inner_rate: int
    shortcut_rate: int


def rematerialize(block: type[nn.Module], stage: int, config: ModelConfig) -> Any:
    """Return a block class, wrapped to recompute its activations in the backward pass if the stage (from 1) asks for it."""
    return nn.remat(block, static_argnums=(2,)) if stage in config.remat else block


def strides_in(stem_stride: int) -> tuple[int, ...]:
    """Return each stage's input stride in the undilated network."""
    return (stem_stride, *STRIDES_OUT[:-1])


def stage_dilations(blocks: Sequence[int], config: ModelConfig, stem_stride: int = 4) -> list[list[Dilation]]:
    """Return the dilation of every block, grouped into one list per stage.

    A stage that trades its stride for dilation keeps the previous stage's rate in its first block, because that block still
    reads the previous stage's grid. As a result, features at output strides 8 and 16 equal the undilated network's features
    wherever the grids coincide.

    Args:
      blocks: The number of blocks in each stage.
      config: The network config.
      stem_stride: The stride of the first stage's input features.
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
        is_pooled = undilated_in < undilated_out and (config.pool_dilated_shortcuts or stride_in < stride_out)
        shortcut_rates = [previous_rate if is_pooled else 0] + [0] * rest
        stages.append([Dilation(*each) for each in zip(strides, rates, inner_rates, shortcut_rates, strict=True)])
    return stages
