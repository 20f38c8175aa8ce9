"""Backbones alone, as timm and torchvision name them. Each backbone's file has the names."""

from deeplab_jax.weights.source import Source

SOURCE = Source(has_names=lambda _: True, is_backbone_alone=True)
