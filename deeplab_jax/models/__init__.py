"""The network as pure Flax Linen modules in NHWC. Data loading, training and file access live in other packages."""

from deeplab_jax.models.backbones import BACKBONES
from deeplab_jax.models.deeplab import DeepLabV3, Outputs, normalize
from deeplab_jax.models.switches import canonical, check_effects, validate
