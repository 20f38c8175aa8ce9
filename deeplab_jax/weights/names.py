"""Convert tensor names and axis order between reference libraries and our Flax variables.

Each combination of library and backbone has one table of layer names. Import and export share it, so they cannot disagree.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flax import traverse_util

from deeplab_jax.config import ModelConfig
from deeplab_jax.models.backbones import find_backbone
from deeplab_jax.weights.sources import SOURCES

HEADS = ("classifier", "aux_classifier")  # the layers whose shapes depend on the label set

Path = tuple[str, ...]  # a variable path, such as ("params", "backbone", "stem_conv", "kernel")

_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
}


def reference_names(paths: Iterable[Path], model: ModelConfig, fmt: str) -> dict[Path, str]:
    """Return a dict mapping each variable path to its tensor name in the library.

    Args:
      paths: The variable paths for a full network, or for its backbone only.
      model: The network architecture.
      fmt: The library, a key of `SOURCES`.

    Raises:
      KeyError: The library has no name for one of the layers.
    """
    backbone = find_backbone(model.backbone).tensor_names(model, fmt)
    source = SOURCES[fmt]
    layers = {f"backbone/{ours}": source.backbone_prefix + theirs for ours, theirs in backbone.items()}
    layers |= source.head_names(model)
    leaves = _LEAVES | dict(zip((("batch_stats", "mean"), ("batch_stats", "var")), source.statistics, strict=True))
    return {path: f"{layers['/'.join(path[1:-1])]}.{leaves[path[0], path[-1]]}" for path in paths}


def backbone_prefixes() -> list[str]:
    """Return what can precede the names of a backbone's tensors, such as "backbone."."""
    # torchvision's ImageNet MobileNet uses the prefix "features.".
    return list(dict.fromkeys([*(source.backbone_prefix for source in SOURCES.values()), "features."]))


def strip_backbone_prefix(name: str) -> str:
    """Remove the backbone prefix, such as "backbone.", from a tensor name."""
    for prefix in backbone_prefixes():
        name = name.removeprefix(prefix)
    return name


def to_reference(path: Path, value: np.ndarray, model: ModelConfig, fmt: str) -> np.ndarray:
    """Convert one of our variables to the library's axis order.

    Kernels are transposed from HWIO to OIHW. The input channels of the ASPP fusion kernel are reordered to match the order in
    which the library concatenates the ASPP branches.
    """
    if path[-1] != "kernel":
        return value
    if _is_pool_first(path, fmt):
        value = np.roll(value, model.aspp_width, axis=2)
    return np.ascontiguousarray(value.transpose(3, 2, 0, 1))


def from_reference(path: Path, value: np.ndarray, model: ModelConfig, fmt: str) -> np.ndarray:
    """Convert a library tensor to our axis order. This is the inverse of `to_reference`."""
    if path[-1] != "kernel":
        return value
    value = value.transpose(2, 3, 1, 0)
    return np.ascontiguousarray(np.roll(value, -model.aspp_width, axis=2) if _is_pool_first(path, fmt) else value)


def _is_pool_first(path: Path, fmt: str) -> bool:
    return SOURCES[fmt].is_pool_first and path[1:] == ("aspp", "fuse", "conv", "kernel")


def flatten(variables: Any) -> dict[Path, Any]:
    """Flatten {"params": ..., "batch_stats": ...} into a dict keyed by variable path."""
    return traverse_util.flatten_dict(variables)


def unflatten(flat: dict[Path, Any]) -> Any:
    """Rebuild the nested variables dict from a dict keyed by path. This is the inverse of `flatten`."""
    return traverse_util.unflatten_dict(flat)
