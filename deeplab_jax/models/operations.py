"""Intercepting the operations that a network is made of.

A network is described once, by the operations that its modules call (layers.py, convolution.py, resize.py). Left alone, each of
them computes on whole arrays. Within the scope of an interpreter, the interpreter is called instead: it computes on rows that
are split over devices (extent.py), or records what is called (graph.py).
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

AnyArray = jax.Array | np.ndarray  # of variables: those of a checkpoint are NumPy's
Length = Any  # a height or width: an int, or symbolic in an export for images of any size

# A user context is part of the key of JAX's caches: programs that were traced under different interpreters are never mixed up.
_INTERPRETER = jax.make_user_context(None)

F = TypeVar("F", bound=Callable[..., Any])
PIXELWISE: set[Callable[..., Any]] = set()


def operation(function: F) -> F:
    """Make a function an operation, which an interpreter can replace."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        interpreter = _INTERPRETER.value
        if interpreter is None:
            return function(*args, **kwargs)
        with _INTERPRETER(None):
            return interpreter(call, *args, **kwargs)

    return call  # type: ignore[return-value]


def pixelwise(function: F) -> F:
    """Make a function an operation whose every output pixel depends on the same pixel of its arguments alone."""
    call = operation(function)
    PIXELWISE.add(call)
    return call


def interpreted_by(interpreter: Callable[..., Any] | None) -> Any:
    """Return a scope in which `interpreter(operation, *args, **kwargs)` is called for every operation.

    Enter it inside the function that JAX traces. Within the interpreter, operations compute as if there were none. The
    interpreter is hashable; None leaves operations alone.
    """
    return _INTERPRETER(interpreter)
