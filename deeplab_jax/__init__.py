"""DeepLabV3 semantic segmentation in JAX/Flax.

`load` a trained network and use it; the modules hold the rest. TensorFlow is imported by `deeplab_jax.data` alone.
"""

import importlib

_HOME = {
    "CITYSCAPES": "labels",
    "VOC": "labels",
    "LabelSet": "labels",
    "Config": "config",
    "validate": "models",
    "DeepLabV3": "models",
    "Segmenter": "api",
    "load": "api",
    "load_exported": "export.loading",
    "DeeplabError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "CheckpointError": "errors",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    # Recipes and the check of flags need `config` alone: they should not wait for JAX and orbax.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
