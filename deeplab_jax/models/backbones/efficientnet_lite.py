"""A dilated EfficientNet-Lite (github.com/tensorflow/tpu, models/official/efficientnet/lite), NHWC.

It is an EfficientNet (Tan and Le 2019, arXiv:1905.11946) without squeeze-and-excitation, with ReLU6 and with a stem of fixed
width. The last 1x1 convolution of the ImageNet network, to 1280 channels, belongs to its classifier and is left out.

The networks whose names end in `_symmetric` have the same tensors, but PyTorch's padding and BatchNorm settings.
"""

import functools
import math
import re
from typing import Any, NamedTuple

from deeplab_jax.config import ModelConfig
from deeplab_jax.models.mobile_network import (
    Block,
    Design,
    Group,
    MobileNetwork,
    find_width,
    list_blocks,
    name_blocks,
    timm_names,
)
from deeplab_jax.models.stages import Backbone, Shapes

# The images that the published weights expect have values of about -1 to 1.
IMAGES = {"mean": (127.0,) * 3, "std": (128.0,) * 3}
# The same for the encoders of segmentation_models.pytorch, which rounds the numbers.
SMP_IMAGES = {"mean": (127.5,) * 3, "std": (127.5,) * 3}

# The groups in each stage of EfficientNet-Lite0.
STAGES = (
    (Group(1, 3, 16),),
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


def make_design(scale: Scale) -> Design:
    """Return the settings of a network with symmetric padding. The first and last groups always have one block."""
    first, last = STAGES[0][0], STAGES[-1][-1]
    stages = tuple(
        tuple(
            Group(
                group.blocks if group in (first, last) else math.ceil(group.blocks * scale.depth),
                group.size,
                group.features * scale.width,
            )
            for group in stage
        )
        for stage in STAGES
    )
    return Design(32, stages)


# TensorFlow's networks, and those of the same design in timm and segmentation_models.pytorch with PyTorch's defaults.
SYMMETRIC = "_symmetric"
DESIGNS = {name: make_design(scale)._replace(padding="same", epsilon=1e-3, momentum=0.99) for name, scale in NETWORKS.items()}
DESIGNS |= {name + SYMMETRIC: make_design(scale) for name, scale in NETWORKS.items()}

# The first block's depthwise kernel, as timm and efficientnet_pytorch name it.
FIRST_TENSORS = ("blocks.0.0.conv_dw.weight", "_blocks.0._depthwise_conv.weight")


def tensor_names(config: ModelConfig, source: str, design: Design) -> dict[str, str]:
    """Return a dict mapping our layer names to those in efficientnet_pytorch, or to timm's for any other source."""
    if source == "efficientnet_pytorch":
        return {"stem_conv": "_conv_stem", "stem_bn": "_bn0"} | name_blocks(design, config.width, _name_numbered_block)
    return timm_names(design, config.width)


def _name_numbered_block(number: int, block: Block) -> tuple[list[str], list[str]]:
    """Return efficientnet_pytorch's names for a block's layers. It numbers all blocks of the network in order."""
    first = 0 if block.group else 1
    convs, norms = ("_expand_conv", "_depthwise_conv", "_project_conv")[first:], ("_bn0", "_bn1", "_bn2")[first:]
    return [f"_blocks.{number}.{conv}" for conv in convs], [f"_blocks.{number}.{norm}" for norm in norms]


def recognize(shapes: Shapes) -> dict[str, Any] | None:
    """Return the `ModelConfig` fields for an EfficientNet-Lite, or None for any other network.

    Other networks in timm have blocks with the same names. They differ in the number of blocks, in their kernels and channels,
    or in having squeeze-and-excitation.
    """
    first = next((name for name in FIRST_TENSORS if name in shapes), None)
    source = "timm" if first == FIRST_TENSORS[0] else "efficientnet_pytorch"
    for name in NETWORKS if first else ():
        design = DESIGNS[name]
        width = find_width(shapes, design, tensor_names(ModelConfig(backbone=name), source, design))
        if width is not None:
            return {"backbone": name, "width": width}
    return None


def choose_variant(file_name: str, source: str, name: str) -> tuple[str, str]:
    """Return the variant of the network `name` that a file has, and what is assumed about it, or "".

    timm's `efficientnet_lite0` and segmentation_models.pytorch's encoders have the tensors of `tf_efficientnet_lite0`, but they
    pad symmetrically and have another epsilon. With the same weights, ImageNet logits differ by 13 %.
    """
    if source == "smp":
        return name + SYMMETRIC, ""
    if source != "timm" or re.search(r"tf_efficientnet_lite\d", file_name):
        return name, ""
    if re.search(r"efficientnet_lite\d", file_name):
        return name + SYMMETRIC, ""
    return name, (
        f"assumed: the weights are those of timm's tf_{name}. If they are those of its {name}, which pads images differently, "
        f"name the file {name}.pth"
    )


def unused(config: ModelConfig, source: str, design: Design) -> Shapes:
    """Return the shapes of the layers after the last block, which segmentation_models.pytorch's encoders keep."""
    if source != "smp":
        return {}
    kernel = {"conv_head.weight": (1280, list_blocks(design, config.width)[-1][-1].features, 1, 1)}
    return kernel | {f"bn2.{name}": (1280,) for name in ("weight", "bias", "running_mean", "running_var")}


def _backbone(name: str) -> Backbone:
    design, plain = DESIGNS[name], name.removesuffix(SYMMETRIC)
    is_symmetric = plain != name
    return Backbone(
        make=functools.partial(MobileNetwork, design=design, name="backbone"),
        blocks=tuple(len(stage) for stage in list_blocks(design, 64)[1:]),
        switches=frozenset(),
        tensor_names=functools.partial(tensor_names, design=design),
        recognize=recognize,
        first_tensors=FIRST_TENSORS,
        variants=(plain, plain + SYMMETRIC),
        choose_variant=functools.partial(choose_variant, name=plain),
        classifier=("conv_head", "bn2", "classifier", "_conv_head", "_bn1", "_fc"),
        references={"smp": {"encoder_name": f"timm-tf_{plain}"}} if is_symmetric else {},
        unused=functools.partial(unused, design=design),
        images=(lambda source: SMP_IMAGES if source == "smp" else {}) if is_symmetric else (lambda source: IMAGES),
    )


BACKBONES = {name: _backbone(name) for name in DESIGNS}
