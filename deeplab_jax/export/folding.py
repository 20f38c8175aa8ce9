"""BatchNorm of a trained network as part of its kernels and biases."""

from typing import Any

import numpy as np
from flax import traverse_util

from deeplab_jax.config import ModelConfig
from deeplab_jax.models.backbones import mobilenetv3
from deeplab_jax.models.layers import BatchNorm


def folded(variables: dict[str, Any], model: ModelConfig) -> dict[str, Any]:
    """{"params"} under which the network predicts what it does under {"params", "batch_stats"}, up to rounding.

    gamma (conv(x) - mean) / sqrt(var + epsilon) + beta is a convolution and a bias: kernels take the factor, and BatchNorm is
    left with its bias.

    Args:
      variables: {"params", "batch_stats"}.
      model: the network.
    """
    params = traverse_util.flatten_dict(variables["params"])
    stats = traverse_util.flatten_dict(variables["batch_stats"])
    for path in {path[:-1] for path in stats}:
        mean, var = (np.asarray(stats[(*path, name)], np.float64) for name in ("mean", "var"))
        factor = np.asarray(params.pop((*path, "scale")), np.float64) / np.sqrt(var + _epsilon(path, model))
        kernel = (*path[:-1], path[-1].replace("bn", "conv"), "kernel")
        params[kernel] = (np.asarray(params[kernel], np.float64) * factor).astype(np.float32)
        params[(*path, "bias")] = (np.asarray(params[(*path, "bias")], np.float64) - mean * factor).astype(np.float32)
    return {"params": traverse_util.unflatten_dict(params)}


def _epsilon(path: tuple[str, ...], model: ModelConfig) -> float:
    is_mobilenet = path[0] == "backbone" and model.backbone == "mobilenetv3_large"
    return mobilenetv3.EPSILON if is_mobilenet else BatchNorm.epsilon
