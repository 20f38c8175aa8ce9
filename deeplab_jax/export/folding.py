"""Fold a trained network's BatchNorm layers into the preceding convolutions' kernels and biases."""

import collections
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from deeplab_jax.models import DeepLabV3
from deeplab_jax.models.convolution import conv2d
from deeplab_jax.models.graph import Node, Value, Variable, abstract_images, record
from deeplab_jax.models.layers import add_bias, batch_norm


def fold(variables: dict[str, Any], network: DeepLabV3) -> dict[str, Any]:
    """Return variables with BatchNorm folded into the kernels. Predictions stay the same up to rounding.

    gamma * (conv(x) - mean) / sqrt(var + epsilon) + beta is equivalent to a convolution with a bias. Multiplying the kernel
    by gamma / sqrt(var + epsilon) leaves only a bias, which replaces the BatchNorm bias. The convolution's own bias, if any, is
    multiplied by the same factor. A BatchNorm is not folded if it does not follow a convolution, or if the convolution's kernel
    or output has other uses.

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
        layers = _find_convolution(node, producers)
        weights = [each.arguments["kernel" if each.operation is conv2d else "bias"] for each in layers]
        # A kernel or output that other operations also use must not be changed.
        if not layers or any(uses[each] > 1 for each in (*weights, *(layer.output for layer in layers))):
            continue
        mean, var, scale, bias = (node.arguments[name].path for name in ("mean", "var", "scale", "bias"))
        factor = np.float64(flat.pop(scale)) / np.sqrt(np.float64(flat.pop(var)) + node.arguments["epsilon"])
        flat |= {each.path: (np.float64(flat[each.path]) * factor).astype(np.float32) for each in weights}
        flat[bias] = (np.float64(flat[bias]) - np.float64(flat.pop(mean)) * factor).astype(np.float32)
    return traverse_util.unflatten_dict(flat)


def _find_convolution(norm: Node, producers: Mapping[Value, Node]) -> list[Node]:
    """Return the operations of the convolution layer before a BatchNorm, the last one first, or [] if there is none."""
    layers: list[Node] = []
    value = norm.arguments["x"]
    for operation in (add_bias, conv2d):
        producer = producers.get(value)
        if producer is not None and producer.operation is operation:
            layers, value = [*layers, producer], producer.arguments["x"]
    return layers if layers and layers[-1].operation is conv2d else []


def _list_values(arguments: Iterable[Any]) -> Iterator[Value | Variable]:
    for argument in arguments:
        if isinstance(argument, Value | Variable):
            yield argument
        elif isinstance(argument, list):
            yield from _list_values(argument)
