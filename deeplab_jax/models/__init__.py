"""The network as pure Flax Linen modules in NHWC. This package contains no data loading, training or file access."""

from deeplab_jax.models.backbones import BACKBONES
from deeplab_jax.models.deeplab import DeepLabV3, Outputs, normalize
from deeplab_jax.models.switches import canonical, validate
