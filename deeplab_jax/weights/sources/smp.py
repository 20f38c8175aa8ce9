"""Tensor names and settings for segmentation_models.pytorch's DeepLabV3 and DeepLabV3Plus weights.

Every backbone with an encoder name in its references is supported. An encoder of this library dilates whole stages: at output
stride 8, also the first blocks of its last two stages.
"""

from collections.abc import Collection, Mapping
from typing import Any

from deeplab_jax.config import Config, ModelConfig, aspp_rates
from deeplab_jax.errors import CheckpointError
from deeplab_jax.labels import CITYSCAPES
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
    output_channels,
    separable_bn,
)
from deeplab_jax.weights.sources.smp_settings import STRIDES, read_settings

SEPARABLE = "depthwise+1x1"


def has_names(names: Collection[str]) -> bool:
    """Return whether any tensor belongs to the head, whose name only this library uses."""
    return any(name.startswith("segmentation_head.") for name in names)


def head_names(model: ModelConfig) -> dict[str, str]:
    """Return a dict mapping our layer paths in the heads to this library's layer names."""
    aspp = "decoder.aspp.0" if model.decoder_width else "decoder.aspp"
    name_branch = separable_bn if model.aspp_conv == SEPARABLE else conv_bn
    names = {"classifier": "segmentation_head.0"} | aspp_names(aspp, len(model.atrous_rates), name_branch)
    names |= conv_bn("decoder/reduce", "decoder.block1.0", "decoder.block1.1")
    names |= separable_bn("decoder/refine1", "decoder.block2.0", "decoder.block2.1")
    if model.decoder_width:
        return names | separable_bn("aspp/refine", "decoder.aspp.1", "decoder.aspp.2")
    return names | conv_bn("aspp/refine", "decoder.conv", "decoder.bn")


def read_head(shapes: Shapes) -> dict[str, Any]:
    """Infer the `ModelConfig` fields, plus "num_classes", from the heads' tensors.

    Raises:
      OtherHeadError: The head is not a DeepLabV3's or DeepLabV3Plus's.
      CheckpointError: A tensor is missing, or an older version of the library wrote the file.
    """
    if "decoder.0.convs.0.0.weight" in shapes:
        raise CheckpointError(
            "was saved by an older version of segmentation_models.pytorch. Load it with a current version, save it again, and "
            "use the new file."
        )
    is_plus = "decoder.aspp.0.convs.0.0.weight" in shapes
    aspp = "decoder.aspp.0" if is_plus else "decoder.aspp"
    if f"{aspp}.convs.0.0.weight" not in shapes:
        raise OtherHeadError(describe_head(shapes))
    head = {
        "aspp_width": output_channels(shapes, f"{aspp}.convs.0.0.weight"),
        "aspp_conv": SEPARABLE if f"{aspp}.convs.1.0.1.weight" in shapes else "3x3",
        "fusion": "1x1+3x3",
        "dropout": 0.5,
        "num_classes": output_channels(shapes, "segmentation_head.0.weight"),
    }
    if not is_plus:
        return head
    return head | {
        "fusion": f"1x1+{SEPARABLE}",
        "decoder_width": output_channels(shapes, "decoder.block2.0.1.weight"),
        "low_level_width": output_channels(shapes, "decoder.block1.0.weight"),
        "decoder_conv": SEPARABLE,
        "decoder_depth": 1,
    }


def read_facts(state: StateDict, model: ModelConfig, overrides: Mapping[str, Any]) -> Facts:
    """Return the network's settings, from config.json if the library wrote one, and otherwise its defaults.

    The rates and the dilation of the third stage depend on the output stride.

    Raises:
      CheckpointError: Our implementation cannot reproduce the network, or config.json belongs to another one.
    """
    classes = output_channels({name: value.shape for name, value in state.tensors.items()}, "segmentation_head.0.weight")
    stored = read_settings(state.config, model, classes)
    stride = stored.get("output_stride", overrides.get("output_stride"))
    stride = stride if stride in STRIDES else 16 if model.decoder_width else 8
    fields = {
        "output_stride": stride,
        "atrous_rates": tuple(rate * stride // 16 for rate in (12, 24, 36)),
        "align_corners": True,
    }
    facts: Facts = {"labels": (CITYSCAPES, "assumed: segmentation_models.pytorch does not store class names")}
    facts |= {f"model.{field}": (value, ASSUMED) for field, value in (fields | _dilation(stride)).items()}
    given = stored | _dilation(stride) if stored else {}
    return facts | {f"model.{field}": (value, "config.json") for field, value in given.items()}


def required(model: ModelConfig) -> dict[str, tuple[Any, ...]]:
    """Return the supported values of the `ModelConfig` fields for which not only the default is supported."""
    is_plus = model.decoder_width > 0
    return {
        "backbone": tuple(name for name, backbone in BACKBONES.items() if "smp" in backbone.references),
        "output_stride": STRIDES,
        **{field: (value,) for field, value in _dilation(model.output_stride).items()},
        "atrous_rates": (model.atrous_rates if len(model.atrous_rates) == 3 else ModelConfig().atrous_rates,),
        "decoder_width": (model.aspp_width if is_plus else 0,),
        "aspp_conv": ("3x3", SEPARABLE),
        "fusion": (f"1x1+{SEPARABLE}" if is_plus else "1x1+3x3",),
        "decoder_conv": (SEPARABLE,),
        "decoder_depth": (1,),
        "align_corners": (True,),
    }


def describe(config: Config) -> str:
    """Return the Python call that builds the network, plus the image normalisation if it differs from ImageNet's."""
    model = config.model
    arguments = {
        "encoder_name": BACKBONES[model.backbone].references["smp"]["encoder_name"],
        "encoder_weights": None,
        "encoder_output_stride": model.output_stride,
        "decoder_channels": model.aspp_width,
        "decoder_atrous_rates": tuple(int(rate) for rate in aspp_rates(model.atrous_rates, model.output_stride)),
        "decoder_aspp_separable": model.aspp_conv == SEPARABLE,
        "in_channels": model.channels,
        "classes": config.labels.num_classes,
    }
    name = "DeepLabV3Plus" if model.decoder_width else "DeepLabV3"
    call = f"segmentation_models_pytorch.{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
    return call if has_imagenet_normalization(model) else f"{call}\n{describe_images(model)}"


def _dilation(output_stride: int) -> dict[str, Any]:
    return {"multi_grid": (1.0,), "stage3_first_rate": 2 if output_stride == 8 else 1}


SOURCE = Source(
    has_names=has_names,
    head_names=head_names,
    read_head=read_head,
    read_facts=read_facts,
    required=required,
    free=Source.free | {"aspp_width"},
    describe=describe,
    backbone_prefix="encoder.",
    unused=frozenset({"classification_head"}),
)
