"""The matrix products used to compute convolutions. Each matrix row holds one pixel."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def multiply(a: Float[Array, "p c"], b: Float[Array, "..."], transpose_b: bool) -> Float[Array, "p k"]:
    """Return the matrix product a b or a b^T, in float32 or wider. No transposed copy of `b` is made.

    Args:
      a: The left matrix, [p, c].
      b: The right matrix: [c, k], or [k, c] with `transpose_b`.
      transpose_b: Whether to multiply by the transpose of `b`.
    """
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, (((1,), (1 if transpose_b else 0,)), ((), ())), preferred_element_type=wide)


def outer(a: Float[Array, "p c"], b: Float[Array, "p k"]) -> Float[Array, "c k"]:
    """Return the matrix product a^T b.

    On CPUs, contracting the rows of both matrices directly can take twice as long as multiplying by a transposed copy.
    """
    if min(a.shape[1], b.shape[1]) >= 1024:
        # Do not make a transposed copy here. It would have to read whole columns, and with rows of 4 KiB or more, every read
        # would miss the cache.
        return jnp.einsum("pc,pk->ck", a, b)
    if a.shape[1] <= b.shape[1]:
        return lax.optimization_barrier(a.T) @ b
    return (lax.optimization_barrier(b.T) @ a).T
