"""Winograd's minimal filtering F(2x2, 3x3) for atrous 3x3 convolutions at stride 1, NHWC.

The method is described by Lavin and Gray (2015, arXiv:1509.09308). A tile of 2x2 outputs takes 16 multiplications per (input,
output) channel pair, whereas a direct convolution takes 36. All transform coefficients are 0, 1/2 or 1, up to sign, so on
random data the rounding error is the same as for a direct convolution. At rate r, a tile's pixels are r apart and are gathered
by a reshape, without a copy.

Each tile is computed as y = O (D x . K k). The kernel transform K, input transform D and output transform O are sparse
matrices, applied along both rows and columns. The "." stands for a matrix product over the channels at each of the 16 tile
positions.
"""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.models.products import multiply, outer

# The maximum size, in bytes, of the transformed tiles held in memory at a time.
BAND_BYTES = 256 * 2**20

Grid = list[list[Array]]  # 4 by 4 arrays, one per tile position


def count_multiplications(height: int, width: int, rate: int) -> int:
    """Return the number of multiplications per (input, output) channel pair, for an output of the given size.

    Tiles that overhang the edge are counted in full.
    """
    return 4 * math.prod(2 * rate * _count_tiles(size, rate) for size in (height, width))


def convolve(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 _ _"], rate: int, pad: int, *, flip: bool = False
) -> Float[Array, "n h2 w k"]:
    """Return `x` convolved with a 3x3 kernel at stride 1.

    Args:
      x: The input features. They are padded with `pad` rows and `rate` columns of zeros on each side.
      kernel: The HWIO weights, [3, 3, c, k]. With `flip`, their shape is [3, 3, k, c].
      rate: The distance between the taps, in pixels.
      pad: The number of zero rows above and below `x`.
      flip: Whether to rotate the kernel by 180 degrees and swap its channel axes, as needed for the input gradient.
    """
    n, h, w, c = x.shape
    features = kernel.shape[2 if flip else 3]
    # The barrier makes XLA compute the transformed kernel only once for all bands.
    weights = lax.optimization_barrier(_transform_kernel(kernel))
    if flip:  # rotating the kernel swaps the outer positions and keeps the inner ones
        weights = [[weights[a][b] for b in (3, 1, 2, 0)] for a in (3, 1, 2, 0)]
    height = h + 2 * pad - 2 * rate
    tiles_down, tiles_across = _count_tiles(height, rate), _count_tiles(w, rate)
    bottom, right = 2 * rate * (tiles_down + 1) - pad - h, 2 * rate * (tiles_across + 1) - rate - w
    margins = ((0, 0), (pad, bottom), (rate, right), (0, 0))
    padded = jnp.pad(x, margins).reshape(n, tiles_down + 1, 2, rate, tiles_across + 1, 2, rate, c)

    def compute_band(first: int, last: int) -> Float[Array, "n t w k"]:
        grid = _transform_input(padded[:, first : last + 1])
        products = [[multiply(*pair, flip) for pair in zip(*rows, strict=True)] for rows in zip(grid, weights, strict=True)]
        y = _transform_output(products, (n, last - first, rate, tiles_across, rate, features))
        return y.reshape(n, -1, 2 * rate * tiles_across, features)[:, :, :w]

    band_size = max(BAND_BYTES // (16 * 4 * n * tiles_across * rate**2 * (c + features)), 1)
    bands = [compute_band(first, min(first + band_size, tiles_down)) for first in range(0, tiles_down, band_size)]
    return jnp.concatenate(bands, axis=1)[:, :height]


def compute_weight_gradient(
    x: Float[Array, "n h w c"], dy: Float[Array, "n h2 w k"], rate: int, pad: int
) -> Float[Array, "3 3 c k"]:
    """Return the gradient of `convolve` with respect to its kernel.

    The computation uses the transposed transforms and 16 matrix products over the tiles.
    """
    n, h, w, _ = x.shape
    height = dy.shape[1]
    tiles_down, tiles_across = _count_tiles(height, rate), _count_tiles(w, rate)
    rows, columns = 2 * rate * tiles_down, 2 * rate * tiles_across
    x = jnp.pad(x, ((0, 0), (pad, rows + 2 * rate - pad - h), (rate, columns + rate - w), (0, 0)))
    dy = jnp.pad(dy, ((0, 0), (0, rows - height), (0, columns - w), (0, 0)))
    inputs = _transform_input(x.reshape(n, tiles_down + 1, 2, rate, tiles_across + 1, 2, rate, -1))
    gradients = _transform_output_gradient(dy.reshape(n, tiles_down, 2, rate, tiles_across, 2, rate, -1))
    products = [[outer(*pair) for pair in zip(*rows, strict=True)] for rows in zip(inputs, gradients, strict=True)]
    return _transform_kernel_gradient(products)


def _count_tiles(size: int, rate: int) -> int:
    return -(-size // (2 * rate))


# Along one axis, a transform maps 3 taps, 4 inputs or 2 outputs to 4 tile positions, or the other way round. Each transform is
# applied along both axes.


def _transform_kernel(kernel: Float[Array, "3 3 _ _"]) -> Grid:
    def spread(k0: Array, k1: Array, k2: Array) -> tuple[Array, ...]:
        return k0, 0.5 * (k0 + k1 + k2), 0.5 * (k0 - k1 + k2), k2

    return [list(spread(row[0], row[1], row[2])) for row in spread(kernel[0], kernel[1], kernel[2])]


def _transform_kernel_gradient(grid: Grid) -> Float[Array, "3 3 c k"]:
    def gather(u0: Array, u1: Array, u2: Array, u3: Array) -> tuple[Array, ...]:
        return u0 + 0.5 * (u1 + u2), 0.5 * (u1 - u2), 0.5 * (u1 + u2) + u3

    rows = gather(*(jnp.stack(row) for row in grid))
    return jnp.stack([jnp.stack(gather(*row)) for row in rows])


def _transform_input(x: Float[Array, "n t1 2 r u1 2 r c"]) -> Grid:
    """Return the transformed input tiles, as arrays of shape [n t r u r, c].

    Along each axis, a tile consists of a pair of pixels and the next pair, so neighbouring tiles overlap by half.
    """

    def spread(d0: Array, d1: Array, d2: Array, d3: Array) -> tuple[Array, ...]:
        return d0 - d2, d1 + d2, d2 - d1, d1 - d3

    rows = spread(x[:, :-1, 0], x[:, :-1, 1], x[:, 1:, 0], x[:, 1:, 1])
    grid = [spread(y[:, :, :, :-1, 0], y[:, :, :, :-1, 1], y[:, :, :, 1:, 0], y[:, :, :, 1:, 1]) for y in rows]
    return [[y.reshape(-1, y.shape[-1]) for y in row] for row in grid]


def _transform_output(grid: Grid, shape: tuple[int, ...]) -> Float[Array, "n t 2 r u 2 r k"]:
    """Return all tiles' outputs.

    Args:
      grid: The products, as arrays of shape [n t r u r, k] with one row per tile.
      shape: The unflattened shape of these arrays, (n, t, r, u, r, k).
    """

    def gather(m0: Array, m1: Array, m2: Array, m3: Array) -> tuple[Array, Array]:
        return m0 + m1 + m2, m1 - m2 - m3

    columns = [gather(*row) for row in zip(*grid, strict=True)]  # two output rows for each horizontal tile position
    rows = [gather(*row) for row in zip(*columns, strict=True)]
    return jnp.stack([jnp.stack([y.reshape(shape) for y in row], axis=4) for row in rows], axis=2)


def _transform_output_gradient(dy: Float[Array, "n t 2 r u 2 r k"]) -> Grid:
    def spread(y0: Array, y1: Array) -> tuple[Array, ...]:
        return y0, y0 + y1, y0 - y1, -y1

    rows = spread(dy[:, :, 0], dy[:, :, 1])
    grid = [spread(y[:, :, :, :, 0], y[:, :, :, :, 1]) for y in rows]
    return [[y.reshape(-1, y.shape[-1]) for y in row] for row in grid]
