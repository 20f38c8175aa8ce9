"""The backbones. To add one, create a module in this folder that describes it and add its table to `BACKBONES`."""

from deeplab_jax.errors import choose
from deeplab_jax.models.backbones import mobilenetv3, resnet, resnext
from deeplab_jax.models.stages import Backbone

BACKBONES: dict[str, Backbone] = {
    **resnet.BACKBONES,
    **resnext.BACKBONES,
    **mobilenetv3.BACKBONES,
}


def find_backbone(name: str) -> Backbone:
    """Return the backbone with the given name.

    Raises:
      ConfigError: There is no backbone with this name.
    """
    return choose(name, BACKBONES, "model.backbone")
