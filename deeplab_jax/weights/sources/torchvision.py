"""Tensor names and settings for torchvision's DeepLabV3 weights (torchvision.models.segmentation).

Every backbone with torchvision tensor names is supported.
"""

from collections.abc import Collection, Mapping
from typing import Any

from deeplab_jax.config import Config, ModelConfig
from deeplab_jax.labels import VOC
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
    has_imagenet_normalization,
    output_channels,
)

# The prefix "classifier." would be ambiguous, because torchvision's ImageNet networks also use it.
HEAD_PREFIXES = ("classifier.0.convs.", "classifier.4.", "classifier.cbr.", "aux_classifier.")


def has_names(names: Collection[str]) -> bool:
    """Return whether any tensor belongs to torchvision's segmentation heads, or to its MobileNetV2.

    timm has other names for a MobileNetV2, but not for the other backbones.
    """
    return any(name.startswith((*HEAD_PREFIXES, "1.conv.")) for name in names)


def head_names(model: ModelConfig) -> dict[str, str]:
    """Return a dict mapping our layer paths in the heads to torchvision's layer names."""
    names = {"classifier": "classifier.4", "aux_classifier": "aux_classifier.4"}
    names |= aspp_names("classifier.0", len(model.atrous_rates))
    names |= conv_bn("aspp/refine", "classifier.1", "classifier.2")
    return names | conv_bn("aux_conv", "aux_classifier.0", "aux_classifier.1")


def read_head(shapes: Shapes) -> dict[str, Any]:
    """Infer the `ModelConfig` fields, plus "num_classes", from the heads' tensors.

    The result is {} for a file that contains only a backbone.

    Raises:
      OtherHeadError: The head is not a DeepLabV3's.
      CheckpointError: A tensor is missing.
    """
    if not any(name.startswith(HEAD_PREFIXES) for name in shapes):
        return {}
    if "classifier.0.convs.0.0.weight" not in shapes:
        raise OtherHeadError(describe_head(shapes))
    return {
        "aspp_width": output_channels(shapes, "classifier.0.convs.0.0.weight"),
        "fusion": "1x1+3x3",
        "dropout": 0.5,
        "aux_head": any(name.startswith("aux_classifier.") for name in shapes),
        "num_classes": output_channels(shapes, "classifier.4.weight"),
    }


def read_facts(state: StateDict, model: ModelConfig, overrides: Mapping[str, Any]) -> Facts:
    """Return torchvision's settings. They are all assumptions, because its weights files do not store any settings."""
    facts: Facts = {"labels": (VOC, "assumed: the published weights' classes"), "model.output_stride": (8, ASSUMED)}
    return facts | {f"model.{field}": (value, ASSUMED) for field, value in _switches(model).items()}


def required(model: ModelConfig) -> dict[str, tuple[Any, ...]]:
    """Return the supported values of the `ModelConfig` fields for which not only the default is supported."""
    fixed = {"multi_grid": ModelConfig().multi_grid, "atrous_rates": ModelConfig().atrous_rates} | _switches(model)
    return {
        "backbone": tuple(name for name, backbone in BACKBONES.items() if "torchvision" in backbone.references),
        "multi_grid": (fixed["multi_grid"],),
        "atrous_rates": (fixed["atrous_rates"],),
        "fusion": ("1x1+3x3",),
    }


def describe(config: Config) -> str:
    """Return the Python call that builds the network, plus the image normalisation if it differs from ImageNet's."""
    model, reference = config.model, BACKBONES[config.model.backbone].references["torchvision"]
    arguments = f"num_classes={config.labels.num_classes}, aux_loss={model.aux_head}"
    call = f"torchvision.models.segmentation.deeplabv3_{reference['name']}(weights=None, weights_backbone=None, {arguments})"
    if model.output_stride != reference["output_stride"]:
        call += f" (torchvision runs this network at output stride {reference['output_stride']}, not {model.output_stride})"
    if model.channels != 3:
        layer = BACKBONES[model.backbone].tensor_names(model, "torchvision")["stem_conv"]
        call += f"\nReplace its first convolution, backbone.{layer}, with one for {model.channels} input channels."
    if has_imagenet_normalization(model):
        return call
    mean, std = ([round(value / 255, 8) for value in values] for values in (model.mean, model.std))
    return f"{call}\ntorchvision.transforms.Normalize(mean={mean}, std={std}) on values from 0 to 1"


def _switches(model: ModelConfig) -> dict[str, Any]:
    """Return the `ModelConfig` values that torchvision fixes separately for each backbone."""
    reference = BACKBONES[model.backbone].references.get("torchvision", {})
    return {field: value for field, value in reference.items() if field != "name"}


SOURCE = Source(
    has_names=has_names,
    head_names=head_names,
    read_head=read_head,
    read_facts=read_facts,
    required=required,
    free=Source.free | {"aux_head"},
    describe=describe,
)
