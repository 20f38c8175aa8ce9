"""How a reference builds the network that a checkpoint of ours is exported to, and which networks it cannot build."""

import dataclasses
from typing import Any

from deeplab_jax.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Config,
    ModelConfig,
    aspp_rates,
    canonical,
    last_stage_rates,
    unit_of_each_block,
)
from deeplab_jax.errors import CheckpointError
from deeplab_jax.models.backbones.resnet import DEPTHS
from deeplab_jax.models.stages import STRIDES_OUT, strides_in


def buildable(model: ModelConfig, fmt: str) -> dict[str, tuple[Any, ...]]:
    """Fields of `model` that the reference's networks do not leave open, and the values that they have there."""
    is_resnet = model.backbone in DEPTHS
    values: dict[str, dict[str, tuple[Any, ...]]] = {
        "torchvision": {
            "backbone": ("resnet50", "resnet101", "mobilenetv3_large"),
            "width": (64,),
            "stem": ("7x7",),
            "shortcut": ("1x1",),
            "multi_grid": ((0.5, 1.0, 1.0) if is_resnet else (1.0, 1.0, 1.0),),
            "atrous_rates": ((6, 12, 18) if is_resnet else (12, 24, 36),),
            "aspp_width": (256,),
            "fusion": ("1x1+3x3",),
            "decoder_width": (0,),
            "align_corners": (False,),
        },
        "mmseg": {
            "backbone": tuple(DEPTHS),
            "shortcut": ("1x1",),
            "fusion": ("3x3",),
            "decoder_width": (0,),
            "dilate_conv2": (False,),
        },
    }
    return values[fmt]


def require_buildable(model: ModelConfig, fmt: str) -> None:
    """Raises CheckpointError where the reference has no network that computes the same."""
    for field, values in buildable(model, fmt).items():
        # Another spelling of the same network will do.
        if not any(canonical(dataclasses.replace(model, **{field: value})) == canonical(model) for value in values):
            known = " or ".join(map(repr, values))
            raise CheckpointError(
                f"`--to` (={fmt!r}) has no network with model.{field}={getattr(model, field)!r}, only {known}: export to "
                "another reference"
            )


def describe(config: Config, fmt: str) -> str:
    """The call or the fields that build it, and the normalisation of its images where it is not ImageNet's."""
    return {"torchvision": _torchvision, "mmseg": _mmseg}[fmt](config)


def _torchvision(config: Config) -> str:
    model = config.model
    fields = f"num_classes={config.labels.num_classes}, aux_loss={model.aux_head}"
    name, stride = (model.backbone, 8) if model.backbone in DEPTHS else ("mobilenet_v3_large", 16)
    call = f"torchvision.models.segmentation.deeplabv3_{name}(weights=None, weights_backbone=None, {fields})"
    call += "" if model.output_stride == stride else f", which runs at output stride {stride}, not {model.output_stride}"
    if not _is_own_normalization(model):
        return call
    mean, std = ([round(value / 255, 8) for value in values] for values in (model.mean, model.std))
    return f"{call}\ntorchvision.transforms.Normalize(mean={mean}, std={std}) on values of 0 to 1"


def _is_own_normalization(model: ModelConfig) -> bool:
    """Whether it is not that of ImageNet, which the references' recipes have."""
    return (tuple(model.mean), tuple(model.std)) != (IMAGENET_MEAN, IMAGENET_STD)


def _mmseg(config: Config) -> str:
    """The fields of mmsegmentation's deeplabv3_r50-d8 that this network sets."""
    model, stride = config.model, config.model.output_stride
    blocks, is_bottleneck = DEPTHS[model.backbone]
    channels = [model.width * 2**i * (4 if is_bottleneck else 1) for i in range(4)]
    backbone: dict[str, Any] = {
        "type": "ResNetV1c" if model.stem == "3x3" else "ResNet",
        "depth": int(model.backbone.removeprefix("resnet")),
        "strides": tuple(min(to, stride) // min(at, stride) for at, to in zip(strides_in(4), STRIDES_OUT, strict=True)),
        "dilations": tuple(max(out // stride, 1) for out in STRIDES_OUT),
        "contract_dilation": True,
    }
    if canonical(model) != canonical(dataclasses.replace(model, multi_grid=ModelConfig().multi_grid)):
        units = unit_of_each_block(model.multi_grid, blocks[3])
        backbone["multi_grid"] = tuple(int(rate) for rate in last_stage_rates(units, stride))
    if model.width != 64:
        backbone |= {"base_channels": model.width, "stem_channels": model.width}
    head = {
        "in_channels": channels[3],
        "channels": model.aspp_width,
        "dilations": (1, *(int(rate) for rate in aspp_rates(model.atrous_rates, stride))),
        "num_classes": config.labels.num_classes,
        "align_corners": model.align_corners,
    }
    aux = {"in_channels": channels[2], "channels": channels[2] // 4, "num_classes": config.labels.num_classes}
    fields = f"backbone={backbone}, decode_head={head}, auxiliary_head={aux if model.aux_head else None}"
    own = f", data_preprocessor=dict(mean={list(model.mean)}, std={list(model.std)})"
    return fields + own * _is_own_normalization(model)
