"""The layers that a network is made of, NHWC: convolution, BatchNorm, dropout, pooling."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.models.convolution import conv2d
from deeplab_jax.models.extent import Rows

Initializer = Callable[..., Array]

# He et al. 2015 over the outputs, as torchvision and mmsegmentation start a ResNet.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def at_least_float32(dtype: Any) -> Any:
    """What sums over many pixels, and logits, are computed in; float64 serves comparisons with other implementations."""
    return jnp.promote_types(dtype, jnp.float32)


class Conv(nn.Module):
    """An atrous convolution layer: float32 weights, computed in `dtype`.

    Attributes:
      features: output channels.
      size: height and width of the kernel, odd.
      stride, rate: see `convolution.conv2d`.
      use_bias: add a bias a channel.
      is_depthwise: convolve each channel by itself; there are as many features.
      dtype: what the products are computed in.
      rows: see `convolution.conv2d`.
    """

    features: int
    size: int = 1
    stride: int = 1
    rate: int = 1
    use_bias: bool = False
    is_depthwise: bool = False
    dtype: Any = jnp.float32
    rows: Rows | None = None
    kernel_init: Initializer = he_normal_fan_out

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 k"]:
        """Returns [n, ceil(h / stride), ceil(w / stride), features] in `dtype`."""
        channels = 1 if self.is_depthwise else x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, channels, self.features), jnp.float32)
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
      rows: how the image's rows are split over devices, whose pixels all count; see `convolution.conv2d`.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    rows: Rows | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w c"]:
        """Normalises with the batch's statistics if `train`, else with the running ones; returns x's dtype.

        Of variables that are folded into the kernels only "bias" is left, which is added.
        """
        features = x.shape[-1:]
        is_folded = not self.is_initializing() and not self.has_variable("params", "scale")  # see `export.folding`
        bias = self.param("bias", nn.initializers.zeros, features, jnp.float32)
        if is_folded:
            return (x + bias[None, None, None]).astype(x.dtype)
        scale = self.param("scale", nn.initializers.ones, features, jnp.float32)
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
      rows: see `convolution.conv2d`.
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


@jax.custom_jvp
def add_relu(x: Float[Array, "*s"], shortcut: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """relu(x + shortcut) of finite numbers, to the bit, as max(x, -shortcut) + shortcut.

    XLA fuses a ReLU into everything that reads it, and the sum before it too: in a stage of n residual blocks the last one adds
    up n + 1 convolutions again, all of which are held until then. A sum of two arrays it computes once.
    """
    return jnp.maximum(x, -shortcut) + shortcut


@add_relu.defjvp
def _add_relu_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    y = add_relu(*primals)
    return y, jnp.where(y > 0, tangents[0] + tangents[1], jnp.zeros_like(y))


def average_pool_2x2(
    x: Float[Array, "n h w c"], stride: int, rate: int = 1, rows: Rows | None = None
) -> Float[Array, "n h2 w2 c"]:
    """Means of pixels `rate` apart, two by two, those beyond the lower and right edge not counted: [ceil(h / stride), ...].

    Args:
      x: what to pool.
      stride: step of the output grid over the input.
      rate: distance between the taps, in input pixels.
      rows: see `convolution.conv2d`.
    """
    for axis in (1, 2):
        if axis == 1 and rows:
            padded, inside = rows.with_halo(x, 0, rate), rows.inside(x, rate)
        else:
            margins = [(0, rate * (other == axis), 0) for other in range(4)]
            padded = lax.pad(x, jnp.zeros((), x.dtype), margins)
            inside = jnp.expand_dims(jnp.arange(x.shape[axis]) + rate < x.shape[axis], [d for d in range(4) if d != axis])
        second = lax.slice_in_dim(padded, rate, rate + x.shape[axis], axis=axis)
        x = (x + jnp.where(inside, second, x)) / 2
        # A size that is a convolution's also where it is symbolic.
        x = lax.slice_in_dim(x, 0, (x.shape[axis] - 1) // stride * stride + 1, stride, axis)
    return x


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
