"""Tensor names and settings for the weights of VainF/DeepLabV3Plus-Pytorch, its `deeplabv3` and `deeplabv3plus` networks.

Every backbone with a name in its references is supported. The output stride is part of the file name that the training script
writes, such as best_deeplabv3plus_resnet101_voc_os16.pth.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from deeplab_jax.config import Config, ModelConfig
from deeplab_jax.labels import CITYSCAPES, VOC
from deeplab_jax.models.backbones import BACKBONES
from deeplab_jax.models.stages import Shapes
from deeplab_jax.weights.heads import describe_head
from deeplab_jax.weights.source import (
    ASSUMED,
    Facts,
    OtherHeadError,
    Source,
    StateDict,
    aspp_names,
    conv_bn,
    describe_images,
    has_imagenet_normalization,
    last_parts,
    output_channels,
    separable_bn,
)

_HEAD = "classifier.classifier"
SEPARABLE = "depthwise+1x1"
STRIDES = (8, 16)


def has_names(names: Collection[str]) -> bool:
    """Return whether any tensor belongs to the head or a MobileNetV2, whose names only this repository uses."""
    return any(name.startswith((f"{_HEAD}.", "low_level_features.")) for name in names)


def head_names(model: ModelConfig) -> dict[str, str]:
    """Return a dict mapping our layer paths in the heads to this repository's layer names."""
    is_plus, last = model.decoder_width > 0, _HEAD
    aspp = "classifier.aspp" if is_plus else f"{last}.0"
    name_conv = _separable_body if model.aspp_conv == SEPARABLE else conv_bn
    names = {"classifier": f"{last}.3" if is_plus else f"{last}.4"}
    names |= aspp_names(aspp, len(model.atrous_rates), name_conv)
    names |= conv_bn("decoder/reduce", "classifier.project.0", "classifier.project.1")
    if is_plus:
        return names | name_conv("decoder/refine1", f"{last}.0", f"{last}.1")
    return names | name_conv("aspp/refine", f"{last}.1", f"{last}.2")


def _separable_body(ours: str, conv: str, bn: str) -> dict[str, str]:
    return separable_bn(ours, f"{conv}.body", bn)


def read_head(shapes: Shapes) -> dict[str, Any]:
    """Infer the `ModelConfig` fields, plus "num_classes", from the heads' tensors.

    The result is {} for a file that contains only a backbone.

    Raises:
      OtherHeadError: The head is not a DeepLabV3's or DeepLabV3+'s.
      CheckpointError: A tensor is missing.
    """
    if not any(name.startswith(f"{_HEAD}.") for name in shapes):
        return {}
    is_plus = any(name.startswith("classifier.aspp.") for name in shapes)
    aspp, last = ("classifier.aspp", "3") if is_plus else (f"{_HEAD}.0", "4")
    if f"{aspp}.convs.0.0.weight" not in shapes:
        raise OtherHeadError(describe_head(shapes))
    conv = SEPARABLE if f"{aspp}.convs.1.0.body.1.weight" in shapes else "3x3"
    head = {
        "aspp_width": output_channels(shapes, f"{aspp}.convs.0.0.weight"),
        "aspp_conv": conv,
        "fusion": "1x1" if is_plus else f"1x1+{conv}",
        "dropout": 0.1,
        "num_classes": output_channels(shapes, f"{_HEAD}.{last}.weight"),
    }
    if not is_plus:
        return head
    kernel = f"{_HEAD}.0.body.1.weight" if conv == SEPARABLE else f"{_HEAD}.0.weight"
    return head | {
        "decoder_width": output_channels(shapes, kernel),
        "low_level_width": output_channels(shapes, "classifier.project.0.weight"),
        "decoder_conv": conv,
        "decoder_depth": 1,
    }


def read_facts(state: StateDict, model: ModelConfig, overrides: Mapping[str, Any]) -> Facts:
    """Return the label set for the number of classes, and the output stride in the file name or the training script's."""
    match = re.search(r"_os(8|16)(?!\d)", last_parts(state.source, 1))
    classifier = head_names(model)["classifier"]
    labels = VOC if len(state.tensors[f"{classifier}.weight"]) == VOC.num_classes else CITYSCAPES
    return {
        "labels": (labels, "assumed: the data set with this number of classes"),
        "model.output_stride": (int(match[1]), "the file name") if match else (16, ASSUMED),
    }


def required(model: ModelConfig) -> dict[str, tuple[Any, ...]]:
    """Return the supported values of the `ModelConfig` fields for which not only the default is supported."""
    is_plus, conv = model.decoder_width > 0, SEPARABLE if model.aspp_conv == SEPARABLE else "3x3"
    return {
        "backbone": tuple(name for name, backbone in BACKBONES.items() if "vainf" in backbone.references),
        "output_stride": STRIDES,
        "decoder_width": (256 if is_plus else 0,),
        "aspp_conv": (conv,),
        "fusion": ("1x1" if is_plus else f"1x1+{conv}",),
        "decoder_conv": (conv,),
        "decoder_depth": (1,),
    }


def describe(config: Config) -> str:
    """Return the Python call that builds the network, plus the image normalisation if it differs from ImageNet's."""
    model, name = config.model, "deeplabv3plus" if config.model.decoder_width else "deeplabv3"
    arguments = f"num_classes={config.labels.num_classes}, output_stride={model.output_stride}, pretrained_backbone=False"
    call = f"network.modeling.{name}_{BACKBONES[model.backbone].references['vainf']['name']}({arguments})"
    if model.aspp_conv == SEPARABLE:
        call += "\nThen network.convert_to_separable_conv(model.classifier)"
    if model.channels != 3:
        call += f"\nReplace its first convolution with one for {model.channels} input channels."
    return call if has_imagenet_normalization(model) else f"{call}\n{describe_images(model)}"


SOURCE = Source(
    has_names=has_names,
    head_names=head_names,
    read_head=read_head,
    read_facts=read_facts,
    required=required,
    describe=describe,
    first_inputs=lambda model: {"decoder/refine1": model.low_level_width},
)
