"""Name segmentation networks whose heads are not supported, so that a message can say what a file contains."""

import re
from collections.abc import Collection

# Maps each network to the tensor names that only its head has: in mmsegmentation and Hugging Face's transformers after
# "decode_head.", in segmentation_models.pytorch after "decoder.", and in torchvision after "classifier.". The first that
# fits is used, because some heads contain others.
_PATTERNS = {
    "an LR-ASPP": r"classifier\.(cbr|low_classifier)\.|decode_head\.(conv_ups|aspp_conv)\.",
    "a UPerNet": r"decode_head\.fpn_(convs|bottleneck)\.|decoder\.fpn_lateral_blocks\.",
    "a PSPNet": r"decode_head\.psp_modules\.|decoder\.psp\.",
    "a SegFormer": r"decode_head\.(fusion_conv|linear_c|linear_fuse)\.|decoder\.mlp_stage\.",
    "an OCRNet": r"decode_head\.1\.(object_context_block|bottleneck)\.",
    "a PointRend": r"decode_head\.1\.fcs\.",
    "a K-Net": r"decode_head\.kernel_(generate|update)_head\.",
    "a MaskFormer or Mask2Former": r"decode_head\.(pixel_decoder|transformer_decoder|query_embed)\.",
    "a semantic FPN": r"decode_head\.scale_heads\.",
    "a DANet": r"decode_head\.pam_",
    "an EncNet": r"decode_head\.enc_module\.",
    "a GCNet": r"decode_head\.gc_block\.",
    "a non-local network": r"decode_head\.nl_block\.",
    "a DNLNet": r"decode_head\.dnl_block\.",
    "a CCNet": r"decode_head\.cca\.",
    "an EMANet": r"decode_head\.ema_",
    "an ISANet": r"decode_head\.(global|local)_relation\.",
    "a PSANet": r"decode_head\.attention\.",
    "an APCNet": r"decode_head\.acm_modules\.",
    "a DMNet": r"decode_head\.dcm_modules\.",
    "an ANN": r"decode_head\.(fusion|context)\.stages\.",
    "a SETR": r"decode_head\.up_convs\.",
    "a Segmenter": r"decode_head\.(cls_emb|patch_proj)",
    "a DPT": r"(decode_head|decoder)\.reassemble_blocks\.",
    "a SegNeXt": r"decode_head\.ham",
    "a PIDNet": r"decode_head\.[dip]_head\.",
    "an FCN": r"decode_head\.(convs\.\d+|conv_cat)\.|classifier\.0\.weight",
    "a Unet++": r"decoder\.blocks\.x_\d",
    "a MAnet": r"decoder\.(center\.top_conv|blocks\.\d+\.hl_conv)\.",
    "a Linknet": r"decoder\.blocks\.\d+\.block\.",
    "a Unet": r"decoder\.blocks\.\d+\.conv1\.",
    "an FPN": r"decoder\.p5\.",
    "a PAN": r"decoder\.fpa\.",
}


def describe_head(names: Collection[str]) -> str:
    """Return what a network without a supported head is, such as "is an FCN".

    Args:
      names: The names of its tensors.
    """
    for kind, pattern in _PATTERNS.items():
        if any(re.match(pattern, name) for name in names):
            return f"is {kind}"
    return "has a head without ASPP"
