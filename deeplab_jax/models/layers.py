"""The network operations and layers, NHWC. Convolution, pooling and resizing have their own modules.

Backbones and heads must only compute with operations, because interpreters (operations.py) cannot see anything else.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import ScopeParamShapeError
from jax import lax
from jaxtyping import Array, Bool, Float

from deeplab_jax.models.convolution import Padding, conv2d
from deeplab_jax.models.operations import AnyArray, operation, pixelwise
from deeplab_jax.models.target import get_target

Initializer = Callable[..., Array]
Channels = Float[AnyArray, " c"]  # one value per channel


def he_normal_fan_out(groups: int = 1) -> Initializer:
    """Return Kaiming initialisation with fan-out (He et al. 2015, section 2.2).

    An input channel feeds only the output channels of its group, so the fan-out is divided by the number of groups, as in timm
    and in TensorFlow's EfficientNet. torchvision does not divide it, which makes depthwise kernels smaller by sqrt(groups).
    """
    return nn.initializers.variance_scaling(2.0 * groups, "fan_out", "normal")


def at_least_float32(dtype: Any) -> Any:
    """Return `dtype`, or float32 if `dtype` has a lower precision.

    Logits and sums over many pixels use this dtype. It is float64 only in comparisons with other implementations.
    """
    return jnp.promote_types(dtype, jnp.float32)


def parameter(layer: nn.Module, name: str, init: Initializer, shape: tuple[int, ...]) -> AnyArray:
    """Return the float32 parameter `name` of a layer.

    This is `layer.param`, but flax traces the initializer for its shape whenever the network is traced, which takes up to a
    third of the time.

    Raises:
      flax.errors.ScopeParamShapeError: The layer has a parameter of another shape.
    """
    if not layer.has_variable("params", name):
        return layer.param(name, init, shape, jnp.float32)
    value: AnyArray = layer.get_variable("params", name)
    if value.shape != shape:
        raise ScopeParamShapeError(name, "/".join(layer.path), value.shape, shape)
    return value


class Conv(nn.Module):
    """An atrous convolution layer with float32 weights, computed in `dtype`.

    Attributes:
      features: The number of output channels.
      size: The kernel height and width, which must be odd.
      stride, rate, padding: The stride, atrous rate and kind of padding; see `convolution.conv2d`.
      groups: The number of separately convolved channel groups. One group per channel makes the convolution depthwise.
      use_bias: Whether to add a bias to each channel.
      dtype: The compute dtype of the convolution.
      kernel_init: The kernel initializer. The default is `he_normal_fan_out`.
    """

    features: int
    size: int = 1
    stride: int = 1
    rate: int = 1
    groups: int = 1
    use_bias: bool = False
    dtype: Any = jnp.float32
    kernel_init: Initializer | None = None
    padding: Padding = "symmetric"

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], border: Float[Array, "1 1 1 c"] | None = None) -> Float[Array, "n h2 w2 k"]:
        """Return features of shape [n, ceil(h / stride), ceil(w / stride), features] in `dtype`. For `border`, see `conv2d`."""
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = parameter(self, "kernel", self.kernel_init or he_normal_fan_out(self.groups), shape)
        border = None if border is None else cast(border, self.dtype)
        y = conv2d(cast(x, self.dtype), kernel, stride=self.stride, rate=self.rate, padding=self.padding, border=border)
        if self.use_bias:
            y = add_bias(y, parameter(self, "bias", nn.initializers.zeros, (self.features,)))
        return y


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's arithmetic.

    The statistics are float32, and the running variance includes Bessel's correction. Under `jit` over a mesh, `x` is the
    global batch, so the statistics are also global and SyncBN is not needed.

    Attributes:
      momentum: The weight of the old running statistics in an update. (PyTorch's momentum is 1 minus this value.)
      epsilon: The constant added to the variance.
      returns_border: Whether to also return what the layer makes of a zero, as a 1x1 image.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    returns_border: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Any:
        """Return `x` normalised with batch statistics if `train` is set, or with running statistics otherwise.

        The result has the dtype of `x`. After folding (`export.folding`), `bias` is the only parameter and is added to `x`.
        Running statistics in the collection "frozen_stats" rather than "batch_stats" are used in training, too.

        With `returns_border`, return a pair of this array and, as float32 [1, 1, 1, c], what a pixel of zeros becomes.
        """
        features = x.shape[-1:]
        bias = parameter(self, "bias", nn.initializers.zeros, features)
        if not (self.is_initializing() or self.has_variable("params", "scale")):
            return (add_bias(x, bias), as_pixel(bias)) if self.returns_border else add_bias(x, bias)
        scale = parameter(self, "scale", nn.initializers.ones, features)
        is_frozen = self.has_variable("frozen_stats", "mean")
        collection, train = "frozen_stats" if is_frozen else "batch_stats", train and not is_frozen
        running_mean = self.variable(collection, "mean", jnp.zeros, features, jnp.float32)
        running_var = self.variable(collection, "var", jnp.ones, features, jnp.float32)
        mean, var = running_mean.value, running_var.value
        if train:
            x = materialize(x)
            mean, var, count = batch_moments(x, mean)
        if train and not self.is_initializing():
            unbiased = var * (count / max(count - 1, 1))
            running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
            running_var.value = self.momentum * running_var.value + (1 - self.momentum) * unbiased
        y = batch_norm(x, mean, var, scale, bias, self.epsilon)
        return (y, normalize_zero(mean, var, scale, bias, self.epsilon)) if self.returns_border else y


class Dropout(nn.Module):
    """A dropout layer that draws its mask from the rng "dropout".

    Attributes:
      rate: The fraction of values to set to zero.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w c"]:
        """Return `x` with dropout applied if `train` is set. The remaining values are scaled up to preserve the mean."""
        return drop(x, self.make_rng("dropout"), self.rate) if train and self.rate else x


@pixelwise
def batch_norm(
    x: Float[Array, "n h w c"], mean: Channels, var: Channels, scale: Channels, bias: Channels, epsilon: float
) -> Float[Array, "n h w c"]:
    """Return (x - mean) / sqrt(var + epsilon) * scale + bias in the dtype of `x`."""
    factor = scale * lax.rsqrt(var + epsilon)
    shift = bias - mean * factor
    return (x * factor[None, None, None] + shift[None, None, None]).astype(x.dtype)


@pixelwise
def normalize_zero(mean: Channels, var: Channels, scale: Channels, bias: Channels, epsilon: float) -> Float[Array, "1 1 1 c"]:
    """Return the result of `batch_norm` for a pixel of zeros, in float32 or wider."""
    return as_pixel(bias - mean * scale * lax.rsqrt(var + epsilon))


@pixelwise
def as_pixel(x: Float[AnyArray, " c"]) -> Float[Array, "1 1 1 c"]:
    """Return one value per channel as a 1x1 image."""
    return jnp.asarray(x)[None, None, None]


@pixelwise
def materialize(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Return `x`. If each TPU chip has one image, keep XLA from merging the operations that compute and read `x`.

    For a single image, XLA computes convolutions on parts of the image, as a larger batch. Without the barrier, it converts the
    parts to float32 for BatchNorm before it puts them together, which doubles the memory traffic of that copy. With 8 images
    per chip, it does not split them, and the barrier would cost 7 % more memory traffic.
    """
    return lax.optimization_barrier(x) if get_target()[:2] == ("tpu", 1) else x


@operation
def batch_moments(
    x: Float[Array, "n h w c"], expected_mean: Float[AnyArray, " c"]
) -> tuple[Float[Array, " c"], Float[Array, " c"], int]:
    """Return each channel's mean and variance over all pixels in the batch, and the number of pixels.

    The mean and variance are float32 or wider. The variance does not include Bessel's correction.

    Args:
      x: The features.
      expected_mean: A rough estimate of each channel's mean. On accelerators, the variance is more precise if it is close.
    """
    return moments(x, expected_mean, x.shape[0] * x.shape[1] * x.shape[2], _pixel_mean)


def _pixel_mean(x: Float[Array, "n h w c"]) -> Float[Array, " c"]:
    # On accelerators, rounding depends on the number of devices anyway, and XLA fuses a single reduction with its input.
    return jnp.mean(row_means(x), (0, 1)) if get_target().platform == "cpu" else jnp.mean(x, (0, 1, 2))


def moments(
    x: Float[Array, "n h w c"], expected_mean: Float[AnyArray, " c"], count: int, pixel_mean: Callable[[Array], Array]
) -> tuple[Float[Array, " c"], Float[Array, " c"], int]:
    """Return the result of `batch_moments`, computed from means over all pixels.

    Args:
      x: The features.
      expected_mean: See `batch_moments`.
      count: The number of pixels in the batch, returned unchanged.
      pixel_mean: A function that maps an array like `x` to each channel's mean over all pixels in the batch.
    """
    wide = x.astype(at_least_float32(x.dtype))
    if get_target().platform == "cpu":
        mean = pixel_mean(wide)
        return mean, pixel_mean(jnp.square(wide - mean[None, None, None])), count
    # On accelerators, a second pass over `x` would have to wait for an all-reduce of the mean. Instead, both means are computed
    # in one pass and share one all-reduce. Without the shift, E[x^2] - E[x]^2 would lose precision for large means.
    shift = lax.stop_gradient(jnp.asarray(expected_mean))
    shifted = wide - shift[None, None, None]
    mean, mean_of_squares = pixel_mean(shifted), pixel_mean(jnp.square(shifted))
    return shift + mean, jnp.maximum(mean_of_squares - jnp.square(mean), 0), count


@operation
def image_mean(x: Float[Array, "n h w c"]) -> Float[Array, "n 1 1 c"]:
    """Return the per-channel mean over each image's pixels, in float32 or wider.

    In bfloat16, a mean over 65x65 values would be too imprecise.
    """
    return jnp.mean(row_means(x.astype(at_least_float32(x.dtype))), 1)[:, None, None]


def row_means(x: Float[Array, "n h w c"]) -> Float[Array, "n h c"]:
    """Return the mean of each row.

    Statistics are averaged within rows first and then over rows, so they are bit-identical however the rows are split over
    devices. Even a rounding difference would shift all activations, and ReLU would then pass the gradient of an activation near
    0 with one split but block it with another.
    """
    # Without the barrier, XLA would merge the means within rows with the mean over rows.
    return lax.optimization_barrier(jnp.mean(x, 2))


@operation
def drop(x: Float[Array, "n h w c"], key: Array, rate: float) -> Float[Array, "n h w c"]:
    """Return `x` with a random fraction `rate` of its values set to zero and the rest scaled up to preserve the mean."""
    return apply_dropout_mask(x, draw_dropout_mask(key, rate, x.shape), rate)


def draw_dropout_mask(key: Array, rate: float, shape: tuple[int, ...]) -> Bool[Array, "n h w c"]:
    """Return a mask that is False for a random fraction `rate` of the values. It does not depend on JAX_ENABLE_X64."""
    return jax.random.bernoulli(key, jnp.float32(1 - rate), shape)


def apply_dropout_mask(x: Float[Array, "n h w c"], kept: Bool[Array, "n h w c"], rate: float) -> Float[Array, "n h w c"]:
    """Return `x` with the values outside the mask `kept` set to zero and the rest divided by 1 - `rate`."""
    return jnp.where(kept, x / jnp.asarray(1 - rate, x.dtype), jnp.zeros_like(x))


@pixelwise
def cast(x: Float[Array, "*s"], dtype: Any) -> Float[Array, "*s"]:
    """Return `x` converted to `dtype`."""
    return x.astype(dtype)


@pixelwise
def add_bias(x: Float[Array, "n h w c"], bias: Float[AnyArray, " c"]) -> Float[Array, "n h w c"]:
    """Return `x` with a bias added to each channel, in the dtype of `x`."""
    return x + bias.astype(x.dtype)[None, None, None]


@pixelwise
def relu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Return max(x, 0)."""
    return nn.relu(x)


@pixelwise
def relu6(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Return min(max(x, 0), 6)."""
    return nn.relu6(x)


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
    """Return `x` with each image's channels multiplied by that image's factors in `scale`."""
    return x * scale


@pixelwise
def concatenate(parts: Sequence[Float[Array, "n h w _"]]) -> Float[Array, "n h w c"]:
    """Return the arrays concatenated along the channel axis."""
    return jnp.concatenate(parts, axis=-1)


@operation
def broadcast_like(x: Float[Array, "n 1 1 c"], like: Float[Array, "n h w _"]) -> Float[Array, "n h w c"]:
    """Return the 1x1 images `x` repeated to the height and width of `like`."""
    return jnp.broadcast_to(x, (*like.shape[:3], x.shape[3]))


@pixelwise
def add_relu(x: Float[Array, "*s"], shortcut: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Return relu(x + shortcut)."""
    return _add_relu(x, shortcut)


@jax.custom_jvp
def _add_relu(x: Float[Array, "*s"], shortcut: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Return relu(x + shortcut), computed as max(x, -shortcut) + shortcut, which is bit-identical for finite numbers.

    In the direct form, XLA would fuse the sum and the ReLU into every operation that reads the result. In a stage with n
    residual blocks, the last block would then add up n + 1 convolution outputs again, and all of them would stay in memory
    until then. When the sum comes last, XLA computes the result only once.
    """
    return jnp.maximum(x, -shortcut) + shortcut


@_add_relu.defjvp
def _add_relu_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    y = _add_relu(*primals)
    return y, jnp.where(y > 0, tangents[0] + tangents[1], jnp.zeros_like(y))
