"""How a reference builds the network that a checkpoint of ours is exported to, and which networks it cannot build."""

from typing import Any

from deeplab_jax.config import Config, ModelConfig, aspp_rates, last_stage_rates
from deeplab_jax.errors import CheckpointError
from deeplab_jax.models.resnet import DEPTHS
from deeplab_jax.models.stages import STRIDES_OUT, strides_in


def require_buildable(model: ModelConfig, fmt: str) -> None:
    """Raises CheckpointError where the reference has no network that computes the same."""
    is_resnet, is_basic = model.backbone in DEPTHS, model.backbone in DEPTHS and not DEPTHS[model.backbone][1]
    networks: dict[str, dict[str, tuple[Any, ...]]] = {
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
            "dilate_conv2": (False,) if is_basic else (True, False),
        },
    }
    for field, values in networks[fmt].items():
        value = getattr(model, field)
        if value not in values:
            known = " or ".join(map(repr, values))
            raise CheckpointError(
                f"`--to` (={fmt!r}) has no network with model.{field}={value!r}, only {known}: export to another reference"
            )


def describe(config: Config, fmt: str) -> str:
    """The call or the fields that build it."""
    return {"torchvision": _torchvision, "mmseg": _mmseg}[fmt](config)


def _torchvision(config: Config) -> str:
    model = config.model
    fields = f"num_classes={config.labels.num_classes}, aux_loss={model.aux_head}"
    name, stride = (model.backbone, 8) if model.backbone in DEPTHS else ("mobilenet_v3_large", 16)
    call = f"torchvision.models.segmentation.deeplabv3_{name}(weights=None, weights_backbone=None, {fields})"
    return call if model.output_stride == stride else f"{call}, which runs at output stride {stride}, not {model.output_stride}"


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
    if model.multi_grid != ModelConfig().multi_grid:
        rates = [int(rate) for rate in last_stage_rates(model.multi_grid, stride)]
        backbone["multi_grid"] = tuple((rates + rates[-1:] * blocks[3])[: blocks[3]])
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
    return f"backbone={backbone}, decode_head={head}, auxiliary_head={aux if model.aux_head else None}"
