"""The pools of the backbones, NHWC."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.models.operations import Length, operation


@operation
def average_pool_2x2(x: Float[Array, "n h w c"], *, stride: int, rate: int = 1) -> Float[Array, "n h2 w2 c"]:
    """Return the 2x2 average pool of `x`, with shape [n, ceil(h / stride), ceil(w / stride), c].

    Taps beyond the image's bottom and right edges are excluded from the average.

    Args:
      x: The features to pool.
      stride: The step of the output grid, in input pixels.
      rate: The distance between the taps, in input pixels.
    """
    for axis in (1, 2):
        x = average_pairs(x, *pad_end(x, rate, axis), stride, rate, axis)
    return x


def pad_end(x: Float[Array, "n h w c"], rate: int, axis: int) -> tuple[Array, Array]:
    """Return `x` with `rate` zeros appended along `axis`, and a mask for `average_pairs`.

    For each index i along `axis`, the mask tells whether i + `rate` is inside `x`.
    """
    padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, rate * (other == axis), 0) for other in range(4)])
    is_inside = jnp.arange(x.shape[axis]) + rate < x.shape[axis]
    return padded, jnp.expand_dims(is_inside, [other for other in range(4) if other != axis])


def average_pairs(
    x: Float[Array, "n h w c"], padded: Array, is_inside: Array, stride: int, rate: int, axis: int
) -> Float[Array, "n h2 w2 c"]:
    """Return the average of each value and the value `rate` positions further along `axis`.

    Where the second value is outside the image, the first value is returned unchanged.

    Args:
      x: The features to pool.
      padded: `x` extended by `rate` values at the end of `axis`.
      is_inside: For each index along `axis`, whether the second value is inside the image.
      stride, rate: See `average_pool_2x2`.
      axis: The axis to pool: 1 for rows or 2 for columns.
    """
    second = lax.slice_in_dim(padded, rate, rate + x.shape[axis], axis=axis)
    x = (x + jnp.where(is_inside, second, x)) / 2
    # Written this way, the slice has the same symbolic size as a convolution output.
    return lax.slice_in_dim(x, 0, (x.shape[axis] - 1) // stride * stride + 1, stride, axis)


@operation
def max_pool_3x3(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Return the 3x3 max pool of `x` at stride 2 with padding 1, as used in the stem.

    Each window passes its gradient to a single maximum, even if several values tie. The pool is computed from shifted slices,
    first over columns and then over rows, because the gradient of XLA's window reduction is several times slower on CPUs.
    """
    for axis in (2, 1):
        x = max_of_three(pad_with_infinity(x, axis), -(-x.shape[axis] // 2), axis)
    return x


def pad_with_infinity(x: Float[Array, "n h w c"], axis: int) -> Array:
    """Return `x` padded with one -inf at each end of `axis`."""
    margins = [(int(other == axis), int(other == axis), 0) for other in range(4)]
    return lax.pad(x, jnp.array(-jnp.inf, x.dtype), margins)


def max_of_three(padded: Float[Array, "n h w c"], size: Length, axis: int) -> Array:
    """Return the maxima over windows of three values along `axis`, at stride 2.

    Args:
      padded: The features, padded by one value at the start of `axis`, and by one value at the end if the unpadded length is
        odd.
      size: The length of the result along `axis`.
      axis: The axis to reduce.
    """
    x, *others = (lax.slice_in_dim(padded, i, i + 2 * size - 1, 2, axis) for i in range(3))
    for other in others:
        x = jnp.where(x >= other, x, other)
    return x
