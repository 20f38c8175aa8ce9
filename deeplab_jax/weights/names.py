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
    """Return what can precede the names of a backbone's tensors, such as "backbone.". Longer prefixes come first."""
    # torchvision's ImageNet MobileNets use the prefix "features.", also as encoders of segmentation_models.pytorch.
    prefixes = [source.backbone_prefix for source in SOURCES.values()]
    return list(dict.fromkeys([*(f"{prefix}features." for prefix in prefixes), *prefixes, "features."]))


def strip_backbone_prefix(name: str) -> str:
    """Remove the backbone prefix, such as "backbone.", from a tensor name."""
    for prefix in backbone_prefixes():
        name = name.removeprefix(prefix)
    return name


def to_reference(path: Path, value: np.ndarray, model: ModelConfig, fmt: str) -> np.ndarray:
    """Convert one of our variables to the library's axis order.

    Kernels are transposed from HWIO to OIHW. If the library concatenates a layer's inputs in another order, the kernel's
    channels are reordered.
    """
    if path[-1] != "kernel":
        return value
    return np.ascontiguousarray(_reorder(path, value, model, fmt, 1).transpose(3, 2, 0, 1))


def from_reference(path: Path, value: np.ndarray, model: ModelConfig, fmt: str) -> np.ndarray:
    """Convert a library tensor to our axis order. This is the inverse of `to_reference`."""
    if path[-1] != "kernel":
        return value
    return np.ascontiguousarray(_reorder(path, value.transpose(2, 3, 1, 0), model, fmt, -1))


def _reorder(path: Path, kernel: np.ndarray, model: ModelConfig, fmt: str, sign: int) -> np.ndarray:
    """Return an HWIO kernel with its input channels in the library's order, or in ours if `sign` is -1."""
    count = SOURCES[fmt].first_inputs(model).get("/".join(path[1:-2]), 0)
    # The channels of a depthwise kernel are on the last axis, and the 1x1 convolution after it reads them in the same order.
    return np.roll(kernel, sign * count, axis=3 if path[-2] == "depthwise" else 2)


def flatten(variables: Any) -> dict[Path, Any]:
    """Flatten {"params": ..., "batch_stats": ...} into a dict keyed by variable path."""
    return traverse_util.flatten_dict(variables)


def unflatten(flat: dict[Path, Any]) -> Any:
    """Rebuild the nested variables dict from a dict keyed by path. This is the inverse of `flatten`."""
    return traverse_util.unflatten_dict(flat)
