"""Convolution, BatchNorm and resizing, NHWC: the only place that decides how a convolution is computed.

Padding is PyTorch's (rate * (k - 1) / 2 on every side), so that a stride-2 layer maps H to ceil(H / 2), odd sizes included.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.models.rows import Rows

ConvForm = Literal["auto", "xla", "mixed", "products"]
Initializer = Callable[..., Array]

# He et al. 2015 over the outputs, as torchvision and mmsegmentation start a ResNet.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv2d(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c k"],
    *,
    stride: int = 1,
    rate: int = 1,
    form: ConvForm = "auto",
    rows: Rows | None = None,
) -> Float[Array, "n h2 w2 k"]:
    """An atrous convolution with padding rate * (size - 1) / 2, in the form that is fastest where it runs.

    Args:
      x: input features.
      kernel: HWIO weights of odd height and width; used in the dtype of `x`.
      stride: step of the output grid over the input.
      rate: distance between the taps, in input pixels.
      form: "xla" is XLA's own convolution; "products" a sum of matrix products, one a tap; "mixed" XLA's with the weight
        gradient by products; "auto" chooses.
      rows: how the image's rows are split over devices, of which `x` are one's; None where they are whole.
    """
    if form == "auto":
        form = _fastest_form(kernel.shape, x.shape, rate)
    forms: dict[str, Callable[..., Array]] = {"xla": _conv_xla, "mixed": _conv_mixed, "products": _conv_products}
    reach = rate * (kernel.shape[0] - 1) // 2
    if rows is None:
        return forms[form](x, kernel.astype(x.dtype), stride, rate, reach)
    # Before the cast: so the devices' gradients are added up in the kernel's own precision.
    kernel = rows.varying(kernel).astype(x.dtype)
    if reach == 0:
        return forms[form](x, kernel, stride, rate, 0)

    # Exchanged again in the backward pass: kept, the rows with their halo would be a second copy of every input.
    @jax.checkpoint
    def with_halo(x: Array, kernel: Array) -> Array:
        return forms[form](rows.with_halo(x, reach, max(reach - stride + 1, 0)), kernel, stride, rate, 0)

    return with_halo(x, kernel)


def _fastest_form(kernel_shape: tuple[int, ...], x_shape: tuple[int, ...], rate: int) -> ConvForm:
    """On CPUs: XLA's weight gradient is two to four times slower than products, and at large rates all of it is.

    Products need static sizes. Measurements: benchmarks/NOTES.md.
    """
    if jax.default_backend() != "cpu" or not all(isinstance(size, int) for size in x_shape):
        return "xla"
    return "products" if kernel_shape[:2] == (1, 1) or rate >= 4 else "mixed"


# The forms. `pad` is the number of zero rows above and below `x`; a halo takes their place.


def _conv_xla(x: Array, kernel: Array, stride: int, rate: int, pad: int) -> Array:
    pad_w = rate * (kernel.shape[1] - 1) // 2
    pads = ((pad, pad), (pad_w, pad_w))
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, rhs_dilation=(rate, rate), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


_conv_mixed = jax.custom_vjp(_conv_xla, nondiff_argnums=(2, 3, 4))


def _conv_mixed_fwd(x: Array, kernel: Array, stride: int, rate: int, pad: int) -> tuple[Array, tuple[Array, Array]]:
    return _conv_xla(x, kernel, stride, rate, pad), (x, kernel)


def _conv_mixed_bwd(stride: int, rate: int, pad: int, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    (dx,) = jax.linear_transpose(lambda x: _conv_xla(x, kernel, stride, rate, pad), x)(dy)
    return dx, _weight_gradient(x, dy, kernel.shape, stride, rate, pad)


def _weight_gradient(x: Array, dy: Array, shape: tuple[int, ...], stride: int, rate: int, pad: int) -> Array:
    """HWIO: for each tap, (the input that it sees, padding included) transposed x dy, both as matrices with a row a pixel."""
    kh, kw, channels, features = shape
    pixels = dy.reshape(-1, features)
    pad_w = rate * (kw - 1) // 2
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad_w, pad_w), (0, 0)))

    def seen(i: int, j: int) -> Array:
        end = (x.shape[0], i * rate + (dy.shape[1] - 1) * stride + 1, j * rate + (dy.shape[2] - 1) * stride + 1, channels)
        return lax.slice(padded, (0, i * rate, j * rate, 0), end, (1, stride, stride, 1)).reshape(-1, channels)

    taps = [seen(i, j) for i in range(kh) for j in range(kw)]
    # The three channels of the stem make a poor matrix: there, one product takes all taps.
    taps = [jnp.concatenate(taps, axis=-1)] if channels < 16 else taps
    return jnp.stack([jnp.einsum("pc,pk->ck", tap, pixels) for tap in taps]).reshape(shape)


_conv_mixed.defvjp(_conv_mixed_fwd, _conv_mixed_bwd)


def _conv_products(x: Array, kernel: Array, stride: int, rate: int, pad: int) -> Array:
    """Sum over the taps of (the input that the tap sees) x (its c by k matrix), each over the part that is not padding.

    At rate 36 on a 65x65 map most of a tap falls into the padding: skipping it saves up to 60 % of the work.
    """
    n, h, w, _ = x.shape
    kh, kw, _, features = kernel.shape
    pad_w = rate * (kw - 1) // 2
    out_h, out_w = (h + 2 * pad - rate * (kh - 1) - 1) // stride + 1, -(-w // stride)
    total = jnp.zeros((n, out_h, out_w, features), x.dtype)
    for i in range(kh):
        for j in range(kw):
            dy, dx = i * rate - pad, j * rate - pad_w
            top, bottom = _tap_range(dy, stride, h, out_h)
            left, right = _tap_range(dx, stride, w, out_w)
            if top >= bottom or left >= right:
                continue
            y0, x0 = top * stride + dy, left * stride + dx
            y1, x1 = y0 + (bottom - top - 1) * stride + 1, x0 + (right - left - 1) * stride + 1
            seen = lax.slice(x, (0, y0, x0, 0), (n, y1, x1, x.shape[3]), (1, stride, stride, 1))
            product = jnp.einsum("nhwc,ck->nhwk", seen, kernel[i, j])
            margins = ((0, 0, 0), (top, out_h - bottom, 0), (left, out_w - right, 0), (0, 0, 0))
            total = total + lax.pad(product, jnp.zeros((), product.dtype), margins)
    return total


def _tap_range(offset: int, stride: int, size: int, out_size: int) -> tuple[int, int]:
    """Outputs o in [first, last) whose input o * stride + offset lies in [0, size)."""
    first = max(0, -(offset // stride))
    last = min(out_size, (size - 1 - offset) // stride + 1)
    return first, last


def at_least_float32(dtype: Any) -> Any:
    """What sums over many pixels, and logits, are computed in; float64 serves comparisons with other implementations."""
    return jnp.promote_types(dtype, jnp.float32)


class Conv(nn.Module):
    """An atrous convolution layer: float32 weights, computed in `dtype`.

    Attributes:
      features: output channels.
      size: height and width of the kernel, odd.
      stride, rate: see `conv2d`.
      use_bias: add a bias a channel.
      dtype: what the products are computed in.
      rows: see `conv2d`.
    """

    features: int
    size: int = 1
    stride: int = 1
    rate: int = 1
    use_bias: bool = False
    dtype: Any = jnp.float32
    rows: Rows | None = None
    kernel_init: Initializer = he_normal_fan_out

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 k"]:
        """Returns [n, ceil(h / stride), ceil(w / stride), features] in `dtype`."""
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features), jnp.float32)
        y = conv2d(x.astype(self.dtype), kernel, stride=self.stride, rate=self.rate, rows=self.rows)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)[None, None, None]
        return y


class BatchNorm(nn.Module):
    """BatchNorm with PyTorch's arithmetic: float32 statistics, running variance with Bessel's correction.

    Under `jit` over a mesh the batch is the global batch, so its statistics are global as well: there is no SyncBN to ask for.

    Attributes:
      momentum: share of the old running statistics that a training step keeps (PyTorch counts 1 - momentum).
      epsilon: added to the variance.
      rows: how the image's rows are split over devices, whose pixels all count; see `conv2d`.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    rows: Rows | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w c"]:
        """Normalises with the batch's statistics if `train`, else with the running ones; returns x's dtype."""
        features = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, features, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, features, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, features, jnp.float32)
        if train:
            wide = x.astype(at_least_float32(x.dtype))
            mean = pixel_mean(wide, self.rows)
            # Two passes: E[x^2] - E[x]^2 cancels where the mean is large, and then differs from the references.
            var = pixel_mean(jnp.square(wide - mean[None, None, None]), self.rows)
            if not self.is_initializing():
                count = x.shape[0] * (self.rows.height_of(x) if self.rows else x.shape[1]) * x.shape[2]
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
                running_var.value = self.momentum * running_var.value + (1 - self.momentum) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * lax.rsqrt(var + self.epsilon)
        shift = bias - mean * factor
        return (x * factor[None, None, None] + shift[None, None, None]).astype(x.dtype)


def pixel_mean(x: Float[Array, "n h w c"], rows: Rows | None) -> Float[Array, " c"]:
    """Mean over the pixels of all images."""
    return jnp.mean(_row_means(x, rows), (0, 1))


def image_mean(x: Float[Array, "n h w c"], rows: Rows | None) -> Float[Array, "n 1 1 c"]:
    """Mean over the pixels of each image."""
    return jnp.mean(_row_means(x, rows), 1)[:, None, None]


def _row_means(x: Float[Array, "n h w c"], rows: Rows | None) -> Float[Array, "n h2 c"]:
    """Mean over each row, of all rows of the image.

    Rows are averaged last, so that statistics are the same to the last bit however rows are split: a rounding there moves
    every activation, and those near 0 then pass their gradient on one side alone. XLA would merge the two means into one.
    """
    means = jnp.mean(x, 2)
    return rows.gathered(means) if rows else lax.optimization_barrier(means)


class Dropout(nn.Module):
    """Zeroes a share of the values (rng "dropout"); which ones does not depend on how rows are split.

    Attributes:
      rate: the share.
      rows: see `conv2d`.
    """

    rate: float
    rows: Rows | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w c"]:
        """Drops if `train`, and scales the rest up to keep the mean."""
        if not train or self.rate == 0:
            return x
        height = self.rows.height_of(x) if self.rows else x.shape[1]
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, (x.shape[0], height, *x.shape[2:]))
        if self.rows:
            keep = self.rows.part(keep, x.shape[1])
        return jnp.where(keep, x / jnp.asarray(1 - self.rate, x.dtype), jnp.zeros_like(x))


def max_pool_3x3(x: Float[Array, "n h w c"], rows: Rows | None = None) -> Float[Array, "n h2 w2 c"]:
    """The stem's 3x3 maximum at stride 2, padding 1; the gradient goes to one maximum of each window.

    Columns, then rows, of selected slices: XLA's CPU gradient of a window reduction is several times slower.
    """
    for axis in (2, 1):
        size = -(-x.shape[axis] // 2)
        if axis == 1 and rows:
            padded = rows.with_halo(x, 1, 0, -jnp.inf)
        else:
            margins = [(0, 0, 0)] * 4
            margins[axis] = (1, 1, 0)
            padded = lax.pad(x, jnp.array(-jnp.inf, x.dtype), margins)
        x, *others = (lax.slice_in_dim(padded, i, i + 2 * size - 1, 2, axis) for i in range(3))
        for other in others:
            x = jnp.where(x >= other, x, other)
    # Infinities in the padding would make its zero gradient nan.
    return rows.fill(x, 0.0) if rows else x


def resize_bilinear(
    x: Float[Array, "n h w c"], height: int, width: int, *, align_corners: bool = False, rows: Rows | None = None
) -> Float[Array, "n height width c"]:
    """Bilinear, without antialiasing, as in both references.

    Args:
      x: what to resize.
      height, width: of the result; with `rows`, the height is theirs.
      align_corners: PyTorch's: the centres of the corner pixels coincide, rather than the pixels' outer corners.
      rows: see `conv2d`.
    """
    if rows:
        x = rows.resize(x, _sampled(rows.height_of(x), rows.height, align_corners))
        height = x.shape[1]
    shape = (x.shape[0], height, width, x.shape[3])
    if not align_corners:
        return jax.image.resize(x, shape, "bilinear", antialias=False)
    scale, shift = jnp.array([_aligned(x.shape[axis], shape[axis]) for axis in (1, 2)], jnp.float32).T
    return jax.image.scale_and_translate(x, shape, (1, 2), scale, shift, "bilinear", antialias=False)


def _aligned(size: int, new_size: int) -> tuple[float, float]:
    """(scale, translation) of pixel corners under which output pixel i lies at i (size - 1) / (new_size - 1)."""
    if size == 1:
        return new_size, 0.0
    scale = (new_size - 1) / (size - 1) if new_size > 1 else 1.0
    return scale, 0.5 - 0.5 * scale


def resize_by_gather(
    x: Float[Array, "n h w c"], height: int, width: int, *, align_corners: bool = False, rows: Rows | None = None
) -> Float[Array, "n height width c"]:
    """`resize_bilinear` for predictions: each value is read from its neighbours, not multiplied by a matrix of weights.

    XLA fuses it into an argmax, and its time does not grow with the source (benchmarks/NOTES.md); its gradient is slower.
    Symbolic sizes fall back to `resize_bilinear`.
    """
    if not all(isinstance(size, int) for size in (*x.shape[1:3], height, width)):
        return resize_bilinear(x, height, width, align_corners=align_corners)
    if rows:
        x = rows.resize(x, _sampled(rows.height_of(x), rows.height, align_corners))
        height = x.shape[1]
    for axis, new_size in ((1, height), (2, width)):
        size = x.shape[axis]
        if size == new_size:
            continue
        at = _sampled(size, new_size, align_corners)
        low = np.floor(at).astype(np.int32)
        share = np.expand_dims(at - low, [other for other in range(4) if other != axis]).astype(np.float32)
        x = jnp.take(x, low, axis) * (1 - share) + jnp.take(x, np.minimum(low + 1, size - 1), axis) * share
    return x


def _sampled(size: int, new_size: int, align_corners: bool) -> Float[np.ndarray, " new_size"]:
    """Where the centres of the new pixels lie, in the old ones' indices."""
    if align_corners:
        return np.linspace(0.0, size - 1, new_size)
    return np.clip((np.arange(new_size) + 0.5) * (size / new_size) - 0.5, 0, size - 1)
