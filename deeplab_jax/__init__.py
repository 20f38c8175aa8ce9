"""DeepLabV3 semantic segmentation in JAX/Flax.

Use `train` to train a network and `load` to get a trained one. Everything else is in submodules. Only `deeplab_jax.data`
imports TensorFlow.
"""

import importlib

from deeplab_jax import buckets  # noqa: F401  # decides what `epath.Path` does with URLs

_HOME = {
    "CITYSCAPES": "labels",
    "VOC": "labels",
    "LabelSet": "labels",
    "Config": "config",
    "validate": "models",
    "DeepLabV3": "models",
    "Segmenter": "api",
    "load": "api",
    "train": "commands.train",
    "load_exported": "export.loading",
    "DeeplabError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "CheckpointError": "errors",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    # Import lazily, because importing JAX and orbax takes seconds, and recipes and flag parsing only need `config`.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
