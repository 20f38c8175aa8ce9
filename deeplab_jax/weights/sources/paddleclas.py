"""ImageNet backbones from PaddleClas, with the names of its newer files.

The tensor names are defined alongside each backbone in deeplab_jax/models/backbones. Older files have PaddleSeg's names.
"""

from deeplab_jax.weights.source import Source

SOURCE = Source(
    has_names=lambda names: any(name.endswith(".bn._mean") for name in names),
    is_backbone_only=True,
    statistics=("_mean", "_variance"),
)
