"""Backbone weights without a segmentation head, from timm or torchvision.

The tensor names are defined alongside each backbone in deeplab_jax/models/backbones.
"""

from deeplab_jax.weights.source import Source

SOURCE = Source(has_names=lambda _: True, is_backbone_only=True)
