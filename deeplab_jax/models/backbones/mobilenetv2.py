"""A dilated MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381, table 2), NHWC.

The published implementations have the same blocks but pad differently, so each has a name of its own:

- `mobilenetv2`, torchvision's and timm's: PyTorch's padding. Its last features are those of the ImageNet network, after a 1x1
  convolution to 1280 channels.
- `mobilenetv2_vainf`, that of VainF/DeepLabV3Plus-Pytorch: a first convolution without padding, and blocks that pad their
  input. Its last features are those of the last block.
- `mobilenetv2_tf`, Hugging Face's for semantic segmentation: TensorFlow's padding and epsilon. Its last features are those of
  the last block.
"""

import functools
from typing import Any, NamedTuple

from deeplab_jax.config import ModelConfig
from deeplab_jax.errors import CheckpointError
from deeplab_jax.models.inverted_residual import scale_channel_count
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

STAGES = (
    (Group(1, 3, 16),),
    (Group(2, 3, 24),),
    (Group(3, 3, 32),),
    (Group(4, 3, 64), Group(3, 3, 96)),
    (Group(3, 3, 160), Group(1, 3, 320)),
)
DESIGNS = {
    "mobilenetv2": Design(32, STAGES, last_features=1280),
    "mobilenetv2_vainf": Design(32, STAGES, pads_input=True),
    "mobilenetv2_tf": Design(32, STAGES, padding="same", epsilon=1e-3, momentum=0.997),
}
# The images that the published weights expect, where they are not ImageNet's. They have values from -1 to 1.
IMAGES = {"mobilenetv2_tf": {"mean": (127.5,) * 3, "std": (127.5,) * 3}}
# At smaller widths, the first block has as many input as output channels. Only ours then adds its input.
MIN_TF_WIDTH = 18
REFERENCES = {
    "mobilenetv2": {"smp": {"encoder_name": "mobilenet_v2"}},
    "mobilenetv2_vainf": {"vainf": {"name": "mobilenet"}},
}


class Naming(NamedTuple):
    """The names that a library gives to this network.

    Attributes:
      source: The library.
      backbone: Our name for its network.
      first_tensor: The name of the first block's depthwise kernel.
    """

    source: str
    backbone: str
    first_tensor: str


NAMINGS = (
    Naming("timm", "mobilenetv2", "blocks.0.0.conv_dw.weight"),
    Naming("torchvision", "mobilenetv2", "1.conv.0.0.weight"),
    Naming("vainf", "mobilenetv2_vainf", "low_level_features.1.conv.0.0.weight"),
    Naming("huggingface", "mobilenetv2_tf", "conv_stem.conv_3x3.convolution.weight"),
)


def tensor_names(config: ModelConfig, source: str, design: Design) -> dict[str, str]:
    """Return a dict mapping our layer names to those in timm or Hugging Face, or to torchvision's for any other source.

    Those of segmentation_models.pytorch and VainF's are torchvision's in other modules.
    """
    if source == "timm":
        return timm_names(design, config.width)
    if source == "huggingface":
        stem = "conv_stem.first_conv"
        names = {"stem_conv": f"{stem}.convolution", "stem_bn": f"{stem}.normalization"}
        return names | name_blocks(design, config.width, _name_huggingface_block)
    names = {"stem_conv": "0.0", "stem_bn": "0.1"} | name_blocks(design, config.width, _name_torchvision_block)
    names |= {"stage4_conv": "18.0", "stage4_bn": "18.1"} if design.last_features else {}
    if source == "vainf":  # the stem and the first three blocks are a module of their own
        is_low = {ours: int(theirs.partition(".")[0]) < 4 for ours, theirs in names.items()}
        return {ours: f"{'low' if is_low[ours] else 'high'}_level_features.{theirs}" for ours, theirs in names.items()}
    prefix = "features." if source == "smp" else ""
    return {ours: prefix + theirs for ours, theirs in names.items()}


def _name_huggingface_block(number: int, block: Block) -> tuple[list[str], list[str]]:
    prefix = f"layer.{number - 1}" if block.group else "conv_stem"
    layers = ["expand_1x1"] * (block.group > 0) + ["conv_3x3", "reduce_1x1"]
    return [f"{prefix}.{layer}.convolution" for layer in layers], [f"{prefix}.{layer}.normalization" for layer in layers]


def _name_torchvision_block(number: int, block: Block) -> tuple[list[str], list[str]]:
    """Return torchvision's names for a block's layers. It numbers the stem, the blocks and the last convolution in order."""
    prefix, last = f"{number + 1}.conv.", 2 if block.group else 1
    convs, norms = [f"{i}.0" for i in range(last)] + [f"{last}"], [f"{i}.1" for i in range(last)] + [f"{last + 1}"]
    return [prefix + conv for conv in convs], [prefix + norm for norm in norms]


def recognize(shapes: Shapes) -> dict[str, Any] | None:
    """Return the `ModelConfig` fields for a MobileNetV2, or None for any other network.

    Raises:
      CheckpointError: No even width gives these channel counts.
    """
    naming = next((naming for naming in NAMINGS if naming.first_tensor in shapes), None)
    if naming is None:
        return None
    design = DESIGNS[naming.backbone]
    width = find_width(shapes, design, tensor_names(ModelConfig(backbone=naming.backbone), naming.source, design))
    if width is not None and naming.backbone == "mobilenetv2_tf" and width < MIN_TF_WIDTH:
        raise CheckpointError(
            f"has a MobileNetV2 with depth_multiplier={width / 64:g}, whose shortcuts differ from ours. Use weights with a "
            f"depth_multiplier of at least {MIN_TF_WIDTH / 64:g}."
        )
    if width is not None:
        return {"backbone": naming.backbone, "width": width}
    if naming.source == "timm":
        return None  # these are the names of many networks in timm
    raise CheckpointError(
        "has a MobileNetV2 with other blocks than the published network, or with numbers of channels that no even model.width "
        "gives. Use weights of a supported width."
    )


def unused(config: ModelConfig, source: str, design: Design) -> Shapes:
    """Return the shapes of the last 1x1 convolution in Hugging Face's segmentation network, which does not compute with it."""
    if source != "huggingface":
        return {}
    channels = scale_channel_count(1280, max(config.width, 64))  # finegrained_output, which is the default
    kernel = {"conv_1x1.convolution.weight": (channels, list_blocks(design, config.width)[-1][-1].features, 1, 1)}
    names = ("weight", "bias", "running_mean", "running_var")
    return kernel | {f"conv_1x1.normalization.{name}": (channels,) for name in names}


def _backbone(name: str) -> Backbone:
    design = DESIGNS[name]
    return Backbone(
        make=functools.partial(MobileNetwork, design=design, name="backbone"),
        blocks=tuple(len(stage) for stage in list_blocks(design, 64)[1:]),
        switches=frozenset(),
        tensor_names=functools.partial(tensor_names, design=design),
        recognize=recognize,
        first_tensors=tuple(naming.first_tensor for naming in NAMINGS),
        classifier=("classifier.1", "classifier", "conv_1x1.convolution", "conv_1x1.normalization"),
        margin=2 if design.pads_input else 0,
        references=REFERENCES.get(name, {}),
        unused=functools.partial(unused, design=design),
        images=lambda source: IMAGES.get(name, {}),
    )


BACKBONES = {name: _backbone(name) for name in DESIGNS}
