"""DeepLabV3: a dilated backbone, ASPP, perhaps the decoder of V3+, a classifier and, for training, an auxiliary head.

NHWC, normalised images in.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Real

from deeplab_jax.config import ModelConfig, aspp_rates
from deeplab_jax.models.aspp import ASPP, ConvBNReLU
from deeplab_jax.models.backbones.mobilenetv3 import MobileNetV3
from deeplab_jax.models.backbones.resnet import ResNet
from deeplab_jax.models.decoder import Decoder
from deeplab_jax.models.extent import Rows
from deeplab_jax.models.layers import Conv, Dropout, at_least_float32


class Outputs(NamedTuple):
    """What the network says, both float32 and at the stride of the features they come from.

    Attributes:
      logits: [n, h / output_stride, w / output_stride, classes], rounded up; with a decoder at stride 4.
      aux: the auxiliary head's logits at the stride of `Features.aux`, or None without that head. Under `jit`, a program that
        does not return them does not compute them.
    """

    logits: Float[Array, "n h w k"]
    aux: Float[Array, "n h2 w2 k"] | None


class DeepLabV3(nn.Module):
    """The network of a `ModelConfig`.

    Attributes:
      config: the architecture's switches.
      num_classes: channels of the logits.
    """

    config: ModelConfig
    num_classes: int

    @nn.compact
    def __call__(self, images: Float[Array, "n h w 3"], train: bool, rows: Rows | None = None) -> Outputs:
        """Logits of normalised images of any size.

        Args:
          images: what `normalize` returns.
          train: use the batch's statistics and dropout (rng "dropout").
          rows: how the images' rows are split over devices, of which `images` are one's; None where they are whole.
        """
        c = self.config
        dtype = jnp.dtype(c.dtype)
        features = make_backbone(c, rows)(images, train)
        rates = tuple(int(rate) for rate in aspp_rates(c.atrous_rates, c.output_stride))
        x = ASPP(rates, c.aspp_width, c.fusion, c.dropout, dtype, rows, name="aspp")(features.last, train)
        if c.decoder_width:
            decoder = Decoder(c.decoder_width, c.low_level_width, c.align_corners, dtype, rows, name="decoder")
            x = decoder(x, features.low, train)
        logits = _classifier(self.num_classes, dtype, rows, "classifier")(x)
        if not c.aux_head:
            return Outputs(logits, None)
        width = features.aux.shape[-1] // 4
        aux = ConvBNReLU(width, 3, dtype=dtype, rows=rows, name="aux_conv")(features.aux, train)
        aux = Dropout(c.aux_dropout, rows)(aux, train)
        return Outputs(logits, _classifier(self.num_classes, dtype, rows, "aux_classifier")(aux))


def make_backbone(config: ModelConfig, rows: Rows | None = None) -> nn.Module:
    """The network that gives `stages.Features` of (images, train)."""
    if config.backbone == "mobilenetv3_large":
        return MobileNetV3(
            width=config.width,
            output_stride=config.output_stride,
            multi_grid=config.multi_grid,
            dtype=jnp.dtype(config.dtype),
            remat=config.remat,
            rows=rows,
            name="backbone",
        )
    return ResNet(
        depth=config.backbone,
        width=config.width,
        stem=config.stem,
        shortcut=config.shortcut,
        output_stride=config.output_stride,
        multi_grid=config.multi_grid,
        dilate_conv2=config.dilate_conv2,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
        rows=rows,
        name="backbone",
    )


def _classifier(num_classes: int, dtype: Any, rows: Rows | None, name: str) -> Conv:
    # Float32 also under bfloat16: the softmax over the classes is where rounding shows.
    wide = at_least_float32(dtype)
    return Conv(num_classes, use_bias=True, dtype=wide, kernel_init=nn.initializers.normal(0.01), rows=rows, name=name)


def normalize(images: Real[Array, "n h w 3"], mean: tuple[float, ...], std: tuple[float, ...]) -> Float[Array, "n h w 3"]:
    """(image - mean) / std in float32, both in units of 0-255."""
    scale = 1 / jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) - jnp.asarray(mean, jnp.float32)[None, None, None]) * scale[None, None, None]
