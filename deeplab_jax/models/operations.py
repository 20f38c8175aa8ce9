"""A mechanism for intercepting network operations.

Network modules call operations (layers.py, pooling.py, convolution.py, resize.py). By default, an operation computes on full
arrays. Inside an interpreter's context, the interpreter is called instead. One interpreter computes on image rows split over
devices (extent.py), and another records the operations as a graph (graph.py).
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

AnyArray = jax.Array | np.ndarray  # variables restored from a checkpoint are NumPy arrays
Length = Any  # a height or width: an int, or a symbolic size when exporting for images of any size

# A user context is part of JAX's cache keys, so programs traced under different interpreters do not share cache entries.
_INTERPRETER = jax.make_user_context(None)

F = TypeVar("F", bound=Callable[..., Any])
PIXELWISE: set[Callable[..., Any]] = set()


def operation(function: F) -> F:
    """Return `function` wrapped as an operation, which an interpreter can intercept."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        interpreter = _INTERPRETER.value
        if interpreter is None:
            return function(*args, **kwargs)
        with _INTERPRETER(None):
            return interpreter(call, *args, **kwargs)

    return call  # type: ignore[return-value]


def pixelwise(function: F) -> F:
    """Return `function` wrapped as a pixelwise operation.

    Each output pixel of a pixelwise operation depends only on the same pixel of its arguments.
    """
    call = operation(function)
    PIXELWISE.add(call)
    return call


def interpreted_by(interpreter: Callable[..., Any] | None) -> Any:
    """Return a context manager that calls `interpreter(operation, *args, **kwargs)` in place of every operation.

    Enter the context inside the function that JAX traces. Operations called by the interpreter itself are not intercepted.

    Args:
      interpreter: A hashable function, or None to intercept nothing.
    """
    return _INTERPRETER(interpreter)
