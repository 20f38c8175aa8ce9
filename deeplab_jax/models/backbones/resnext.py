"""A dilated ResNeXt (Xie et al. 2016, arXiv:1611.05431), NHWC.

A ResNeXt is a ResNet with grouped 3x3 convolutions. The supported networks are torchvision's.
"""

import functools
from typing import Any

from deeplab_jax.models.backbones.resnet import (
    FIRST_TENSOR,
    Blocks,
    ResNet,
    count_blocks,
    inner_width,
    recognize_stem_and_shortcut,
    tensor_names,
)
from deeplab_jax.models.stages import Backbone, Shapes

# Maps each network to its number of blocks per stage, number of groups, and number of channels per group in the first stage.
NETWORKS: dict[str, tuple[Blocks, int, int]] = {"resnext50_32x4d": ((3, 4, 6, 3), 32, 4)}


def recognize(shapes: Shapes) -> dict[str, Any] | None:
    """Return the `ModelConfig` fields for a ResNeXt, or None for any other network.

    In a ResNeXt, each block's second convolution is grouped, so each output channel reads only some of the input channels.
    """
    inner, last = shapes.get("layer1.0.conv2.weight", ()), shapes.get("layer1.0.conv3.weight", ())
    if len(inner) != 4 or len(last) != 4 or inner[0] == inner[1]:
        return None
    width = last[0] // 4
    for name, (blocks, groups, group_width) in NETWORKS.items():
        if (count_blocks(shapes), inner[0] // inner[1], inner[1]) == (blocks, groups, inner_width(width, group_width)):
            return {"backbone": name, "width": width} | recognize_stem_and_shortcut(shapes)
    return None


def _backbone(name: str) -> Backbone:
    blocks, groups, group_width = NETWORKS[name]
    return Backbone(
        make=functools.partial(
            ResNet, blocks=blocks, is_bottleneck=True, groups=groups, group_width=group_width, name="backbone"
        ),
        blocks=blocks,
        switches=frozenset(("stem", "shortcut", "pool_dilated_shortcuts")),
        tensor_names=lambda config, source: tensor_names(config, source, blocks),
        recognize=recognize,
        first_tensors=(FIRST_TENSOR,),
        references={"smp": {"encoder_name": name}},
        ignored=frozenset(("dilate_conv2",)),
    )


BACKBONES = {name: _backbone(name) for name in NETWORKS}
