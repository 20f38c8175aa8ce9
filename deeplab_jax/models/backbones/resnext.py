"""Dilated ResNeXts (Xie et al. 2016, arXiv:1611.05431) and wide ResNets (Zagoruyko and Komodakis 2016, arXiv:1605.07146), NHWC.

They are ResNets whose 3x3 convolutions have several groups, or more channels than the stage. The networks are torchvision's.
"""

import functools
from typing import Any

from deeplab_jax.models.backbones.resnet import (
    FIRST_TENSOR,
    Blocks,
    ResNet,
    choose_variant,
    count_blocks,
    find_other_tensor,
    has_group_norm,
    inner_width,
    recognize_stem_and_shortcut,
    tensor_names,
)
from deeplab_jax.models.stages import Backbone, Shapes

# Maps each network to its number of blocks per stage, number of groups, and number of channels per group in the first stage.
NETWORKS: dict[str, tuple[Blocks, int, int]] = {
    "resnext50_32x4d": ((3, 4, 6, 3), 32, 4),
    "resnext101_32x8d": ((3, 4, 23, 3), 32, 8),
    "resnext101_64x4d": ((3, 4, 23, 3), 64, 4),
    "wide_resnet50_2": ((3, 4, 6, 3), 1, 128),
    "wide_resnet101_2": ((3, 4, 23, 3), 1, 128),
}

# The networks that are also encoders of segmentation_models.pytorch, with the same names.
ENCODERS = ("resnext50_32x4d", "resnext101_32x8d")


def recognize(shapes: Shapes) -> dict[str, Any] | None:
    """Return the `ModelConfig` fields for a ResNeXt or a wide ResNet, or None for any other network.

    The kernel of a block's second convolution shows the number of groups, because each output channel reads only its own group.

    Raises:
      CheckpointError: The stem is not supported.
    """
    inner, last = shapes.get("layer1.0.conv2.weight", ()), shapes.get("layer1.0.conv3.weight", ())
    if len(inner) != 4 or len(last) != 4 or find_other_tensor(shapes) or has_group_norm(shapes):
        return None
    width, actual = last[0] // 4, (count_blocks(shapes), *inner[:2])
    for name, (blocks, groups, group_width) in NETWORKS.items():
        channels = inner_width(width, group_width)
        if actual == (blocks, groups * channels, channels):
            return {"backbone": name, "width": width} | recognize_stem_and_shortcut(shapes, width)
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
        variants=(name,),
        choose_variant=functools.partial(choose_variant, name=name),
        references={"smp": {"encoder_name": name}} if name in ENCODERS else {},
        ignored=frozenset(("dilate_conv2",)),
    )


BACKBONES = {name: _backbone(name) for name in NETWORKS}
