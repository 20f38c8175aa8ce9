"""The convolution of every layer, NHWC: the only place that decides how one is computed. Measurements: benchmarks/NOTES.md.

Padding is PyTorch's (rate * (k - 1) / 2 on every side), so that a stride-2 layer maps H to ceil(H / 2), odd sizes included.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.models import winograd
from deeplab_jax.models.operations import AnyArray, Length, operation
from deeplab_jax.models.products import multiply, outer

# Bytes of input that the product of a tap copies at a time.
BAND_BYTES = 64 * 2**20

ConvForm = Literal["auto", "xla", "mixed", "products", "winograd", "shifts"]


@operation
def conv2d(
    x: Float[Array, "n h w c"],
    kernel: Float[AnyArray, "kh kw c2 k"],
    *,
    stride: int = 1,
    rate: int = 1,
    form: ConvForm = "auto",
) -> Float[Array, "n h2 w2 k"]:
    """Convolve with padding rate * (size - 1) / 2, in the form that is fastest where it runs.

    Args:
      x: input features.
      kernel: HWIO weights of odd height and width; used in the dtype of `x`. Where it has fewer input channels than `x`, the
        channels are convolved in groups of that size; one is a depthwise convolution.
      stride: step of the output grid over the input.
      rate: distance between the taps, in input pixels.
      form: "xla" is XLA's own convolution; "mixed" is that with the weight gradient by matrix products; "products" a sum of
        matrix products, one a tap; "winograd" minimal filtering, for 3x3 kernels at stride 1; "shifts" a sum of
        shifted products, for depthwise ones; "auto" chooses.

    Raises:
      ValueError: the form is not for this kernel and stride.
    """
    convolve = choose_convolution(kernel.shape, x.shape, x.dtype, stride, rate, form)
    return convolve(x, jnp.astype(kernel, x.dtype), stride, rate, reach_of(kernel.shape, rate))


def reach_of(kernel_shape: tuple[int, ...], rate: int) -> int:
    """Return how many pixels beside its own an output sees, on every side."""
    return rate * (kernel_shape[0] - 1) // 2


def choose_convolution(
    kernel_shape: tuple[int, ...],
    x_shape: tuple[Length, ...],
    dtype: jnp.dtype,
    stride: int,
    rate: int,
    form: ConvForm = "auto",
) -> Callable[[Array, Array, int, int, int], Array]:
    """Return the function of (x, kernel in x's dtype, stride, rate, zero rows above and below x) that convolves.

    Args:
      kernel_shape, x_shape: of the arguments of `conv2d`; the second may be symbolic.
      dtype: of x.
      stride, rate, form: see `conv2d`.

    Raises:
      ValueError: the form is not for this kernel and stride.
    """
    if form == "auto":
        form = _fastest_form(kernel_shape, x_shape, dtype, stride, rate)
    if form == "winograd" and (kernel_shape[:2] != (3, 3) or stride > 1):
        raise ValueError(f"`form` (='winograd') is for 3x3 kernels at stride 1, not for {kernel_shape[:2]} at stride {stride}")
    is_depthwise, is_grouped = kernel_shape[2] == 1 < x_shape[3], kernel_shape[2] < x_shape[3]
    if form != "xla" and ((form == "shifts") != is_depthwise or is_grouped != is_depthwise):
        raise ValueError(f"`form` (={form!r}) is not for kernels {kernel_shape} of {x_shape[3]} channels: use 'auto'")
    return _FORMS[form]


def _fastest_form(
    kernel_shape: tuple[int, ...], x_shape: tuple[Length, ...], dtype: jnp.dtype, stride: int, rate: int
) -> ConvForm:
    """Accelerators have convolutions of their own; symbolic sizes leave no choice. On CPUs fewer multiplications decide."""
    if jax.default_backend() != "cpu" or not all(isinstance(size, int) for size in x_shape):
        return "xla"
    if kernel_shape[2] < x_shape[3]:
        return "shifts" if kernel_shape[2] == 1 else "xla"
    if kernel_shape[:2] == (1, 1):
        return "products"
    if kernel_shape[:2] != (3, 3) or stride > 1:
        return "mixed"
    height, width, channels = x_shape[1:]
    tapwise = _overlap(height, rate) * _overlap(width, rate)
    # Sums of 16 tiles would be rounded to bfloat16 each. The transforms of few channels take all of the time, and those of the
    # ASPP's 2048 at large rates more memory than the rest of the network.
    is_worth_it = dtype != jnp.bfloat16 and min(channels, kernel_shape[3]) >= 64 and channels <= 1024
    if is_worth_it and 1.2 * winograd.multiplications(height, width, rate) < tapwise:
        return "winograd"
    return "products" if rate >= 4 else "mixed"


def _overlap(size: int, rate: int) -> int:
    """Outputs of the three taps along one axis that read no padding."""
    return size + 2 * max(size - rate, 0)


# The forms. `pad` is the number of zero rows above and below `x`; a halo takes their place. `turned` is for the gradient with
# respect to the input: the kernel turned by 180 degrees, and its channels exchanged.


def _xla(x: Array, kernel: Array, stride: int, rate: int, pad: int, turned: bool = False) -> Array:
    kernel = kernel[::-1, ::-1].swapaxes(2, 3) if turned else kernel
    pad_w = rate * (kernel.shape[1] - 1) // 2
    pads = ((pad, pad), (pad_w, pad_w))
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        rhs_dilation=(rate, rate),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3] // kernel.shape[2],
    )


def _products(x: Array, kernel: Array, stride: int, rate: int, pad: int, turned: bool = False) -> Array:
    """Sum over the taps of (the input that the tap sees) x (its c by k matrix), each over the part that is not padding.

    At rate 36 on a 65x65 map most of a tap falls into the padding: skipping it saves up to 60 % of the work.
    """
    kh, kw = kernel.shape[:2]
    pad_w = rate * (kw - 1) // 2
    height, width = _output_size(x, kernel, stride, rate, pad)
    at_a_time = height if kh == 1 else max(height * BAND_BYTES // x.nbytes, 1)
    bands = []
    for first in range(0, height, at_a_time):
        out = (min(at_a_time, height - first), width)
        bands.append(_sum_of_taps(x, kernel, out, stride, rate, (pad - first * stride, pad_w), turned))
    return jnp.concatenate(bands, axis=1)


def _output_size(x: Array, kernel: Array, stride: int, rate: int, pad: int) -> tuple[int, int]:
    return (x.shape[1] + 2 * pad - rate * (kernel.shape[0] - 1) - 1) // stride + 1, -(-x.shape[2] // stride)


def _sum_of_taps(
    x: Array, kernel: Array, out: tuple[int, int], stride: int, rate: int, pads: tuple[int, int], turned: bool
) -> Array:
    """The middle tap, which sees an input wherever any does; the others are added in place, one product is held at a time."""
    kh, kw, channels, features = kernel.shape
    channels, features = (features, channels) if turned else (channels, features)
    middle = (kh // 2, kw // 2)
    total = jnp.zeros((x.shape[0], *out, features), jnp.promote_types(x.dtype, jnp.float32))
    for (i, j), seen, (top, left) in sorted(_taps(x, kernel.shape, out, stride, rate, pads), key=lambda tap: tap[0] != middle):
        matrix = kernel[kh - 1 - i, kw - 1 - j] if turned else kernel[i, j]
        product = multiply(seen.reshape(-1, channels), matrix, turned).reshape(*seen.shape[:3], features)
        place = (0, top, left, 0)
        so_far = lax.slice(total, place, [first + size for first, size in zip(place, product.shape, strict=True)])
        total = lax.dynamic_update_slice(total, so_far + product, place)
    return total.astype(x.dtype)


def _taps(
    x: Array, kernel_shape: tuple[int, ...], out: tuple[int, ...], stride: int, rate: int, pads: tuple[int, int]
) -> Iterator[tuple[tuple[int, int], Array, tuple[int, int]]]:
    """For each tap that sees any input: its place in the kernel, what it sees, and the first output that it adds to."""
    for i in range(kernel_shape[0]):
        for j in range(kernel_shape[1]):
            offsets = (i * rate - pads[0], j * rate - pads[1])
            ranges = [_tap_range(*each) for each in zip(offsets, (stride, stride), x.shape[1:3], out, strict=True)]
            if any(first >= last for first, last in ranges):
                continue
            starts = [first * stride + offset for (first, _), offset in zip(ranges, offsets, strict=True)]
            ends = [start + (last - first - 1) * stride + 1 for start, (first, last) in zip(starts, ranges, strict=True)]
            seen = lax.slice(x, (0, *starts, 0), (x.shape[0], *ends, x.shape[3]), (1, stride, stride, 1))
            yield (i, j), seen, (ranges[0][0], ranges[1][0])


def _tap_range(offset: int, stride: int, size: int, out_size: int) -> tuple[int, int]:
    """Outputs o in [first, last) whose input o * stride + offset lies in [0, size)."""
    first = max(0, -(offset // stride))
    last = min(out_size, (size - 1 - offset) // stride + 1)
    return first, last


def _shifts(x: Array, kernel: Array, stride: int, rate: int, pad: int) -> Array:
    """Depthwise: the sum over the taps of what each sees times its factor a channel, which XLA makes one loop of."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    pad_w = rate * (kernel.shape[1] - 1) // 2
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad_w, pad_w), (0, 0)))
    factors, out = kernel.astype(wide), _output_size(x, kernel, stride, rate, pad)
    taps = _taps(padded, kernel.shape, out, stride, rate, (0, 0))
    terms = [seen.astype(wide) * factors[i, j, 0][None, None, None] for (i, j), seen, _ in taps]
    return functools.reduce(jnp.add, terms).astype(x.dtype)


def _winograd(x: Array, kernel: Array, stride: int, rate: int, pad: int, turned: bool = False) -> Array:
    return winograd.convolve(x, kernel, rate, pad, turned=turned)


def _products_weight_gradient(x: Array, dy: Array, kernel: Array, stride: int, rate: int, pad: int) -> Array:
    """HWIO: for each tap, (the input that it sees) transposed x dy, both as matrices with a row a pixel."""
    kh, kw, channels, features = kernel.shape
    out, pads = dy.shape[1:3], (pad, rate * (kw - 1) // 2)
    if channels < 16 and kh > 1:
        # The three channels of the stem make a poor matrix: there, one product takes all taps.
        padded = jnp.pad(x, ((0, 0), *((pad, pad) for pad in pads), (0, 0)))
        taps = [seen.reshape(-1, channels) for _, seen, _ in _taps(padded, kernel.shape, out, stride, rate, (0, 0))]
        return outer(jnp.concatenate(taps, axis=-1), dy.reshape(-1, features)).reshape(kernel.shape)
    found = dict.fromkeys(itertools.product(range(kh), range(kw)), jnp.zeros((channels, features), x.dtype))
    for place, seen, (top, left) in _taps(x, kernel.shape, out, stride, rate, pads):
        part = dy[:, top : top + seen.shape[1], left : left + seen.shape[2]]
        found[place] = outer(seen.reshape(-1, channels), part.reshape(-1, features))
    return jnp.stack(list(found.values())).reshape(kernel.shape)


def _winograd_weight_gradient(x: Array, dy: Array, kernel: Array, stride: int, rate: int, pad: int) -> Array:
    return winograd.weight_gradient(x, dy, rate, pad)


def _with_gradients(forward: Callable[..., Array], weight_gradient: Callable[..., Array]) -> Callable[..., Array]:
    """`forward` whose gradients are computed in the same form; that with respect to the input is a convolution too."""

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
    def convolve(x: Array, kernel: Array, stride: int, rate: int, pad: int) -> Array:
        return forward(x, kernel, stride, rate, pad)

    def backward(stride: int, rate: int, pad: int, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
        # A barrier: what the forward pass made of `x` is made again, rather than held until now.
        x, kernel = lax.optimization_barrier(saved)
        if stride == 1:
            dx = forward(dy, kernel, 1, rate, rate * (kernel.shape[0] - 1) - pad, turned=True)
        else:
            (dx,) = jax.linear_transpose(lambda x: forward(x, kernel, stride, rate, pad), x)(dy)
        return dx, weight_gradient(x, dy, kernel, stride, rate, pad)

    convolve.defvjp(lambda x, kernel, *static: (forward(x, kernel, *static), (x, kernel)), backward)
    return convolve


_FORMS: dict[str, Callable[..., Array]] = {
    "xla": _xla,
    "mixed": _with_gradients(_xla, _products_weight_gradient),
    "products": _with_gradients(_products, _products_weight_gradient),
    "winograd": _with_gradients(_winograd, _winograd_weight_gradient),
    "shifts": _shifts,
}
