"""The NHWC convolution used by all layers, with several ways to compute it.

The choice between them is based on the measurements in benchmarks/NOTES.md. A stride-2 layer maps height H to ceil(H / 2) for
both even and odd H. The padding decides at which pixels the kernel is centred; see `conv2d`.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from deeplab_jax.models import depthwise, winograd
from deeplab_jax.models.operations import AnyArray, Length, operation
from deeplab_jax.models.products import multiply, outer
from deeplab_jax.models.taps import Pads, iterate_taps, output_size
from deeplab_jax.models.target import get_target

# The maximum number of input bytes copied at a time for one tap's matrix product.
BAND_BYTES = 64 * 2**20

ConvForm = Literal["auto", "xla", "mixed", "products", "winograd", "shifts"]
Padding = Literal["symmetric", "same", "valid"]


@operation
def conv2d(
    x: Float[Array, "n h w c"],
    kernel: Float[AnyArray, "kh kw c2 k"],
    *,
    stride: int = 1,
    rate: int = 1,
    padding: Padding = "symmetric",
    border: Float[Array, "1 1 1 c"] | None = None,
    form: ConvForm = "auto",
) -> Float[Array, "n h2 w2 k"]:
    """Return `x` convolved with `kernel`, with shape [n, ceil(h / stride), ceil(w / stride), k], or less without padding.

    Args:
      x: The input features.
      kernel: The HWIO weights, with odd height and width. They are converted to the dtype of `x`. If the kernel has fewer input
        channels than `x`, the channels are convolved in groups of that size. With groups of one channel, the convolution
        is depthwise.
      stride: The step of the output grid, in input pixels.
      rate: The distance between the taps, in input pixels.
      padding: Where the kernel is centred:
        "symmetric": At every `stride`-th pixel from the first. All sides have padding rate * (size - 1) / 2, as in PyTorch.
        "same": As with TensorFlow's "SAME" padding. At stride 2, it is one pixel later along an axis of even length, which then
          has one zero less before the first pixel. All other cases are the same as "symmetric".
        "valid": At every `stride`-th pixel from the first where the kernel reads only the image. An image smaller than the
          kernel has one row or column of outputs, which read zeros below or on the right.
      border: What a depthwise convolution reads outside the image, instead of zeros.
      form: How to compute the convolution:
        "auto": The fastest form on the target platform.
        "xla": XLA's own convolution.
        "mixed": XLA's own convolution, with the weight gradient computed by matrix products.
        "products": A sum of matrix products, one per tap.
        "winograd": Winograd's minimal filtering, for 3x3 kernels at stride 1.
        "shifts": A sum of shifted elementwise products, for depthwise kernels.

    Raises:
      ValueError: The form does not support this kernel and stride, or "same" padding does not support this stride.
    """
    if border is not None:
        y = conv2d(x - border, kernel, stride=stride, rate=rate, padding=padding, form=form)
        return add_border(y, kernel, border)
    convolve = choose_convolution(kernel.shape, x.shape, x.dtype, stride, rate, form)
    radii, shifts = kernel_radii(kernel.shape, rate), kernel_shifts(x.shape[1:3], kernel.shape, stride, rate, padding)
    ends = tuple(
        missing_pixels(size, radius) if padding == "valid" else radius for size, radius in zip(x.shape[1:3], radii, strict=True)
    )
    if all(isinstance(shift, int) for shift in shifts):
        pads = [(radius - shift, end) for radius, shift, end in zip(radii, shifts, ends, strict=True)]
    else:  # the parity of a symbolic size is only known when the program runs
        x, pads = jnp.pad(x, ((0, 0), *((radius, radius + 1) for radius in radii), (0, 0))), [(0, 0), (0, 0)]
        for axis, shift in enumerate(shifts, start=1):
            x = shift_by(x, jnp.asarray(shift), axis)
    return convolve(x, jnp.astype(kernel, x.dtype), stride, rate, (pads[0], pads[1]))


def missing_pixels(size: Length, radius: int) -> int:
    """Return how many pixels an image lacks to be as large as a kernel. A symbolic size is taken to be large enough."""
    return max(2 * radius + 1 - size, 0) if isinstance(size, int) else 0


def add_border(
    y: Float[Array, "n h w c"], kernel: Float[AnyArray, "kh kw 1 c"], border: Float[Array, "1 1 1 c"]
) -> Float[Array, "n h w c"]:
    """Return the convolution of `x`, given that of `x - border`.

    The kernel's taps all read `border`, inside and outside the image, so their sum times `border` is missing.
    """
    return y + (jnp.sum(kernel, (0, 1))[None, None] * border).astype(y.dtype)


def kernel_radii(kernel_shape: tuple[int, ...], rate: int) -> tuple[int, int]:
    """Return how many rows and columns a dilated kernel covers on each side of its centre."""
    return rate * (kernel_shape[0] - 1) // 2, rate * (kernel_shape[1] - 1) // 2


def kernel_shifts(
    size: tuple[Any, ...], kernel_shape: tuple[int, ...], stride: int, rate: int, padding: Padding
) -> tuple[Any, Any]:
    """Return how many rows and columns after the first pixel the kernel is centred for the first output.

    Args:
      size: The height and width of the input: numbers, symbolic sizes, or each image's own.
      kernel_shape, stride, rate, padding: See `conv2d`.

    Returns:
      Two values like `size`. Each is 0 or 1 with padding.

    Raises:
      ValueError: "same" padding does not support this stride.
    """
    if padding == "same" and stride > 2:
        raise ValueError(f'`stride` (={stride}) must be 1 or 2 with "same" padding. Use "symmetric".')
    if padding == "valid":
        return kernel_radii(kernel_shape, rate)
    if padding == "symmetric" or stride == 1:
        return 0, 0
    # TensorFlow pads by max((ceil(n / stride) - 1) * stride + rate * (k - 1) + 1 - n, 0) in total, and puts the odd zero last.
    rows, columns = (1 - n % 2 if radius else 0 for n, radius in zip(size, kernel_radii(kernel_shape, rate), strict=True))
    return rows, columns


def shift_by(x: Float[Array, "n h w c"], shift: Int[Array, "..."], axis: int) -> Float[Array, "n h2 w2 c"]:
    """Return `x` without one of the values along `axis`: the first one where `shift` is 1, and the last one where it is 0.

    Args:
      x: The features.
      shift: One number, or one for each image.
      axis: 1 for rows or 2 for columns.
    """
    early, late = (lax.slice_in_dim(x, i, i + x.shape[axis] - 1, axis=axis) for i in (0, 1))
    return jnp.where(jnp.reshape(shift, (-1, 1, 1, 1)) > 0, late, early)


def choose_convolution(
    kernel_shape: tuple[int, ...],
    x_shape: tuple[Length, ...],
    dtype: jnp.dtype,
    stride: int,
    rate: int,
    form: ConvForm = "auto",
) -> Callable[[Array, Array, int, int, Pads], Array]:
    """Return a function that computes a convolution in the given form.

    The function takes (x, kernel, stride, rate, pads), where the kernel has the dtype of `x`.

    Args:
      kernel_shape, x_shape: The argument shapes for `conv2d`. `x_shape` can be symbolic.
      dtype: The dtype of `x`.
      stride, rate, form: See `conv2d`.

    Raises:
      ValueError: The form does not support this kernel and stride.
    """
    if form == "auto":
        form = _fastest_form(kernel_shape, x_shape, dtype, stride, rate)
    if form == "winograd" and (kernel_shape[:2] != (3, 3) or stride > 1):
        raise ValueError(
            f"`form` (='winograd') supports only 3x3 kernels at stride 1, not size {kernel_shape[:2]} at stride {stride}. "
            "Use 'auto'."
        )
    is_depthwise, is_grouped = kernel_shape[2] == 1 < x_shape[3], kernel_shape[2] < x_shape[3]
    if form != "xla" and ((form == "shifts") != is_depthwise or is_grouped != is_depthwise):
        raise ValueError(
            f"`form` (={form!r}) does not support a kernel of shape {kernel_shape} on {x_shape[3]} input channels. Use 'auto'."
        )
    return _FORMS[form]


def _fastest_form(
    kernel_shape: tuple[int, ...], x_shape: tuple[Length, ...], dtype: jnp.dtype, stride: int, rate: int
) -> ConvForm:
    """Return the form expected to be fastest.

    Accelerators and symbolic sizes always use XLA's convolution. On CPUs, the choice depends mainly on the number of
    multiplications.
    """
    if get_target().platform != "cpu" or not all(isinstance(size, int) for size in x_shape):
        return "xla"
    if kernel_shape[2] < x_shape[3]:
        return "shifts" if kernel_shape[2] == 1 else "xla"
    if kernel_shape[:2] == (1, 1):
        return "products"
    if kernel_shape[:2] != (3, 3) or stride > 1:
        return "mixed"
    height, width, channels = x_shape[1:]
    multiplications_of_products = _count_tap_outputs(height, rate) * _count_tap_outputs(width, rate)
    # Winograd does not pay off in three cases. In bfloat16, each of its 16 tile sums would be rounded. With few channels, the
    # transforms take most of the time. In the ASPP, with 2048 channels and large rates, the transforms need more memory than
    # the rest of the network.
    is_suitable = dtype != jnp.bfloat16 and min(channels, kernel_shape[3]) >= 64 and channels <= 1024
    if is_suitable and 1.2 * winograd.count_multiplications(height, width, rate) < multiplications_of_products:
        return "winograd"
    return "products" if rate >= 4 else "mixed"


def _count_tap_outputs(size: int, rate: int) -> int:
    """Return how many (tap, output) pairs of a three-tap kernel read input rather than padding along one axis."""
    return size + 2 * max(size - rate, 0)


# The functions below implement the convolution forms. `pads` has zeros where `x` already includes a halo. `flip` rotates the
# kernel by 180 degrees and swaps its channel axes, as needed for the input gradient.


def _convolve_by_xla(x: Array, kernel: Array, stride: int, rate: int, pads: Pads, flip: bool = False) -> Array:
    kernel = kernel[::-1, ::-1].swapaxes(2, 3) if flip else kernel
    groups = x.shape[3] // kernel.shape[2]
    convolve = functools.partial(
        lax.conv_general_dilated,
        window_strides=(stride, stride),
        padding=pads,
        rhs_dilation=(rate, rate),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return (_split_batch(convolve, x) if 1 < groups < x.shape[3] else convolve)(x, kernel)


def _split_batch(convolve: Callable[[Array, Array], Array], x: Array) -> Callable[[Array, Array], Array]:
    """Return `convolve` such that each device convolves its own images.

    XLA's partitioner does not split grouped convolutions. It gathers the whole batch on every device. This remains so if image
    rows are split as well, because JAX cannot differentiate a shard_map in the shard_map of the rows.
    """
    mesh = get_target().mesh
    is_nested = not jax.sharding.get_abstract_mesh().empty
    if mesh is None or mesh.shape["data"] == 1 or x.shape[0] % mesh.shape["data"] or is_nested:
        return convolve

    def convolve_local(x: Array, kernel: Array) -> Array:
        # XLA's CPU compiler crashes if the kernel's gradient is summed over devices in bfloat16. It is summed where the kernel
        # becomes a varying value, which is in float32 here.
        return convolve(x, jnp.astype(lax.pcast(kernel, "data", to="varying"), x.dtype))

    split = jax.shard_map(
        convolve_local,
        mesh=mesh,
        in_specs=(P("data"), P()),
        out_specs=P("data"),
        axis_names={"data"},
    )
    return lambda x, kernel: split(x, jnp.astype(kernel, jnp.promote_types(x.dtype, jnp.float32)))


def _convolve_by_products(x: Array, kernel: Array, stride: int, rate: int, pads: Pads, flip: bool = False) -> Array:
    """Compute a convolution as a sum of matrix products, multiplying the input pixels by each tap's c by k matrix.

    Each product skips the outputs for which its tap would read padding. At rate 36 on a 65x65 map, outer taps read mostly
    padding, so skipping these outputs saves up to 60 % of the work.
    """
    height, width = output_size(x, kernel, stride, rate, pads)
    band_height = height if kernel.shape[0] == 1 else max(height * BAND_BYTES // x.nbytes, 1)
    bands = []
    for first in range(0, height, band_height):
        out = (min(band_height, height - first), width)
        bands.append(_sum_taps(x, kernel, out, stride, rate, (pads[0][0] - first * stride, pads[1][0]), flip))
    return jnp.concatenate(bands, axis=1)


def _sum_taps(
    x: Array, kernel: Array, out: tuple[int, int], stride: int, rate: int, starts: tuple[int, int], flip: bool
) -> Array:
    """Return the sum of all taps' matrix products for a band of outputs with (height, width) `out`.

    `starts` is the number of zeros above and to the left of the band's input.

    The middle tap comes first because it usually covers every output. Products are added in place, so only one of them is in
    memory at a time.
    """
    kh, kw, channels, features = kernel.shape
    channels, features = (features, channels) if flip else (channels, features)
    middle = (kh // 2, kw // 2)
    total = jnp.zeros((x.shape[0], *out, features), jnp.promote_types(x.dtype, jnp.float32))
    taps = sorted(iterate_taps(x, kernel.shape, out, stride, rate, starts), key=lambda tap: tap[0] != middle)
    for (i, j), pixels, (top, left) in taps:
        matrix = kernel[kh - 1 - i, kw - 1 - j] if flip else kernel[i, j]
        product = multiply(pixels.reshape(-1, channels), matrix, flip).reshape(*pixels.shape[:3], features)
        start = (0, top, left, 0)
        subtotal = lax.slice(total, start, [first + size for first, size in zip(start, product.shape, strict=True)])
        total = lax.dynamic_update_slice(total, subtotal + product, start)
    return total.astype(x.dtype)


def _convolve_by_winograd(x: Array, kernel: Array, stride: int, rate: int, pads: Pads, flip: bool = False) -> Array:
    # `winograd.convolve` always pads `rate` columns. Further ones are added here, or results that read too many are dropped.
    further, surplus = [max(pad - rate, 0) for pad in pads[1]], [max(rate - pad, 0) for pad in pads[1]]
    y = winograd.convolve(_pad_columns(x, further), kernel, rate, pads[0][0], flip=flip)
    return y[:, :, surplus[0] : y.shape[2] - surplus[1]] if any(surplus) else y


def _pad_columns(x: Array, pads: Sequence[int]) -> Array:
    return jnp.pad(x, ((0, 0), (0, 0), (pads[0], pads[1]), (0, 0))) if any(pads) else x


def _weight_gradient_by_products(x: Array, dy: Array, kernel: Array, stride: int, rate: int, pads: Pads) -> Array:
    """Compute the HWIO weight gradient by multiplying each tap's transposed input pixels by `dy`."""
    kh, kw, channels, features = kernel.shape
    out, starts = dy.shape[1:3], (pads[0][0], pads[1][0])
    if channels < 16 and kh > 1:
        # With few channels, such as the stem's 3, one matrix per tap would be too narrow, so all taps share one product.
        padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        taps = iterate_taps(padded, kernel.shape, out, stride, rate, (0, 0))
        columns = [pixels.reshape(-1, channels) for _, pixels, _ in taps]
        return outer(jnp.concatenate(columns, axis=-1), dy.reshape(-1, features)).reshape(kernel.shape)
    gradients = dict.fromkeys(itertools.product(range(kh), range(kw)), jnp.zeros((channels, features), x.dtype))
    for position, pixels, (top, left) in iterate_taps(x, kernel.shape, out, stride, rate, starts):
        part = dy[:, top : top + pixels.shape[1], left : left + pixels.shape[2]]
        gradients[position] = outer(pixels.reshape(-1, channels), part.reshape(-1, features))
    return jnp.stack(list(gradients.values())).reshape(kernel.shape)


def _weight_gradient_by_winograd(x: Array, dy: Array, kernel: Array, stride: int, rate: int, pads: Pads) -> Array:
    dy = _pad_columns(dy, [rate - pad for pad in pads[1]])  # the dropped results have no gradient
    return winograd.compute_weight_gradient(x, dy, rate, pads[0][0])


def _add_gradients(forward: Callable[..., Array], weight_gradient: Callable[..., Array]) -> Callable[..., Array]:
    """Return `forward` with a custom gradient.

    The input gradient is itself a convolution, so `forward` computes it. The weight gradient is computed by `weight_gradient`.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
    def convolve(x: Array, kernel: Array, stride: int, rate: int, pads: Pads) -> Array:
        return forward(x, kernel, stride, rate, pads)

    def backward(stride: int, rate: int, pads: Pads, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
        # The barrier makes XLA recompute the forward pass's intermediate arrays here instead of keeping them in memory.
        x, kernel = lax.optimization_barrier(saved)
        if stride == 1:
            spans = (rate * (taps - 1) for taps in kernel.shape[:2])
            rows, columns = ((span - first, span - last) for span, (first, last) in zip(spans, pads, strict=True))
            dx = forward(dy, kernel, 1, rate, (rows, columns), flip=True)
        else:
            (dx,) = jax.linear_transpose(lambda x: forward(x, kernel, stride, rate, pads), x)(dy)
        return dx, weight_gradient(x, dy, kernel, stride, rate, pads)

    convolve.defvjp(lambda x, kernel, *static: (forward(x, kernel, *static), (x, kernel)), backward)
    return convolve


_FORMS: dict[str, Callable[..., Array]] = {
    "xla": _convolve_by_xla,
    "mixed": _add_gradients(_convolve_by_xla, _weight_gradient_by_products),
    "products": _add_gradients(_convolve_by_products, _weight_gradient_by_products),
    "winograd": _add_gradients(_convolve_by_winograd, _weight_gradient_by_winograd),
    "shifts": _add_gradients(depthwise.convolve, depthwise.compute_weight_gradient),
}
