"""The network: pure Flax Linen modules, NHWC. No data, no training, no files."""

from deeplab_jax.models.backbones import BACKBONES
from deeplab_jax.models.deeplab import DeepLabV3, Outputs, normalize
from deeplab_jax.models.switches import canonical, validate
