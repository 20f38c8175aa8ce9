"""A network recorded as a graph of operations.

Exports, FLOP counts and BatchNorm folding read this graph rather than the modules.
"""

import inspect
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.tree_util import tree_flatten_with_path
from jaxtyping import Array

from deeplab_jax.models.convolution import conv2d
from deeplab_jax.models.operations import interpreted_by


class Value(NamedTuple):
    """An array in the graph: an operation's output, or the input images.

    Attributes:
      number: The array's unique number in the graph. The images have number 0.
      shape: The array shape, NHWC.
      dtype: The array dtype.
    """

    number: int
    shape: tuple[int, ...]
    dtype: Any


class Variable(NamedTuple):
    """A network parameter or running statistic.

    Attributes:
      path: The variable's path, such as ("params", "backbone", "stem_conv", "kernel").
      shape: The variable's shape.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]


class Node(NamedTuple):
    """A single operation call.

    Attributes:
      operation: The operation, a function in layers.py, pooling.py, convolution.py or resize.py.
      arguments: The arguments, keyed by parameter name. Each is a `Value`, a `Variable`, a list of these, or a plain number or
        flag.
      output: The array computed by the call.
    """

    operation: Callable[..., Any]
    arguments: dict[str, Any]
    output: Value


class Graph(NamedTuple):
    """A network's operations, in call order.

    Attributes:
      images: The input images.
      nodes: The operation calls.
      outputs: The arrays returned by the network.
    """

    images: Value
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]


def abstract_images(network: Any) -> jax.ShapeDtypeStruct:
    """Return a small image's shape, NHWC, for tracing a network with a `ModelConfig`."""
    return jax.ShapeDtypeStruct((1, 64, 64, network.config.channels), jnp.float32)


def abstract_variables(network: nn.Module) -> Any:
    """Return a network's variables {"params", "batch_stats"} as abstract shapes, without computing them."""
    images = abstract_images(network)

    def init() -> Any:
        with interpreted_by(_shape_only):
            # Any image size works because variable shapes do not depend on it.
            return network.init(jax.random.key(0), jnp.zeros(images.shape), train=False)

    return jax.eval_shape(init)


def record(network: Callable[[Any, Array], Any], variables: Any, images: jax.ShapeDtypeStruct) -> Graph:
    """Return the graph of operations called by `network`. The network is only traced; nothing is computed.

    Args:
      network: A function of (variables, images). Every array in it must be computed by operations.
      variables: The variables {"params", "batch_stats"}, as arrays or shapes.
      images: The image shape, NHWC.

    Raises:
      ValueError: An operation receives an array that was not computed by an operation.
    """
    nodes: list[Node] = []
    described: dict[int, Value | Variable] = {}  # keyed by the id of the tracer
    alive: list[Any] = []  # keeps the tracers alive so that Python does not reuse their ids
    numbers = itertools.count()

    def add_value(array: Array) -> Value:
        alive.append(array)
        described[id(array)] = value = Value(next(numbers), array.shape, array.dtype)
        return value

    def describe(argument: Any) -> Any:
        if isinstance(argument, list | tuple):
            return [describe(each) for each in argument]
        if isinstance(argument, jax.Array) and id(argument) not in described:
            raise ValueError(
                f"An array of shape {argument.shape} was not computed by an operation. "
                "Compute it with the operations in deeplab_jax/models/layers.py."
            )
        return described.get(id(argument), argument)

    def record_call(operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Array:
        bound = inspect.signature(operation).bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {parameter: describe(argument) for parameter, argument in bound.arguments.items()}
        output = _shape_only(operation, *args, **kwargs)
        if id(output) not in described:  # a cast to the same dtype returns its argument
            nodes.append(Node(operation, arguments, add_value(output)))
        return output

    outputs: list[Value] = []

    def trace(variables: Any, images: Array) -> None:
        leaves, _ = tree_flatten_with_path(variables)
        for path, leaf in leaves:
            alive.append(leaf)
            described[id(leaf)] = Variable(tuple(key.key for key in path), leaf.shape)
        add_value(images)
        with interpreted_by(record_call):
            result = network(variables, images)
        outputs.extend(describe(leaf) for leaf in jax.tree.leaves(result))

    try:
        jax.eval_shape(trace, variables, images)
    finally:
        # JAX's caches keep a reference to the interpreter, so these containers are cleared to let the tracers be freed.
        described.clear()
        alive.clear()
    return Graph(Value(0, images.shape, images.dtype), tuple(nodes), tuple(outputs))


def _shape_only(operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Array:
    # All convolution forms have the same output shape, and "xla" is the fastest to trace.
    return operation(*args, **(kwargs | {"form": "xla"} if operation is conv2d else kwargs))
