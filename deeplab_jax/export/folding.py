"""Fold a trained network's BatchNorm layers into the preceding convolutions' kernels and biases."""

import collections
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from flax import traverse_util

from deeplab_jax.models import DeepLabV3
from deeplab_jax.models.convolution import conv2d
from deeplab_jax.models.graph import Value, Variable, abstract_images, record
from deeplab_jax.models.layers import batch_norm


def fold(variables: dict[str, Any], network: DeepLabV3) -> dict[str, Any]:
    """Return variables with BatchNorm folded into the kernels. Predictions stay the same up to rounding.

    gamma * (conv(x) - mean) / sqrt(var + epsilon) + beta is equivalent to a convolution with a bias. Multiplying the kernel
    by gamma / sqrt(var + epsilon) leaves only a bias, which replaces the BatchNorm bias. A BatchNorm is not folded if it does
    not follow a convolution, or if the convolution's kernel or output has other uses.

    Args:
      variables: The network variables, {"params", "batch_stats"}.
      network: The network, without rematerialised stages. Variables that the network does not use are omitted from the result.
    """
    images = abstract_images(network)
    graph = record(lambda variables, images: network.apply(variables, images, False), variables, images)
    used = {each.path for node in graph.nodes for each in _list_values(node.arguments.values()) if isinstance(each, Variable)}
    flat = {path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(variables).items() if path in used}
    producers = {node.output: node for node in graph.nodes}
    uses = collections.Counter(each for node in graph.nodes for each in _list_values(node.arguments.values()))
    for node in graph.nodes:
        if node.operation is not batch_norm:
            continue
        convolution = producers.get(node.arguments["x"])
        if convolution is None or convolution.operation is not conv2d:
            continue
        # A kernel or output that other operations also use must not be changed.
        if uses[convolution.output] > 1 or uses[convolution.arguments["kernel"]] > 1:
            continue
        mean, var, scale, bias = (node.arguments[name].path for name in ("mean", "var", "scale", "bias"))
        kernel = convolution.arguments["kernel"].path
        factor = np.float64(flat.pop(scale)) / np.sqrt(np.float64(flat.pop(var)) + node.arguments["epsilon"])
        flat[kernel] = (np.float64(flat[kernel]) * factor).astype(np.float32)
        flat[bias] = (np.float64(flat[bias]) - np.float64(flat.pop(mean)) * factor).astype(np.float32)
    return traverse_util.unflatten_dict(flat)


def _list_values(arguments: Iterable[Any]) -> Iterator[Value | Variable]:
    for argument in arguments:
        if isinstance(argument, Value | Variable):
            yield argument
        elif isinstance(argument, list):
            yield from _list_values(argument)
