"""Depthwise convolutions on CPUs, as sums of shifted elementwise products."""

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.models.taps import Pads, iterate_taps, output_size

# The size of the gradient's rows that a depthwise kernel's taps read one after the other. They should stay in the cache.
CACHED_BYTES = 2**20


def convolve(x: Array, kernel: Array, stride: int, rate: int, pads: Pads, flip: bool = False) -> Array:
    """Compute a depthwise convolution as a sum over taps, multiplying the shifted input by one factor per channel.

    XLA fuses the sum into a single loop.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    kernel = kernel[::-1, ::-1] if flip else kernel
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    factors, out = kernel.astype(wide), output_size(x, kernel, stride, rate, pads)
    taps = iterate_taps(padded, kernel.shape, out, stride, rate, (0, 0))
    terms = [pixels.astype(wide) * factors[i, j, 0][None, None, None] for (i, j), pixels, _ in taps]
    return functools.reduce(jnp.add, terms).astype(x.dtype)


def compute_weight_gradient(x: Array, dy: Array, kernel: Array, stride: int, rate: int, pads: Pads) -> Array:
    """Compute a depthwise kernel's gradient in two nested loops, over bands of rows and over taps.

    A sum over the whole image for each of the 9 or 25 taps would read `x` and `dy` from memory that many times. It would also
    copy the shifted `x`, because XLA does not fuse slices into sums. The images are added up after the loops, so that a batch
    that is split over devices needs a single all-reduce.
    """
    kh, kw = kernel.shape[:2]
    images, height, width, channels = dy.shape
    wide = jnp.promote_types(x.dtype, jnp.float32)
    bands = min(-(-dy.size * wide.itemsize // CACHED_BYTES), height)
    rows = -(-height // bands)
    missing = bands * rows - height
    dy = jnp.pad(dy, ((0, 0), (0, missing), (0, 0), (0, 0)))
    x = jnp.pad(x, ((0, 0), (pads[0][0], pads[0][1] + missing * stride), pads[1], (0, 0)))

    def sum_band(band: Array) -> Float[Array, "taps n c"]:
        part = lax.dynamic_slice_in_dim(dy, band * rows, rows, axis=1).astype(wide)

        def sum_tap(tap: Array) -> Float[Array, "n c"]:
            corner = (0, band * rows * stride + tap // kw * rate, tap % kw * rate, 0)
            size = (images, (rows - 1) * stride + 1, (width - 1) * stride + 1, channels)
            pixels = lax.dynamic_slice(x, corner, size)[:, ::stride, ::stride]
            return jnp.sum(pixels.astype(wide) * part, (1, 2))

        return lax.map(sum_tap, jnp.arange(kh * kw))

    return jnp.sum(lax.map(sum_band, jnp.arange(bands)), (0, 2)).reshape(kernel.shape).astype(kernel.dtype)
