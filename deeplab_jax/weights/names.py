"""Which tensor of a source each of our variables is, and how its axes lie. Names and arrays; no files.

One table for each source and backbone, from our layers to theirs, is read in both directions, so that import and export cannot
disagree.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flax import traverse_util

from deeplab_jax.config import ModelConfig
from deeplab_jax.models.backbones import find_backbone
from deeplab_jax.weights.sources import SOURCES

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
    """Return the source's name of each variable.

    Args:
      paths: of a network's variables; of its backbone's alone for a file that holds no more.
      model: the network's switches.
      fmt: a key of `SOURCES`.

    Raises:
      KeyError: a layer has no name in that source.
    """
    backbone = find_backbone(model.backbone).tensor_names(model, fmt)
    source = SOURCES[fmt]
    layers = {f"backbone/{ours}": source.backbone_prefix + theirs for ours, theirs in backbone.items()}
    layers |= source.head_names(model)
    return {path: f"{layers['/'.join(path[1:-1])]}.{_LEAVES[path[0], path[-1]]}" for path in paths}


def without_prefix(name: str) -> str:
    """Return a backbone's tensor without the prefix of the network that it is in."""
    # "features." is torchvision's ImageNet MobileNet.
    for prefix in dict.fromkeys([*(source.backbone_prefix for source in SOURCES.values()), "features."]):
        name = name.removeprefix(prefix)
    return name


def to_reference(path: Path, value: np.ndarray, model: ModelConfig, fmt: str) -> np.ndarray:
    """Return our variable with the source's axes: kernels HWIO -> OIHW, the fusion's input in the source's order."""
    if path[-1] != "kernel":
        return value
    if _is_pool_first(path, fmt):
        value = np.roll(value, model.aspp_width, axis=2)
    return np.ascontiguousarray(value.transpose(3, 2, 0, 1))


def from_reference(path: Path, value: np.ndarray, model: ModelConfig, fmt: str) -> np.ndarray:
    """Return the inverse of `to_reference`."""
    if path[-1] != "kernel":
        return value
    value = value.transpose(2, 3, 1, 0)
    return np.ascontiguousarray(np.roll(value, -model.aspp_width, axis=2) if _is_pool_first(path, fmt) else value)


def _is_pool_first(path: Path, fmt: str) -> bool:
    return SOURCES[fmt].is_pool_first and path[1:] == ("aspp", "fuse", "conv", "kernel")


def flatten(variables: Any) -> dict[Path, Any]:
    """Return {"params", "batch_stats"} by path."""
    return traverse_util.flatten_dict(variables)


def unflatten(flat: dict[Path, Any]) -> Any:
    """Return the inverse of `flatten`."""
    return traverse_util.unflatten_dict(flat)
