"""Name backbones that are not supported, so that an error message can say what a file contains."""

import re

from deeplab_jax.models.backbones.resnet import count_blocks
from deeplab_jax.models.stages import Shapes

# Maps each network to the start of a tensor name that only this network has, in one of its published implementations.
_PATTERNS = {
    "mmsegmentation's MobileNetV2": r"layer1\.0\.conv\.0\.conv\.",
    "a MobileNetV3-Small": r"11\.block\.2\.fc1\.|layer11\.depthwise_conv\.|layer1\.depthwise_conv\.",
    "timm's MobileNet or EfficientNet": r"blocks\.0\.0\.(conv_dw|conv_pw)\.|conv_stem\.weight",
    "an EfficientNet": r"_blocks\.0\._|1\.0\.block\.0\.0\.weight",
    "a ResNeSt": r"layer1\.0\.conv2\.(fc1|conv)\.",
    "a Res2Net": r"layer1\.0\.convs\.",
    "an SE-ResNet": r"layer1\.0\.se(_module)?\.",
    "an HRNet": r"stage2\.0\.branches\.",
    "an Xception": r"blocks\.0\.stack\.|block1\.(rep|sepconv|conv)|entry_flow\.",
    "a DenseNet": r"denseblock1\.",
    "a RegNet": r"trunk_output\.block1\.|s1\.b1\.conv1\.",
    "a ConvNeXt": r"stages\.0\.(blocks\.)?0\.(gamma|dwconv|conv_dw|depthwise_conv)|downsample_layers\.0\.|1\.0\.layer_scale",
    "a Swin Transformer": r"layers\.0\.blocks\.0\.attn\.|stages\.0\.blocks\.0\.attn\.|1\.0\.attn\.relative_position",
    "a Mix Transformer (SegFormer)": r"patch_embed1\.|layers\.0\.0\.projection\.|segformer\.",
    "a Vision Transformer": r"(blocks|layers?)\.0\.(attn|attention)|(cls|class)_token$",
    "a BiSeNet": r"bisenet\.|spatial_path\.",
    "a VGG": r"28\.weight$|17\.weight$",
}


def name_backbone(shapes: Shapes) -> str:
    """Return the name of an unsupported backbone with an article, or "" if it is unknown.

    Args:
      shapes: The tensor shapes, without the backbone prefix.
    """
    for kind, pattern in _PATTERNS.items():
        if any(re.search(rf"(?:^|\.)(?:{pattern})", name) for name in shapes):
            return kind
    inner, last = shapes.get("layer1.0.conv2.weight", ()), shapes.get("layer1.0.conv3.weight", ())
    if len(inner) == 4 and len(last) == 4:
        blocks, groups = count_blocks(shapes), inner[0] // max(inner[1], 1)
        if groups > 1:
            return f"a ResNeXt with {blocks} blocks per stage and {groups} groups of {inner[1]} channels"
        if last[0] != 4 * inner[0]:
            return f"a Wide ResNet with {blocks} blocks per stage"
    return ""
