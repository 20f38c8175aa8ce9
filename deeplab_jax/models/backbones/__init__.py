"""The backbones. To add one, describe it in a new module in this folder and add the module's table to `BACKBONES`."""

from deeplab_jax.errors import choose
from deeplab_jax.models.backbones import efficientnet_lite, mobilenetv2, mobilenetv3, resnet, resnext, xception
from deeplab_jax.models.stages import Backbone

BACKBONES: dict[str, Backbone] = {
    **resnet.BACKBONES,
    **resnext.BACKBONES,
    **mobilenetv2.BACKBONES,
    **mobilenetv3.BACKBONES,
    **efficientnet_lite.BACKBONES,
    **xception.BACKBONES,
}


def find_backbone(name: str) -> Backbone:
    """Return the backbone with the given name.

    Raises:
      ConfigError: No backbone has this name.
    """
    return choose(name, BACKBONES, "model.backbone")
