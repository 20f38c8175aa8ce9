"""The operations and layers that a network is made of, NHWC. Convolutions and resizing have files of their own.

A backbone or head uses these operations alone: what reads networks (operations.py) sees nothing else.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float

from deeplab_jax.models.convolution import conv2d
from deeplab_jax.models.operations import AnyArray, Length, operation, pixelwise

Initializer = Callable[..., Array]

# He et al. 2015 over the outputs, as torchvision and mmsegmentation start a ResNet.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def at_least_float32(dtype: Any) -> Any:
    """Return the type that sums over many pixels, and logits, are computed in; float64 serves comparisons with other code."""
    return jnp.promote_types(dtype, jnp.float32)


class Conv(nn.Module):
    """An atrous convolution layer: float32 weights, computed in `dtype`.

    Attributes:
      features: output channels.
      size: height and width of the kernel, odd.
      stride, rate: see `convolution.conv2d`.
      groups: parts that the channels are split into, each convolved by itself; as many as channels is a depthwise convolution.
      use_bias: add a bias to each channel.
      dtype: what the products are computed in.
    """

    features: int
    size: int = 1
    stride: int = 1
    rate: int = 1
    groups: int = 1
    use_bias: bool = False
    dtype: Any = jnp.float32
    kernel_init: Initializer = he_normal_fan_out

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 k"]:
        """Return [n, ceil(h / stride), ceil(w / stride), features] in `dtype`."""
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = conv2d(cast(x, self.dtype), kernel, stride=self.stride, rate=self.rate)
        if self.use_bias:
            y = add_bias(y, self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32))
        return y


class BatchNorm(nn.Module):
    """BatchNorm with PyTorch's arithmetic: float32 statistics, running variance with Bessel's correction.

    Under `jit` over a mesh the batch is the global batch, so its statistics are global as well: no SyncBN is needed.

    Attributes:
      momentum: share of the old running statistics that a training step keeps (PyTorch counts 1 - momentum).
      epsilon: added to the variance.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w c"]:
        """Normalise with the batch's statistics if `train`, else with the running ones; x's dtype.

        After folding (`export.folding`), only `bias` remains; it is added.
        """
        features = x.shape[-1:]
        is_folded = not self.is_initializing() and not self.has_variable("params", "scale")
        bias = self.param("bias", nn.initializers.zeros, features, jnp.float32)
        if is_folded:
            return add_bias(x, bias)
        scale = self.param("scale", nn.initializers.ones, features, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, features, jnp.float32)
        if not train:
            return batch_norm(x, running_mean.value, running_var.value, scale, bias, self.epsilon)
        mean, var, count = batch_moments(x)
        if not self.is_initializing():
            unbiased = var * (count / max(count - 1, 1))
            running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
            running_var.value = self.momentum * running_var.value + (1 - self.momentum) * unbiased
        return batch_norm(x, mean, var, scale, bias, self.epsilon)


class Dropout(nn.Module):
    """Zeroes a share of the values (rng "dropout").

    Attributes:
      rate: the share.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w c"]:
        """Drop if `train`, and scale the rest up to keep the mean."""
        return drop(x, self.make_rng("dropout"), self.rate) if train and self.rate else x


@pixelwise
def batch_norm(
    x: Float[Array, "n h w c"],
    mean: Float[AnyArray, " c"],
    var: Float[AnyArray, " c"],
    scale: Float[AnyArray, " c"],
    bias: Float[AnyArray, " c"],
    epsilon: float,
) -> Float[Array, "n h w c"]:
    """Return (x - mean) / sqrt(var + epsilon) * scale + bias, in x's dtype."""
    factor = scale * lax.rsqrt(var + epsilon)
    shift = bias - mean * factor
    return (x * factor[None, None, None] + shift[None, None, None]).astype(x.dtype)


@operation
def batch_moments(x: Float[Array, "n h w c"]) -> tuple[Float[Array, " c"], Float[Array, " c"], int]:
    """Return mean and variance (without Bessel's correction) over all pixels, float32 at least, and their number."""
    return moments(x, row_means, x.shape[0] * x.shape[1] * x.shape[2])


def moments(
    x: Float[Array, "n h w c"], row_means: Callable[[Array], Array], count: int
) -> tuple[Float[Array, " c"], Float[Array, " c"], int]:
    """Return `batch_moments`, by means over each row [n, h, c] that `row_means` gives."""
    wide = x.astype(at_least_float32(x.dtype))
    mean = jnp.mean(row_means(wide), (0, 1))
    # Two passes: E[x^2] - E[x]^2 cancels where the mean is large, and then differs from the references.
    var = jnp.mean(row_means(jnp.square(wide - mean[None, None, None])), (0, 1))
    return mean, var, count


@operation
def image_mean(x: Float[Array, "n h w c"]) -> Float[Array, "n 1 1 c"]:
    """Return the mean over the pixels of each image, float32 at least.

    Over 65x65 bfloat16 values the mean would lose the digits that make it useful.
    """
    return jnp.mean(row_means(x.astype(at_least_float32(x.dtype))), 1)[:, None, None]


def row_means(x: Float[Array, "n h w c"]) -> Float[Array, "n h c"]:
    """Return the mean over each row.

    Rows are averaged last, so that statistics are the same to the last bit however rows are split: a rounding there moves
    every activation, and those near 0 then pass their gradient on one side alone. XLA would merge the two means into one.
    """
    return lax.optimization_barrier(jnp.mean(x, 2))


@operation
def drop(x: Float[Array, "n h w c"], key: Array, rate: float) -> Float[Array, "n h w c"]:
    """Zero a share `rate` of the values, and scale the rest up to keep the mean."""
    return keep(x, jax.random.bernoulli(key, 1 - rate, x.shape), rate)


def keep(x: Float[Array, "n h w c"], kept: Bool[Array, "n h w c"], rate: float) -> Float[Array, "n h w c"]:
    """Zero what is not `kept`, and scale the rest up."""
    return jnp.where(kept, x / jnp.asarray(1 - rate, x.dtype), jnp.zeros_like(x))


@pixelwise
def cast(x: Float[Array, "*s"], dtype: Any) -> Float[Array, "*s"]:
    """Return x in `dtype`."""
    return x.astype(dtype)


@pixelwise
def add_bias(x: Float[Array, "n h w c"], bias: Float[AnyArray, " c"]) -> Float[Array, "n h w c"]:
    """Add a number to each channel, in x's dtype."""
    return x + bias.astype(x.dtype)[None, None, None]


@pixelwise
def relu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Return max(x, 0)."""
    return nn.relu(x)


@pixelwise
def hard_swish(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Return x min(max(x + 3, 0), 6) / 6."""
    return nn.hard_swish(x)


@pixelwise
def hard_sigmoid(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Return min(max(x + 3, 0), 6) / 6."""
    return nn.hard_sigmoid(x)


@pixelwise
def add(x: Float[Array, "*s"], y: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Return x + y."""
    return x + y


@operation
def scale_channels(x: Float[Array, "n h w c"], scale: Float[Array, "n 1 1 c"]) -> Float[Array, "n h w c"]:
    """Multiply each channel of each image by a number."""
    return x * scale


@pixelwise
def concatenate(parts: Sequence[Float[Array, "n h w _"]]) -> Float[Array, "n h w c"]:
    """Return the channels of all parts."""
    return jnp.concatenate(parts, axis=-1)


@operation
def broadcast_like(x: Float[Array, "n 1 1 c"], like: Float[Array, "n h w _"]) -> Float[Array, "n h w c"]:
    """Repeat one value for each image at every pixel of `like`."""
    return jnp.broadcast_to(x, (*like.shape[:3], x.shape[3]))


@pixelwise
def add_relu(x: Float[Array, "*s"], shortcut: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Return relu(x + shortcut)."""
    return _add_relu(x, shortcut)


@jax.custom_jvp
def _add_relu(x: Float[Array, "*s"], shortcut: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """relu(x + shortcut) of finite numbers, to the bit, as max(x, -shortcut) + shortcut.

    XLA fuses a ReLU into everything that reads it, and the sum before it too: in a stage of n residual blocks the last one adds
    up n + 1 convolutions again, all of which are held until then. A sum of two arrays it computes once.
    """
    return jnp.maximum(x, -shortcut) + shortcut


@_add_relu.defjvp
def _add_relu_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    y = _add_relu(*primals)
    return y, jnp.where(y > 0, tangents[0] + tangents[1], jnp.zeros_like(y))


@operation
def average_pool_2x2(x: Float[Array, "n h w c"], *, stride: int, rate: int = 1) -> Float[Array, "n h2 w2 c"]:
    """Average pixels `rate` apart, two by two, not counting those beyond the lower and right edge: [ceil(h / stride), ...].

    Args:
      x: what to pool.
      stride: step of the output grid over the input.
      rate: distance between the taps, in input pixels.
    """
    for axis in (1, 2):
        x = average_pairs(x, *beyond_the_end(x, rate, axis), stride, rate, axis)
    return x


def beyond_the_end(x: Float[Array, "n h w c"], rate: int, axis: int) -> tuple[Array, Array]:
    """Return x with `rate` zeros after its end, and for each index whether the one `rate` further lies inside."""
    padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, rate * (other == axis), 0) for other in range(4)])
    inside = jnp.arange(x.shape[axis]) + rate < x.shape[axis]
    return padded, jnp.expand_dims(inside, [other for other in range(4) if other != axis])


def average_pairs(
    x: Float[Array, "n h w c"], padded: Array, inside: Array, stride: int, rate: int, axis: int
) -> Float[Array, "n h2 w2 c"]:
    """Average each value with the one `rate` further along `axis`, where that lies inside.

    Args:
      x: what to pool.
      padded: x and `rate` more values after its end.
      inside: for each index along `axis`, whether the second value counts.
      stride, rate: see `average_pool_2x2`.
      axis: 1 or 2.
    """
    second = lax.slice_in_dim(padded, rate, rate + x.shape[axis], axis=axis)
    x = (x + jnp.where(inside, second, x)) / 2
    # A size that is a convolution's also where it is symbolic.
    return lax.slice_in_dim(x, 0, (x.shape[axis] - 1) // stride * stride + 1, stride, axis)


@operation
def max_pool_3x3(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Return the stem's 3x3 maximum at stride 2, padding 1; the gradient goes to one maximum of each window.

    Columns, then rows, of selected slices: XLA's CPU gradient of a window reduction is several times slower.
    """
    for axis in (2, 1):
        x = max_of_three(pad_with_infinity(x, axis), -(-x.shape[axis] // 2), axis)
    return x


def pad_with_infinity(x: Float[Array, "n h w c"], axis: int) -> Array:
    """Return x with one -inf before its start and after its end along `axis`."""
    margins = [(int(other == axis), int(other == axis), 0) for other in range(4)]
    return lax.pad(x, jnp.array(-jnp.inf, x.dtype), margins)


def max_of_three(padded: Float[Array, "n h w c"], size: Length, axis: int) -> Array:
    """Return the maxima of three neighbours along `axis`, at stride 2."""
    x, *others = (lax.slice_in_dim(padded, i, i + 2 * size - 1, 2, axis) for i in range(3))
    for other in others:
        x = jnp.where(x >= other, x, other)
    return x
