"""DeepLabV3: a dilated backbone, ASPP, an optional V3+ decoder, a classifier and an optional auxiliary head for training.

All arrays are NHWC. The network expects normalised images with `config.channels` channels.
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Real

from deeplab_jax.config import ModelConfig, aspp_rates
from deeplab_jax.models.aspp import ASPP, ConvBNReLU
from deeplab_jax.models.backbones import find_backbone
from deeplab_jax.models.decoder import Decoder
from deeplab_jax.models.layers import Conv, Dropout, at_least_float32
from deeplab_jax.models.operations import AnyArray


class Outputs(NamedTuple):
    """The network outputs, in float32. Each has the same stride as the features it is computed from.

    Attributes:
      logits: The logits, [n, ceil(h / stride), ceil(w / stride), classes]. The stride is 4 with a decoder, and `output_stride`
        without one.
      aux: The auxiliary head's logits at the stride of `Features.aux`, or None without that head. Under `jit`, they are only
        computed if the program uses them.
    """

    logits: Float[Array, "n h w k"]
    aux: Float[Array, "n h2 w2 k"] | None


class DeepLabV3(nn.Module):
    """The segmentation network described by a `ModelConfig`.

    Attributes:
      config: The architecture.
      num_classes: The number of classes, which is also the number of logit channels.
    """

    config: ModelConfig
    num_classes: int

    @nn.compact
    def __call__(self, images: Float[AnyArray, "n h w c"], train: bool) -> Outputs:
        """Return logits for normalised images of any size.

        Args:
          images: Images produced by `normalize`.
          train: Whether to use batch statistics and dropout. Dropout needs an RNG named "dropout".
        """
        c = self.config
        dtype = jnp.dtype(c.dtype)
        features = find_backbone(c.backbone).make(c)(jnp.asarray(images), train)
        rates = tuple(int(rate) for rate in aspp_rates(c.atrous_rates, c.output_stride))
        aspp = ASPP(rates, c.aspp_width, c.aspp_conv, c.fusion, c.conv_bias, c.dropout, dtype, name="aspp")
        x = aspp(features.last, train)
        if c.decoder_width:
            decoder = Decoder(
                c.decoder_width,
                c.low_level_width,
                c.decoder_conv,
                c.decoder_depth,
                c.conv_bias,
                c.decoder_dropout,
                c.align_corners,
                dtype,
                name="decoder",
            )
            x = decoder(x, features.low, train)
        logits = self._classify(x, "classifier")
        if not c.aux_head:
            return Outputs(logits, None)
        width = features.aux.shape[-1] // 4
        aux = ConvBNReLU(width, "3x3", dtype=dtype, name="aux_conv")(features.aux, train)
        return Outputs(logits, self._classify(Dropout(c.aux_dropout)(aux, train), "aux_classifier"))

    def _classify(self, x: Float[Array, "n h w c"], name: str) -> Float[Array, "n h w k"]:
        # The classifier uses float32 even if the network uses bfloat16, because the softmax is sensitive to rounding.
        dtype = at_least_float32(self.config.dtype)
        # As in segmentation_models.pytorch. mmsegmentation's kernels, with a standard deviation of 0.01, learn more slowly.
        return Conv(self.num_classes, use_bias=True, dtype=dtype, kernel_init=nn.initializers.glorot_uniform(), name=name)(x)


def normalize(images: Real[AnyArray, "n h w c"], mean: tuple[float, ...], std: tuple[float, ...]) -> Float[Array, "n h w c"]:
    """Return (image - mean) / std in float32. All three arguments are on a 0-255 scale."""
    scale = 1 / jnp.asarray(std, jnp.float32)
    return (jnp.astype(images, jnp.float32) - jnp.asarray(mean, jnp.float32)[None, None, None]) * scale[None, None, None]
