"""Name backbones that are not supported, so that an error message can say what a file contains."""

import re

from deeplab_jax.models.backbones.resnet import FIRST_TENSOR, count_blocks, find_other_tensor, has_group_norm
from deeplab_jax.models.stages import Shapes

# Maps each network to the start of a tensor name that only this network has, in one of its published implementations.
_PATTERNS = {
    "the optimizer state of a PaddlePaddle training, whose weights are in the .pdparams file": (
        r"\w+_(velocity|moment[12]?|beta[12]_pow_acc)_\d+$"
    ),
    "a pruned or parametrized network (call torch.nn.utils.prune.remove or parametrize.remove_parametrizations, and save it)": (
        r"(.+\.)?(weight_orig|weight_[gv]|parametrizations\.weight\..+)$"
    ),
    "a network prepared for quantization (save the weights before it is prepared)": (
        r"(.+\.)?(weight_fake_quant|activation_post_process)\."
    ),
    "mmsegmentation's MobileNetV2": r"layer1\.0\.conv\.0\.conv\.",
    "a MobileNetV3-Small": r"11\.block\.2\.fc1\.|layer11\.depthwise_conv\.|layer1\.depthwise_conv\.",
    "timm's MobileNet or EfficientNet": r"blocks\.0\.0\.(conv_dw|conv_pw)\.|conv_stem\.weight",
    "an EfficientNet": r"_blocks\.0\._|1\.0\.block\.0\.0\.weight",
    "a TResNet": r"body\.layer1\.0\.",
    "an SK-ResNet": r"layer1\.0\.conv[12]\.paths\.",
    "a ResNeSt": r"layer1\.0\.conv2\.(fc1|conv)\.",
    "a Res2Net": r"layer1\.0\.convs\.",
    "an ECA-ResNet": r"layer[12]\.0\.(se\.conv|eca\.)",
    "an SE-ResNet": r"layer1\.0\.se(_module)?\.",
    "a ResNet with CBAM": r"layer1\.0\.(cbam|ca|sa)\.",
    "a ResNet with anti-aliasing": r"layer2\.0\.(aa|conv[123]\.0|downsample\.0)\.filt$",
    "a ResNet with deformable convolutions": r"layer[2-4]\.0\.conv2\.conv_offset\.",
    "a ResNet without normalisation": r"stages\.0\.0\.conv1\.gain$",
    "a pre-activation ResNet": r"stages\.0\.blocks\.0\.conv1\.weight$|block1\.unit01\.",
    "an HRNet": r"stage2\.0\.branches\.",
    "a pre-activation Xception": r"blocks\.0\.stack\.conv2\.norm\.",
    "an Xception without timm's names": r"block1\.(rep|sepconv|conv)|entry_flow\.",
    "a DenseNet": r"denseblock1\.",
    "a RegNet": r"trunk_output\.block1\.|s1\.b1\.conv1\.",
    "a ConvNeXt": r"stages\.0\.(blocks\.)?0\.(gamma|dwconv|conv_dw|depthwise_conv)|downsample_layers\.0\.|1\.0\.layer_scale",
    "a Swin Transformer": r"layers\.0\.blocks\.0\.attn\.|stages\.0\.blocks\.0\.attn\.(w_msa|qkv)|1\.0\.attn\.relative_position",
    "a Mix Transformer (SegFormer)": r"patch_embed1\.|layers\.0\.0\.projection\.|segformer\.",
    "a Vision Transformer": r"(blocks|layers?)\.0\.(attn\.(?!conv|fc)|attention\.)|(cls|class)_token$",
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
    if FIRST_TENSOR not in shapes:
        return ""
    if other := find_other_tensor(shapes):
        return f"a ResNet with layers of another network ({other})"
    if has_group_norm(shapes):
        return "a ResNet without BatchNorm's statistics, such as one with GroupNorm"
    inner, last = shapes.get("layer1.0.conv2.weight", ()), shapes.get("layer1.0.conv3.weight", ())
    if len(inner) == 4 and len(last) == 4:
        blocks, groups = count_blocks(shapes), inner[0] // max(inner[1], 1)
        if groups > 1:
            return f"a ResNeXt with {blocks} blocks per stage and {groups} groups of {inner[1]} channels"
        if last[0] != 4 * inner[0]:
            return f"a Wide ResNet with {blocks} blocks per stage"
    return ""
