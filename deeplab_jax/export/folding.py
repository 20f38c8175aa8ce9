"""BatchNorm of a trained network as part of the kernels and biases of the convolutions before it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from deeplab_jax.models import DeepLabV3
from deeplab_jax.models.convolution import conv2d
from deeplab_jax.models.graph import Variable, record
from deeplab_jax.models.layers import batch_norm


def fold(variables: dict[str, Any], network: DeepLabV3) -> dict[str, Any]:
    """Return {"params"} under which the network predicts what it does under {"params", "batch_stats"}, up to rounding.

    gamma (conv(x) - mean) / sqrt(var + epsilon) + beta is a convolution and a bias: kernels take the factor, and BatchNorm is
    left with its bias.

    Args:
      variables: {"params", "batch_stats"}.
      network: without rematerialised stages. Variables that it does not use are left out.
    """
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    graph = record(lambda variables, images: network.apply(variables, images, False), variables, images)
    used = {each.path for node in graph.nodes for each in node.arguments.values() if isinstance(each, Variable)}
    flat = {path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(variables).items() if path in used}
    made_by = {node.output: node for node in graph.nodes}
    for node in graph.nodes:
        if node.operation is not batch_norm:
            continue
        convolution = made_by[node.arguments["x"]]
        if convolution.operation is not conv2d:
            raise ValueError(f"BatchNorm {node.arguments['scale'].path} follows no convolution, and cannot be folded into one")
        mean, var, scale, bias = (node.arguments[name].path for name in ("mean", "var", "scale", "bias"))
        kernel = convolution.arguments["kernel"].path
        factor = np.float64(flat.pop(scale)) / np.sqrt(np.float64(flat.pop(var)) + node.arguments["epsilon"])
        flat[kernel] = (np.float64(flat[kernel]) * factor).astype(np.float32)
        flat[bias] = (np.float64(flat[bias]) - np.float64(flat.pop(mean)) * factor).astype(np.float32)
    return traverse_util.unflatten_dict(flat)
