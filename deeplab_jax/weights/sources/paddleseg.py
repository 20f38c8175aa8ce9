"""Tensor names and settings for PaddleSeg's DeepLabV3 and DeepLabV3P weights (.pdparams).

The backbones are its ResNet_vd networks. They dilate whole stages, also the first block, and their pooled shortcuts leave out
the pooling in these stages. Older ImageNet files of PaddleClas have the same names, without the prefix.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from deeplab_jax.config import Config, ModelConfig, aspp_rates, unit_of_each_block
from deeplab_jax.labels import CITYSCAPES, VOC
from deeplab_jax.models.backbones import BACKBONES
from deeplab_jax.models.stages import Shapes
from deeplab_jax.weights.source import (
    ASSUMED,
    Facts,
    OtherHeadError,
    Source,
    StateDict,
    conv_bn,
    describe_images,
    last_parts,
    output_channels,
)

SEPARABLE = "depthwise+bn+1x1"
STRIDES = (8, 16)
IMAGE_VALUE = 127.5  # the mean and the standard deviation of each channel, so that images have values from -1 to 1
PUBLISHED_GRID = (1.0, 2.0, 4.0)
FIXED = "PaddleSeg has no other value"
GRID_ASSUMED = (
    "assumed: the default of PaddleSeg's ResNet_vd classes, because neither tensors nor file name determine this field. "
    "All of PaddleSeg's configurations have another: for networks trained with them, use --multi-grid 1 2 4"
)


def has_names(names: Collection[str]) -> bool:
    """Return whether any tensor is a running mean with the name that PaddleSeg's layers give it."""
    return any(name.endswith("._batch_norm._mean") for name in names)


def head_names(model: ModelConfig) -> dict[str, str]:
    """Return a dict mapping our layer paths in the heads to PaddleSeg's layer names."""
    modules = {"aspp/branch_pool": "head.aspp.global_avg_pool.1", "aspp/fuse": "head.aspp.conv_bn_relu"}
    modules |= {"decoder/reduce": "head.decoder.conv_bn_relu1"}
    branches = {f"aspp/branch_rate{i}": f"head.aspp.aspp_blocks.{i}" for i in range(1, len(model.atrous_rates) + 1)}
    separable = {"decoder/refine1": "head.decoder.conv_bn_relu2", "decoder/refine2": "head.decoder.conv_bn_relu3"}
    if model.aspp_conv == SEPARABLE:
        separable |= branches
    else:
        modules |= branches
    modules |= {"aspp/branch_1x1": "head.aspp.aspp_blocks.0"}
    names = {"classifier": "head.decoder.conv" if model.decoder_width else "head.cls"}
    for ours, theirs in separable.items():
        depthwise = f"{theirs}.depthwise_conv"
        names |= {f"{ours}/depthwise": f"{depthwise}._conv", f"{ours}/depthwise_bn": f"{depthwise}._batch_norm"}
        modules[ours] = f"{theirs}.piontwise_conv"
    for ours, theirs in modules.items():
        names |= conv_bn(ours, f"{theirs}._conv", f"{theirs}._batch_norm")
    return names


def read_head(shapes: Shapes) -> dict[str, Any]:
    """Infer the `ModelConfig` fields, plus "num_classes", from the heads' tensors.

    The result is {} for a file that contains only a backbone.

    Raises:
      OtherHeadError: The head is not a DeepLabV3's or DeepLabV3P's.
      CheckpointError: A tensor is missing.
    """
    parts = {name.split(".")[1] for name in shapes if name.startswith("head.")}
    if not parts:
        return {}
    if "aspp" not in parts:
        raise OtherHeadError("has a head without ASPP")
    if others := parts - {"aspp", "cls", "decoder"}:
        raise OtherHeadError(f"has the head of a different network, which also has head.{min(others)}")
    is_plus = "decoder" in parts
    classifier = "head.decoder.conv.weight" if is_plus else "head.cls.weight"
    head = {
        "aspp_width": output_channels(shapes, "head.aspp.aspp_blocks.0._conv.weight"),
        "fusion": "1x1",
        "conv_bias": "head.aspp.aspp_blocks.0._conv.bias" in shapes,
        "dropout": 0.1,
        "num_classes": output_channels(shapes, classifier),
    }
    if not is_plus:
        return head
    return head | {
        "aspp_conv": SEPARABLE,
        "decoder_width": output_channels(shapes, "head.decoder.conv_bn_relu2.piontwise_conv._conv.weight"),
        "low_level_width": output_channels(shapes, "head.decoder.conv_bn_relu1._conv.weight"),
        "decoder_conv": SEPARABLE,
        "decoder_depth": 2,
    }


def read_facts(state: StateDict, model: ModelConfig, overrides: Mapping[str, Any]) -> Facts:
    """Return this library's settings. The state dicts do not store any, but names of published folders contain some.

    An example is deeplabv3p_resnet101_os8_cityscapes_769x769_80k/model.pdparams. All of PaddleSeg's configurations with such
    names have the multi-grid (1, 2, 4). The dilation of the third stage depends on the output stride.
    """
    name = last_parts(state.source, 2)
    published = re.search(r"deeplabv3p?_resnet\d+(?:_vd)?_os(8|16)(?!\d)([^/]*)", name, re.IGNORECASE)
    stride, origin = (int(published[1]), "the folder or file name") if published else (8, ASSUMED)
    facts: Facts = {
        "model.output_stride": (stride, origin),
        "model.align_corners": (published is not None and "769x769" in published[2], origin),
        "model.multi_grid": (PUBLISHED_GRID, origin) if published else ((1.0,), GRID_ASSUMED),
        "model.stage3_first_rate": (_first_rate(overrides.get("output_stride", stride)), FIXED),
        "model.pool_dilated_shortcuts": (False, FIXED),
        "model.mean": ((IMAGE_VALUE,) * model.channels, ASSUMED),
        "model.std": ((IMAGE_VALUE,) * model.channels, ASSUMED),
    }
    classes = state.tensors[f"{head_names(model)['classifier']}.weight"].shape[0]
    return facts | {"labels": (VOC if classes == VOC.num_classes else CITYSCAPES, "assumed: the published weights' classes")}


def required(model: ModelConfig) -> dict[str, tuple[Any, ...]]:
    """Return the supported values of the `ModelConfig` fields for which not only the default is supported."""
    is_plus, rates = model.decoder_width > 0, aspp_rates(model.atrous_rates, model.output_stride)
    return {
        "backbone": tuple(name for name, backbone in BACKBONES.items() if "paddleseg" in backbone.references),
        "stem": ("3x3",),
        "shortcut": ("avgpool+1x1",),
        "pool_dilated_shortcuts": (False,),
        "output_stride": STRIDES,
        "stage3_first_rate": (_first_rate(model.output_stride),),
        "multi_grid": (model.multi_grid if all(unit == int(unit) for unit in model.multi_grid) else (1.0,),),
        "atrous_rates": (model.atrous_rates if all(int(rate) > 1 for rate in rates) else ModelConfig().atrous_rates,),
        "decoder_width": (256 if is_plus else 0,),
        "aspp_width": (256 if is_plus else model.aspp_width,),
        "aspp_conv": (SEPARABLE if is_plus else "3x3",),
        "conv_bias": (True,),
        "decoder_conv": (SEPARABLE,),
    }


def describe(config: Config) -> str:
    """Return the Python call that builds the network, plus the image normalisation if it differs from PaddleSeg's."""
    model = config.model
    name, indices = ("DeepLabV3P", (0, 3)) if model.decoder_width else ("DeepLabV3", (3,))
    grid = tuple(int(unit) for unit in unit_of_each_block(model.multi_grid, BACKBONES[model.backbone].blocks[3]))
    channels = f", in_channels={model.channels}" if model.channels != 3 else ""
    kind = BACKBONES[model.backbone].references["paddleseg"]["type"]
    backbone = f"paddleseg.models.{kind}(output_stride={model.output_stride}, multi_grid={grid}{channels})"
    rates = (1, *(int(rate) for rate in aspp_rates(model.atrous_rates, model.output_stride)))
    call = (
        f"paddleseg.models.{name}({config.labels.num_classes}, {backbone}, backbone_indices={indices}, aspp_ratios={rates}, "
        f"aspp_out_channels={model.aspp_width}, align_corners={model.align_corners})"
    )
    return call if {*model.mean, *model.std} == {IMAGE_VALUE} else f"{call}\n{describe_images(model)}"


def _first_rate(output_stride: int) -> int:
    return 2 if output_stride == 8 else 1


SOURCE = Source(
    has_names=has_names,
    head_names=head_names,
    read_head=read_head,
    read_facts=read_facts,
    required=required,
    free=Source.free | {"align_corners"},
    describe=describe,
    statistics=("_mean", "_variance"),
    suffixes=(".pdparams", ".safetensors"),
    loads_with="set_state_dict",
)
