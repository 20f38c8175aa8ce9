"""The backbones. A new one is a file here, which says everything about it, and a line below."""

from deeplab_jax.errors import choose
from deeplab_jax.models.backbones import mobilenetv3, resnet, resnext
from deeplab_jax.models.stages import Backbone

BACKBONES: dict[str, Backbone] = {
    **resnet.BACKBONES,
    **resnext.BACKBONES,
    **mobilenetv3.BACKBONES,
}


def find_backbone(name: str) -> Backbone:
    """Return a backbone by its name; ConfigError where there is none."""
    return choose(name, BACKBONES, "model.backbone")
