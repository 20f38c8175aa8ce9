"""Tensor names and stored settings for mmsegmentation's DeepLabV3 and DeepLabV3+ weights.

Strides and rates cannot be inferred from tensor shapes. Instead, the output stride, rates, corner alignment and evaluation
settings come from the configuration stored in a checkpoint or from the published file name. The configuration is parsed, but
never executed.
"""

import ast
import contextlib
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from deeplab_jax.config import (
    Config,
    ModelConfig,
    aspp_rates,
    last_stage_rates,
    multi_grid_units,
    unit_of_each_block,
)
from deeplab_jax.errors import CheckpointError, ConfigError
from deeplab_jax.labels import CITYSCAPES, IGNORE, VOC, LabelSet, distinct_colors
from deeplab_jax.models import DeepLabV3, canonical
from deeplab_jax.models.backbones import BACKBONES
from deeplab_jax.models.graph import abstract_variables
from deeplab_jax.models.stages import STRIDES_OUT, Shapes, strides_in
from deeplab_jax.models.switches import is_used
from deeplab_jax.weights.heads import describe_head
from deeplab_jax.weights.source import (
    ASSUMED,
    Facts,
    OtherHeadError,
    Source,
    StateDict,
    conv_bn,
    has_imagenet_normalization,
    last_parts,
    output_channels,
)

# mmsegmentation's separable convolutions, which only its DeepLabV3+ has.
SEPARABLE = "depthwise+bn+relu+1x1"


def has_names(names: Collection[str]) -> bool:
    """Return whether any tensor belongs to the head or the deep stem, whose names only mmsegmentation uses."""
    return "stem.0.weight" in names or any(name.startswith("decode_head.") for name in names)


def head_names(model: ModelConfig) -> dict[str, str]:
    """Return a dict mapping our layer paths in the heads to mmsegmentation's layer names."""
    names = {"classifier": "decode_head.conv_seg", "aux_classifier": "auxiliary_head.conv_seg"}
    modules = {"aspp/branch_1x1": "decode_head.aspp_modules.0", "aspp/branch_pool": "decode_head.image_pool.1"}
    modules |= {f"aspp/branch_rate{i}": f"decode_head.aspp_modules.{i}" for i in range(1, len(model.atrous_rates) + 1)}
    modules |= {"aspp/fuse": "decode_head.bottleneck", "aux_conv": "auxiliary_head.convs.0"}
    modules |= {"decoder/reduce": "decode_head.c1_bottleneck"}
    separable = {f"decoder/refine{i}": f"decode_head.sep_bottleneck.{i - 1}" for i in (1, 2)}
    if model.aspp_conv == SEPARABLE:
        separable |= {ours: modules.pop(ours) for ours in list(modules) if ours.startswith("aspp/branch_rate")}
    for ours, theirs in separable.items():
        depthwise = f"{theirs}.depthwise_conv"
        names |= {f"{ours}/depthwise": f"{depthwise}.conv", f"{ours}/depthwise_bn": f"{depthwise}.bn"}
        modules[ours] = f"{theirs}.pointwise_conv"
    for ours, theirs in modules.items():
        names |= conv_bn(ours, f"{theirs}.conv", f"{theirs}.bn")
    return names


def read_head(shapes: Shapes) -> dict[str, Any]:
    """Infer the `ModelConfig` fields, plus "num_classes", from the heads' tensors.

    The result is {} for a file that contains only a backbone.

    Raises:
      OtherHeadError: The head is not a DeepLabV3's or DeepLabV3+'s.
      CheckpointError: A tensor is missing.
    """
    if not any(name.startswith("decode_head.") for name in shapes):
        return {}
    if "decode_head.aspp_modules.0.conv.weight" not in shapes:
        raise OtherHeadError(describe_head(shapes))
    head = {
        "aspp_width": output_channels(shapes, "decode_head.aspp_modules.0.conv.weight"),
        "fusion": "3x3",
        "dropout": 0.1,
        "aux_head": _has_our_auxiliary_head(shapes),
        "num_classes": output_channels(shapes, "decode_head.conv_seg.weight"),
    }
    if not any(name.startswith(("decode_head.c1_bottleneck.", "decode_head.sep_bottleneck.")) for name in shapes):
        return head
    if "decode_head.c1_bottleneck.conv.weight" not in shapes:
        raise OtherHeadError("has the head of a DeepLabV3+ without low-level features")
    return head | {
        "aspp_conv": SEPARABLE,
        "decoder_conv": SEPARABLE,
        "decoder_width": output_channels(shapes, "decode_head.sep_bottleneck.1.pointwise_conv.conv.weight"),
        "low_level_width": output_channels(shapes, "decode_head.c1_bottleneck.conv.weight"),
        "dropout": 0.0,
        "decoder_dropout": 0.1,
    }


def _has_our_auxiliary_head(shapes: Shapes) -> bool:
    """Return whether there is an auxiliary head, and it is that of the published networks. Others only matter in training."""
    kernels = {name: shape for name, shape in shapes.items() if name.startswith("auxiliary_head.") and len(shape) == 4}
    first, classifier = "auxiliary_head.convs.0.conv.weight", "auxiliary_head.conv_seg.weight"
    channels = shapes.get("backbone.layer4.0.conv1.weight", (0, 0))[1]  # of the third stage's features
    return kernels.keys() == {first, classifier} and kernels[first] == (channels // 4, channels, 3, 3)


def check_settings(state: StateDict) -> None:
    """Raise a CheckpointError if the stored configuration has a backbone that computes differently with the same tensors."""
    settings = _parse_literals(_config_text(state))
    network = settings.get("model")
    if not isinstance(network, dict) or not isinstance(backbone := network.get("backbone"), dict):
        return
    norm = _read_normalization(settings)
    order = "bgr_to_rgb" if "bgr_to_rgb" in norm else "to_rgb"
    fields = _list_layer_settings("backbone", backbone) | {
        "style": (backbone.get("style", "pytorch"), "pytorch"),
        # Only images with three channels have an order of colours.
        order: (backbone.get("in_channels", 3) != 3 or norm.get(order, True), True),
    }
    _require_supported(fields)


def read_facts(state: StateDict, model: ModelConfig, overrides: Mapping[str, Any]) -> Facts:
    """Return the file's label set and its `model` and `eval` fields.

    The fields come from the configuration stored in the checkpoint or, if there is none, from the file name.

    Raises:
      CheckpointError: Our implementation cannot reproduce the checkpoint's network.
    """
    labels = read_label_set(state)
    facts: Facts = {"labels": (labels, "the file") if labels else (CITYSCAPES, "assumed: the published weights' classes")}
    facts["model.output_stride"] = (8, ASSUMED)
    if is_used(model, "pool_dilated_shortcuts"):
        facts["model.pool_dilated_shortcuts"] = (False, "mmsegmentation has no other value")
    if "dilate_conv2" in BACKBONES[model.backbone].switches:
        facts["model.dilate_conv2"] = (False, ASSUMED)
    settings = _parse_literals(_config_text(state))
    if {"backbone", "decode_head"} <= set(settings.get("model") or ()):
        fields, origin = _read_settings(settings, model), "the configuration in the file"
    else:
        fields, origin = _parse_file_name(state.source), "the file name"
    return facts | {field: (value, origin) for field, value in fields.items()}


def read_threshold(state: StateDict) -> float:
    """Return the probability above which a head with one logit predicts the second class.

    Raises:
      CheckpointError: It is not between 0 and 1.
    """
    head = (_parse_literals(_config_text(state)).get("model") or {}).get("decode_head") or {}
    threshold = head.get("threshold")
    if threshold is None:
        return 0.3  # mmsegmentation's default
    if not 0 < threshold < 1:
        raise CheckpointError(f"has decode_head.threshold={threshold!r}, which is not between 0 and 1. Use different weights.")
    return float(threshold)


def read_notes(state: StateDict) -> tuple[str, ...]:
    """Return what the configuration says that a config cannot express: the size to which test images are resized."""
    text = _config_text(state)
    unchanged = [2048, 1024] if "CityscapesDataset" in text else []  # the size of Cityscapes' images
    pipeline = _parse_literals(text).get("test_pipeline")
    for step in pipeline if isinstance(pipeline, list) else ():
        size = (step.get("img_scale") or step.get("scale")) if isinstance(step, dict) else None
        if isinstance(size, list) and size != unchanged:
            return (
                f"mmsegmentation resizes images for these weights to fit into {'x'.join(map(str, size))} pixels. eval.py and "
                "predict use them as they are",
            )
    return ()


def read_label_set(state: StateDict) -> LabelSet | None:
    """Return the label set in the file's metadata, or None if the metadata has none."""
    dataset_meta = state.meta.get("dataset_meta") or {}
    names = tuple(map(str, state.meta.get("CLASSES") or dataset_meta.get("classes") or ()))
    palette = state.meta.get("PALETTE") or dataset_meta.get("palette") or ()
    if len(names) == 1:  # a sigmoid decides between this class and everything else
        names, palette = ("background", *names), ((0, 0, 0), *palette)
    matches = [labels for labels in (CITYSCAPES, VOC) if labels.names == names]
    if matches or not names:
        return matches[0] if matches else None
    ids, ignored = _read_ids(state, len(names))
    try:
        colors = tuple((int(r), int(g), int(b)) for r, g, b in palette)
        return LabelSet("imported", names, colors, ids, ignored, ignored_colors=())
    except ConfigError:
        # Some published palettes use the same colour for several classes, which `LabelSet` does not allow.
        return LabelSet("imported", names, distinct_colors(len(names)), ids, ignored)


def _read_ids(state: StateDict, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the value of each of `count` classes in label files, and the ignored values."""
    meta = state.meta.get("dataset_meta") or {}
    # With reduce_zero_label, as used for ADE20K, label value 0 is ignored and the first class has the value 1.
    first = int(bool(meta.get("reduce_zero_label")) or "reduce_zero_label=True" in _config_text(state))
    # A network for some of a data set's classes has a label_map: the train id of each of them, and 255 or -1 for the others.
    train_ids = {int(value): i for value, i in (meta.get("label_map") or {}).items()} or {i: i for i in range(count)}
    ids = sorted((value for value, i in train_ids.items() if i in range(count)), key=train_ids.__getitem__)
    ignored = {*range(first), *(value + first for value in train_ids.keys() - ids), IGNORE}
    return tuple(value + first for value in ids), tuple(sorted(ignored))


def _config_text(state: StateDict) -> str:
    # mmsegmentation 0.x stores its configuration under "config". Versions from 1.0 use "cfg".
    text = state.meta.get("config") or state.meta.get("cfg")
    return text if isinstance(text, str) else ""


def _read_settings(settings: dict[str, Any], model: ModelConfig) -> dict[str, Any]:
    """Return the `model` and `eval` fields described by an mmsegmentation configuration of the network `model`."""
    network = settings["model"]
    backbone, head = network["backbone"], network["decode_head"]
    norm = _read_normalization(settings)
    stride = 4 * math.prod(backbone.get("strides", (1, 2, 2, 2)))
    dilations = tuple(max(natural // stride, 1) for natural in STRIDES_OUT)
    _require_supported(
        _list_layer_settings("decode_head", head)
        | {
            "dilations": (tuple(backbone.get("dilations", (1, 1, 1, 1))), dilations),
            "contract_dilation": (stride == 32 or backbone.get("contract_dilation", False), True),
        }
    )
    rates, grid = list(head.get("dilations", (1, 6, 12, 18)))[1:], backbone.get("multi_grid")
    if any(rate * stride % 16 for rate in rates):
        raise CheckpointError(
            f"has the ASPP dilations {rates} at output stride {stride}, which do not scale to integers at output stride 16. "
            "Use different weights."
        )
    test = network.get("test_cfg") or settings.get("test_cfg") or {}
    is_sliding = test.get("mode") == "slide"
    fields = {
        "model.output_stride": stride,
        "model.multi_grid": multi_grid_units(tuple(grid), stride) if grid else ModelConfig().multi_grid,
        "model.atrous_rates": tuple(rate * stride // 16 for rate in rates),
        "model.align_corners": head.get("align_corners", False),
        "model.decoder_dropout" if model.decoder_width else "model.dropout": head.get("dropout_ratio", 0.1),
        "eval.window": tuple(test["crop_size"]) if is_sliding else (0, 0),
        "eval.window_stride": tuple(test["stride"]) if is_sliding else (0, 0),
    }
    return fields | {f"model.{name}": tuple(map(float, norm[name])) for name in ("mean", "std") if name in norm}


def _read_normalization(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the normalisation: img_norm_cfg in version 0.x, or data_preprocessor with its defaults."""
    network = settings["model"]
    norm = network.get("data_preprocessor") or settings.get("data_preprocessor")
    if not norm:
        return settings.get("img_norm_cfg") or {}
    norm = {"bgr_to_rgb": False} | norm
    if norm.get("mean") is None:  # the images keep their values from 0 to 255
        channels = network["backbone"].get("in_channels", 3)
        norm |= {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    return norm


def _list_layer_settings(name: str, module: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings of a module's layers that its tensors do not show, each with our value."""
    norm, conv, activation = module.get("norm_cfg") or {}, module.get("conv_cfg") or {}, module.get("act_cfg", {"type": "ReLU"})
    kind, function = conv.get("type", "Conv2d"), (activation or {}).get("type")
    return {
        f"{name}.norm_cfg.eps": (norm.get("eps", 1e-5), 1e-5),
        f"{name}.conv_cfg.type": ("Conv2d" if kind == "Conv" else kind, "Conv2d"),
        # Newer configurations name classes with their modules.
        f"{name}.act_cfg.type": (function and function.rpartition(".")[2], "ReLU"),
    }


def _require_supported(settings: dict[str, tuple[Any, Any]]) -> None:
    """Raise a CheckpointError unless each field's value is the one that our network has."""
    for field, (value, ours) in settings.items():
        if value != ours:
            raise CheckpointError(f"was trained with {field}={value!r}, but only {ours!r} is supported. Use different weights.")


def _parse_file_name(source: str) -> dict[str, Any]:
    """Return the `model` and `eval` fields encoded in a published file name.

    Examples are deeplabv3_r101-d16-mg124_512x1024_... and deeplabv3plus_r50-d8_769x769_...
    """
    name = last_parts(source, 1).lower()
    if not name.startswith(("deeplabv3_r", "deeplabv3plus_r")):
        return {}
    fields: dict[str, Any] = {"model.output_stride": 16} if re.search(r"[-_]d16[-_]", name) else {}
    if "mg124" in name:
        fields["model.multi_grid"] = (0.5, 1.0, 2.0)
    if "769x769" in name:
        fields |= {"model.align_corners": True, "eval.window": (769, 769), "eval.window_stride": (513, 513)}
    return fields


def _parse_literals(text: str) -> dict[str, Any]:
    """Parse Python source and return the variables whose values are literals or nested `dict(...)` calls."""
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError):
        return {}
    values: dict[str, Any] = {}
    for statement in statements:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            with contextlib.suppress(ValueError, TypeError):
                values[statement.targets[0].id] = _parse_literal(statement.value)
    return values


def _parse_literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {keyword.arg: _parse_literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {ast.literal_eval(key): _parse_literal(value) for key, value in pairs if key is not None}
    if isinstance(node, ast.List | ast.Tuple):
        return [_parse_literal(item) for item in node.elts]
    return ast.literal_eval(node)


def required(model: ModelConfig) -> dict[str, tuple[Any, ...]]:
    """Return the supported values of the `ModelConfig` fields for which not only the default is supported."""
    return {
        "backbone": tuple(name for name, backbone in BACKBONES.items() if "mmseg" in backbone.references),
        "pool_dilated_shortcuts": (False,),
        "decoder_width": (model.aspp_width if model.decoder_width else 0,),
        "aspp_conv": (SEPARABLE if model.decoder_width else "3x3",),
        "fusion": ("3x3",),
        "decoder_conv": (SEPARABLE,),
        "dilate_conv2": (False,),
    }


# The settings of each stem and shortcut.
_KINDS: dict[tuple[str, str], dict[str, Any]] = {
    ("7x7", "1x1"): {},
    ("3x3", "1x1"): {"type": "ResNetV1c"},
    ("7x7", "avgpool+1x1"): {"avg_down": True},
    ("3x3", "avgpool+1x1"): {"type": "ResNetV1d"},
}


def describe(config: Config) -> str:
    """Return the settings that turn mmsegmentation's deeplabv3_r50-d8, or its deeplabv3plus_r50-d8, into this network."""
    model, stride, classes = config.model, config.model.output_stride, config.labels.num_classes
    params = abstract_variables(DeepLabV3(model, classes))["params"]
    backbone: dict[str, Any] = {
        **BACKBONES[model.backbone].references["mmseg"],
        **_KINDS[model.stem, model.shortcut],
        "strides": tuple(min(to, stride) // min(at, stride) for at, to in zip(strides_in(4), STRIDES_OUT, strict=True)),
        "dilations": tuple(max(out // stride, 1) for out in STRIDES_OUT),
        "contract_dilation": True,
    }
    if canonical(model).multi_grid != canonical(ModelConfig(backbone=model.backbone)).multi_grid:
        units = unit_of_each_block(model.multi_grid, BACKBONES[model.backbone].blocks[3])
        backbone["multi_grid"] = tuple(int(rate) for rate in last_stage_rates(units, stride))
    if model.channels != 3:
        backbone["in_channels"] = model.channels
    if model.width != 64:
        backbone |= {"base_channels": model.width, "stem_channels": model.width}
    head = {
        "in_channels": params["aspp"]["branch_1x1"]["conv"]["kernel"].shape[2],
        "channels": model.aspp_width,
        "dilations": (1, *(int(rate) for rate in aspp_rates(model.atrous_rates, stride))),
        "num_classes": classes,
        "align_corners": model.align_corners,
    }
    if model.decoder_width:
        _, _, low_channels, low_width = params["decoder"]["reduce"]["conv"]["kernel"].shape
        head |= {"type": "DepthwiseSeparableASPPHead", "c1_in_channels": low_channels, "c1_channels": low_width}
    aux = None
    if model.aux_head:
        _, _, in_channels, channels = params["aux_conv"]["conv"]["kernel"].shape
        aux = {"in_channels": in_channels, "channels": channels, "num_classes": classes}
    fields = f"backbone={backbone}, decode_head={head}, auxiliary_head={aux}"
    if has_imagenet_normalization(model):
        return fields
    return f"{fields}, data_preprocessor=dict(mean={list(model.mean)}, std={list(model.std)})"


SOURCE = Source(
    has_names=has_names,
    head_names=head_names,
    read_head=read_head,
    read_facts=read_facts,
    check_settings=check_settings,
    read_threshold=read_threshold,
    read_notes=read_notes,
    required=required,
    free=Source.free
    | {"width", "stem", "shortcut", "multi_grid", "atrous_rates", "aspp_width", "low_level_width", "aux_head", "align_corners"},
    describe=describe,
    first_inputs=lambda model: {"aspp/fuse": model.aspp_width},  # the image pooling
    unused=frozenset({"auxiliary_head"}),  # if it is not of our form
)
