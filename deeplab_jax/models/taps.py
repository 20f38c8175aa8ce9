"""The taps of a convolution kernel: which input pixels each of them reads, and for which outputs."""

from collections.abc import Iterator

from jax import lax
from jaxtyping import Array

Pads = tuple[tuple[int, int], tuple[int, int]]  # the zeros (above, below) and (left, right) of the input


def output_size(x: Array, kernel: Array, stride: int, rate: int, pads: Pads) -> tuple[int, int]:
    """Return the height and width of a convolution's output."""
    height, width = (
        (size + sum(pad) - rate * (taps - 1) - 1) // stride + 1
        for size, pad, taps in zip(x.shape[1:3], pads, kernel.shape[:2], strict=True)
    )
    return height, width


def iterate_taps(
    x: Array, kernel_shape: tuple[int, ...], out: tuple[int, ...], stride: int, rate: int, starts: tuple[int, int]
) -> Iterator[tuple[tuple[int, int], Array, tuple[int, int]]]:
    """Yield (kernel position, input pixels, first output) for each tap that reads any input.

    `starts` is the number of zeros above and to the left of `x`. The input pixels exclude padding. The first output is the
    (row, column) that receives the tap's first product.
    """
    for i in range(kernel_shape[0]):
        for j in range(kernel_shape[1]):
            offsets = (i * rate - starts[0], j * rate - starts[1])
            ranges = [_tap_range(*each) for each in zip(offsets, (stride, stride), x.shape[1:3], out, strict=True)]
            if any(first >= last for first, last in ranges):
                continue
            corner = [first * stride + offset for (first, _), offset in zip(ranges, offsets, strict=True)]
            ends = [start + (last - first - 1) * stride + 1 for start, (first, last) in zip(corner, ranges, strict=True)]
            pixels = lax.slice(x, (0, *corner, 0), (x.shape[0], *ends, x.shape[3]), (1, stride, stride, 1))
            yield (i, j), pixels, (ranges[0][0], ranges[1][0])


def _tap_range(offset: int, stride: int, size: int, out_size: int) -> tuple[int, int]:
    """Return the range [first, last) of outputs o whose input o * stride + offset is in [0, size)."""
    first = max(0, -(offset // stride))
    last = min(out_size, (size - 1 - offset) // stride + 1)
    return first, last
