"""Which tensor of a reference each of our variables is, and how its axes lie. Names and arrays; no files.

One table a reference, from our layers to its layers, is read in both directions, so that import and export cannot disagree.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flax import traverse_util

from deeplab_jax.config import ModelConfig
from deeplab_jax.models.backbones.mobilenetv3 import blocks_of
from deeplab_jax.models.backbones.resnet import DEPTHS

FORMATS = ("torchvision", "timm", "mmseg")
HEADS = ("classifier", "aux_classifier")  # the layers that belong to a label set

Path = tuple[str, ...]  # of a variable, such as ("params", "backbone", "stem_conv", "kernel")

_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}


def reference_names(paths: Iterable[Path], model: ModelConfig, fmt: str) -> dict[Path, str]:
    """The reference's name of each variable.

    Args:
      paths: of a network's variables; of its backbone's alone for a file that holds no more.
      model: the network's switches.
      fmt: one of `FORMATS`; "timm" is a backbone as timm and torchvision name it.

    Raises:
      KeyError: a layer has no name in that reference.
    """
    layers = {f"backbone/{ours}": f"backbone.{theirs}" for ours, theirs in _backbone(model, fmt).items()}
    layers |= _torchvision_heads(model) if fmt == "torchvision" else _mmseg_heads(model) if fmt == "mmseg" else {}
    return {path: f"{layers['/'.join(path[1:-1])]}.{_LEAVES[path[0], path[-1]]}" for path in paths}


def bare(name: str) -> str:
    """A backbone's tensor without the prefix of the network that it is in."""
    return name.removeprefix("backbone.").removeprefix("features.")


def _backbone(model: ModelConfig, fmt: str) -> dict[str, str]:
    return _resnet(model, fmt) if model.backbone in DEPTHS else _mobilenetv3(model)


def _mobilenetv3(model: ModelConfig) -> dict[str, str]:
    """As torchvision numbers the parts: the stem, its block, all others, the last convolution."""
    names = {"stem_conv": "0.0", "stem_bn": "0.1"}
    (stem,), *stages = blocks_of(model.width)
    blocks = {"stem_block": stem}
    blocks |= {f"stage{i}_block{j}": block for i, stage in enumerate(stages, 1) for j, block in enumerate(stage, 1)}
    for number, (ours, block) in enumerate(blocks.items(), start=1):
        parts = ["expand"] * block.expands + ["depthwise"] + ["se"] * block.config.squeezes + ["project"]
        for i, part in enumerate(parts):
            pair = ("se/reduce", "se/expand") if part == "se" else (f"{part}_conv", f"{part}_bn")
            theirs = ("fc1", "fc2") if part == "se" else ("0", "1")
            names |= {f"{ours}/{a}": f"{number}.block.{i}.{b}" for a, b in zip(pair, theirs, strict=True)}
    last = len(blocks) + 1
    return names | {"stage4_conv": f"{last}.0", "stage4_bn": f"{last}.1"}


def _resnet(model: ModelConfig, fmt: str) -> dict[str, str]:
    names = {"stem_conv": "conv1", "stem_bn": "bn1"}
    for i in (1, 2, 3):
        # In timm the last BatchNorm of a deep stem is the plain network's.
        bn = {"mmseg": f"stem.{3 * i - 2}", "timm": "bn1" if i == 3 else f"conv1.{3 * i - 2}"}
        conv = {"mmseg": f"stem.{3 * i - 3}", "timm": f"conv1.{3 * i - 3}"}
        if fmt in conv:
            names |= {f"stem_conv{i}": conv[fmt], f"stem_bn{i}": bn[fmt]}
    first = int(model.shortcut == "avgpool+1x1")  # the pool is layer 0
    for stage, count in enumerate(DEPTHS[model.backbone][0], start=1):
        for block in range(count):
            ours, theirs = f"stage{stage}_block{block + 1}", f"layer{stage}.{block}"
            names |= {f"{ours}/{layer}": f"{theirs}.{layer}" for n in (1, 2, 3) for layer in (f"conv{n}", f"bn{n}")}
            shortcut = f"{theirs}.downsample"
            names |= {f"{ours}/downsample_conv": f"{shortcut}.{first}", f"{ours}/downsample_bn": f"{shortcut}.{first + 1}"}
    return names


def _torchvision_heads(model: ModelConfig) -> dict[str, str]:
    names = {"classifier": "classifier.4", "aux_classifier": "aux_classifier.4"}
    names |= _conv_bn("aspp/branch_1x1", "classifier.0.convs.0.0", "classifier.0.convs.0.1")
    pool = len(model.atrous_rates) + 1
    for i in range(1, pool):
        names |= _conv_bn(f"aspp/branch_rate{i}", f"classifier.0.convs.{i}.0", f"classifier.0.convs.{i}.1")
    names |= _conv_bn("aspp/branch_pool", f"classifier.0.convs.{pool}.1", f"classifier.0.convs.{pool}.2")
    names |= _conv_bn("aspp/fuse", "classifier.0.project.0", "classifier.0.project.1")
    names |= _conv_bn("aspp/refine", "classifier.1", "classifier.2")
    return names | _conv_bn("aux_conv", "aux_classifier.0", "aux_classifier.1")


def _mmseg_heads(model: ModelConfig) -> dict[str, str]:
    names = {"classifier": "decode_head.conv_seg", "aux_classifier": "auxiliary_head.conv_seg"}
    modules = {"aspp/branch_1x1": "decode_head.aspp_modules.0", "aspp/branch_pool": "decode_head.image_pool.1"}
    modules |= {f"aspp/branch_rate{i}": f"decode_head.aspp_modules.{i}" for i in range(1, len(model.atrous_rates) + 1)}
    modules |= {"aspp/fuse": "decode_head.bottleneck", "aux_conv": "auxiliary_head.convs.0"}
    for ours, theirs in modules.items():
        names |= _conv_bn(ours, f"{theirs}.conv", f"{theirs}.bn")
    return names


def _conv_bn(ours: str, conv: str, bn: str) -> dict[str, str]:
    return {f"{ours}/conv": conv, f"{ours}/bn": bn}


def to_reference(path: Path, value: np.ndarray, model: ModelConfig, fmt: str) -> np.ndarray:
    """Our variable with the reference's axes: kernels HWIO -> OIHW, the fusion's input in the reference's order."""
    if path[-1] != "kernel":
        return value
    if _is_pool_first(path, fmt):
        value = np.roll(value, model.aspp_width, axis=2)
    return np.ascontiguousarray(value.transpose(3, 2, 0, 1))


def from_reference(path: Path, value: np.ndarray, model: ModelConfig, fmt: str) -> np.ndarray:
    """The inverse of `to_reference`."""
    if path[-1] != "kernel":
        return value
    value = value.transpose(2, 3, 1, 0)
    return np.ascontiguousarray(np.roll(value, -model.aspp_width, axis=2) if _is_pool_first(path, fmt) else value)


def _is_pool_first(path: Path, fmt: str) -> bool:
    """mmsegmentation concatenates the ASPP's image-pooling branch first, we and the others last."""
    return fmt == "mmseg" and path[1:] == ("aspp", "fuse", "conv", "kernel")


def flatten(variables: Any) -> dict[Path, Any]:
    """{"params", "batch_stats"} by path."""
    return traverse_util.flatten_dict(variables)


def unflatten(flat: dict[Path, Any]) -> Any:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(flat)
