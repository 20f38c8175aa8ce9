"""Winograd's minimal filtering F(2x2, 3x3) for atrous 3x3 convolutions at stride 1 (Lavin and Gray 2015, 1509.09308), NHWC.

A tile of 2x2 outputs takes 16 products a pair of channels where the definition takes 36. All coefficients are 0, 1 and 1/2: on
random data the rounding is that of the definition's own sums. At rate r, tiles gather pixels r apart: a reshape, no copy.

With transforms K (kernel), D (input), O (output), which are sparse matrices along rows and columns: y = O (D x . K k) per tile,
where . is a matrix product over the channels for each of the 16 positions.
"""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.models.products import multiply, outer

# Bytes of transformed tiles that are worth holding at a time.
BAND_BYTES = 256 * 2**20

Grid = list[list[Array]]  # one array a position, 4 by 4


def multiplications(height: int, width: int, rate: int) -> int:
    """A pair of channels, for outputs of this size; the tiles' overhang counts."""
    return 4 * math.prod(2 * rate * _tiles(size, rate) for size in (height, width))


def convolve(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 _ _"], rate: int, pad: int, *, turned: bool = False
) -> Float[Array, "n h2 w k"]:
    """The convolution at stride 1.

    Args:
      x: input features, between `pad` rows and `rate` columns of zeros on either side.
      kernel: HWIO.
      rate: distance between the taps.
      pad: see `x`.
      turned: with the kernel turned by 180 degrees and its channels exchanged, "3 3 k c": the gradient's convolution.
    """
    n, h, w, c = x.shape
    features = kernel.shape[2 if turned else 3]
    # Written out once, for all bands.
    weights = lax.optimization_barrier(_kernel_grid(kernel))
    if turned:  # exchanges the outer positions and leaves the inner ones
        weights = [[weights[a][b] for b in (3, 1, 2, 0)] for a in (3, 1, 2, 0)]
    height = h + 2 * pad - 2 * rate
    tiles, across = _tiles(height, rate), _tiles(w, rate)
    margins = ((0, 0), (pad, 2 * rate * (tiles + 1) - pad - h), (rate, 2 * rate * (across + 1) - rate - w), (0, 0))
    padded = jnp.pad(x, margins).reshape(n, tiles + 1, 2, rate, across + 1, 2, rate, c)

    def band(first: int, last: int) -> Float[Array, "n t w k"]:
        grid = _input_grid(padded[:, first : last + 1])
        products = [[multiply(*both, turned) for both in zip(*rows, strict=True)] for rows in zip(grid, weights, strict=True)]
        y = _outputs(products, (n, last - first, rate, across, rate, features))
        return y.reshape(n, -1, 2 * rate * across, features)[:, :, :w]

    at_a_time = max(BAND_BYTES // (16 * 4 * n * across * rate**2 * (c + features)), 1)
    bands = [band(first, min(first + at_a_time, tiles)) for first in range(0, tiles, at_a_time)]
    return jnp.concatenate(bands, axis=1)[:, :height]


def weight_gradient(x: Float[Array, "n h w c"], dy: Float[Array, "n h2 w k"], rate: int, pad: int) -> Float[Array, "3 3 c k"]:
    """Of `convolve` with respect to its kernel: the transforms' transposes, and 16 products over the tiles."""
    n, h, w, _ = x.shape
    height = dy.shape[1]
    tiles, across = _tiles(height, rate), _tiles(w, rate)
    rows, columns = 2 * rate * tiles, 2 * rate * across
    x = jnp.pad(x, ((0, 0), (pad, rows + 2 * rate - pad - h), (rate, columns + rate - w), (0, 0)))
    dy = jnp.pad(dy, ((0, 0), (0, rows - height), (0, columns - w), (0, 0)))
    seen = _input_grid(x.reshape(n, tiles + 1, 2, rate, across + 1, 2, rate, -1))
    wanted = _output_gradient_grid(dy.reshape(n, tiles, 2, rate, across, 2, rate, -1))
    return _kernel_gradient([[outer(v, m) for v, m in zip(*pair, strict=True)] for pair in zip(seen, wanted, strict=True)])


def _tiles(size: int, rate: int) -> int:
    return -(-size // (2 * rate))


# A transform along one axis turns 3 taps, 4 inputs or 2 outputs into 4 positions or back; along both axes it is done twice.


def _kernel_grid(kernel: Float[Array, "3 3 _ _"]) -> Grid:
    def spread(k0: Array, k1: Array, k2: Array) -> tuple[Array, ...]:
        return k0, 0.5 * (k0 + k1 + k2), 0.5 * (k0 - k1 + k2), k2

    return [list(spread(row[0], row[1], row[2])) for row in spread(kernel[0], kernel[1], kernel[2])]


def _kernel_gradient(grid: Grid) -> Float[Array, "3 3 c k"]:
    def gather(u0: Array, u1: Array, u2: Array, u3: Array) -> tuple[Array, ...]:
        return u0 + 0.5 * (u1 + u2), 0.5 * (u1 - u2), 0.5 * (u1 + u2) + u3

    rows = gather(*(jnp.stack(row) for row in grid))
    return jnp.stack([jnp.stack(gather(*row)) for row in rows])


def _input_grid(x: Float[Array, "n t1 2 r u1 2 r c"]) -> Grid:
    """Of tiles that overlap by half: each takes a pair of pixels and the next pair. Arrays [n t r u r, c]."""

    def spread(d0: Array, d1: Array, d2: Array, d3: Array) -> tuple[Array, ...]:
        return d0 - d2, d1 + d2, d2 - d1, d1 - d3

    rows = spread(x[:, :-1, 0], x[:, :-1, 1], x[:, 1:, 0], x[:, 1:, 1])
    grid = [spread(y[:, :, :, :-1, 0], y[:, :, :, :-1, 1], y[:, :, :, 1:, 0], y[:, :, :, 1:, 1]) for y in rows]
    return [[y.reshape(-1, y.shape[-1]) for y in row] for row in grid]


def _outputs(grid: Grid, shape: tuple[int, ...]) -> Float[Array, "n t 2 r u 2 r k"]:
    """Of products [n t r u r, k], a tile a row; `shape` is (n, t, r, u, r, k)."""

    def gather(m0: Array, m1: Array, m2: Array, m3: Array) -> tuple[Array, Array]:
        return m0 + m1 + m2, m1 - m2 - m3

    columns = [gather(*row) for row in zip(*grid, strict=True)]  # of each position across: the two output rows
    rows = [gather(*row) for row in zip(*columns, strict=True)]
    return jnp.stack([jnp.stack([y.reshape(shape) for y in row], axis=4) for row in rows], axis=2)


def _output_gradient_grid(dy: Float[Array, "n t 2 r u 2 r k"]) -> Grid:
    def spread(y0: Array, y1: Array) -> tuple[Array, ...]:
        return y0, y0 + y1, y0 - y1, -y1

    rows = spread(dy[:, :, 0], dy[:, :, 1])
    grid = [spread(y[:, :, :, :, 0], y[:, :, :, :, 1]) for y in rows]
    return [[y.reshape(-1, y.shape[-1]) for y in row] for row in grid]
