"""The network: pure Flax Linen modules, NHWC. No data, no training, no files."""

from deeplab_jax.models.deeplab import DeepLabV3, Outputs, normalize

__all__ = ["DeepLabV3", "Outputs", "normalize"]
