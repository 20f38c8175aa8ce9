"""A network as the operations that it calls: what exports, FLOPs and folding read instead of the modules."""

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
    """An array that an operation computes, or the images.

    Attributes:
      number: its own in the graph; the images are 0.
      shape: NHWC.
      dtype: of its elements.
    """

    number: int
    shape: tuple[int, ...]
    dtype: Any


class Variable(NamedTuple):
    """A parameter or running statistic.

    Attributes:
      path: such as ("params", "backbone", "stem_conv", "kernel").
      shape: of the array.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]


class Node(NamedTuple):
    """One call of an operation.

    Attributes:
      operation: a function of layers.py, convolution.py or resize.py.
      arguments: by the name of the function's parameter: a `Value`, a `Variable`, a list of those, or a plain number or flag.
      output: what it computes.
    """

    operation: Callable[..., Any]
    arguments: dict[str, Any]
    output: Value


class Graph(NamedTuple):
    """The operations of a network in the order in which they are called.

    Attributes:
      images: what goes in.
      nodes: the operations.
      outputs: what comes out.
    """

    images: Value
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]


def abstract_variables(network: nn.Module) -> Any:
    """Return {"params", "batch_stats"} of a network as shapes."""

    def init() -> Any:
        with interpreted_by(_shape_only):
            # Variables do not depend on the images' size.
            return network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)

    return jax.eval_shape(init)


def record(network: Callable[[Any, Array], Any], variables: Any, images: jax.ShapeDtypeStruct) -> Graph:
    """Return what `network` calls. Only shapes pass through it: nothing is computed.

    Args:
      network: of (variables, images); every array in it is made by operations alone.
      variables: {"params", "batch_stats"}, as arrays or shapes.
      images: their shape, NHWC.

    Raises:
      ValueError: an operation gets an array that no operation made.
    """
    nodes: list[Node] = []
    known: dict[int, Value | Variable] = {}  # by the identity of JAX's tracers
    alive: list[Any] = []  # so that no other tracer gets an identity that is known
    numbers = itertools.count()

    def name(array: Array) -> Value:
        alive.append(array)
        known[id(array)] = value = Value(next(numbers), array.shape, array.dtype)
        return value

    def describe(argument: Any) -> Any:
        if isinstance(argument, list | tuple):
            return [describe(each) for each in argument]
        if isinstance(argument, jax.Array) and id(argument) not in known:
            raise ValueError(f"an array {argument.shape} was not made by an operation of the models: use those of layers.py")
        return known.get(id(argument), argument)

    def note(operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Array:
        bound = inspect.signature(operation).bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {parameter: describe(argument) for parameter, argument in bound.arguments.items()}
        output = _shape_only(operation, *args, **kwargs)
        if id(output) not in known:  # a cast to the same type returns its argument
            nodes.append(Node(operation, arguments, name(output)))
        return output

    outputs: list[Value] = []

    def trace(variables: Any, images: Array) -> None:
        leaves, _ = tree_flatten_with_path(variables)
        for path, leaf in leaves:
            alive.append(leaf)
            known[id(leaf)] = Variable(tuple(key.key for key in path), leaf.shape)
        name(images)
        with interpreted_by(note):
            result = network(variables, images)
        outputs.extend(describe(leaf) for leaf in jax.tree.leaves(result))

    try:
        jax.eval_shape(trace, variables, images)
    finally:  # JAX's caches keep the interpreter, which must not keep the tracers
        known.clear()
        alive.clear()
    return Graph(Value(0, images.shape, images.dtype), tuple(nodes), tuple(outputs))


def _shape_only(operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Array:
    # XLA's own form is traced fastest, and the shapes are those of every form.
    return operation(*args, **(kwargs | {"form": "xla"} if operation is conv2d else kwargs))
