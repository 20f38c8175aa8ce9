"""Networks with other heads are named. The tensor names are those of the libraries' own networks."""

import numpy as np
import pytest
from test_recognize import make_backbone

from deeplab_jax.errors import CheckpointError
from deeplab_jax.weights.heads import describe_head
from deeplab_jax.weights.recognize import recognize
from deeplab_jax.weights.source import StateDict

HEADS = {
    "torchvision": {
        "an LR-ASPP": ("classifier.cbr.0.weight", "classifier.scale.1.weight", "classifier.low_classifier.weight"),
        "an FCN": ("classifier.0.weight", "classifier.4.weight"),
    },
    "mmseg": {
        "an FCN": ("decode_head.conv_seg.weight", "decode_head.convs.0.conv.weight", "decode_head.conv_cat.conv.weight"),
        "a PSPNet": ("decode_head.psp_modules.0.1.conv.weight", "decode_head.bottleneck.conv.weight"),
        "a UPerNet": ("decode_head.psp_modules.0.1.conv.weight", "decode_head.fpn_convs.0.conv.weight"),
        "a SegFormer": ("decode_head.convs.0.conv.weight", "decode_head.fusion_conv.conv.weight"),
        "an LR-ASPP": ("decode_head.convs.conv0.weight", "decode_head.conv_ups.conv_up0.conv.weight"),
        "a semantic FPN": ("decode_head.scale_heads.0.0.conv.weight",),
        "an OCRNet": ("decode_head.0.convs.0.conv.weight", "decode_head.1.object_context_block.bottleneck.conv.weight"),
        "a PointRend": ("decode_head.0.scale_heads.0.0.conv.weight", "decode_head.1.fcs.0.conv.weight"),
        "a DANet": ("decode_head.pam_in_conv.conv.weight",),
        "an APCNet": ("decode_head.acm_modules.0.fusion_conv.conv.weight",),
        "a DMNet": ("decode_head.dcm_modules.0.fusion_conv.conv.weight",),
        "an ANN": ("decode_head.fusion.stages.0.key_project.0.conv.weight",),
        "a non-local network": ("decode_head.convs.0.conv.weight", "decode_head.nl_block.g.conv.weight"),
        "a SETR": ("decode_head.up_convs.0.0.conv.weight",),
    },
    "smp": {
        "a Unet": ("decoder.blocks.0.conv1.0.weight",),
        "a Unet++": ("decoder.blocks.x_0_0.conv1.0.weight",),
        "a MAnet": ("decoder.center.top_conv.weight", "decoder.blocks.0.hl_conv.0.0.weight", "decoder.blocks.4.conv1.0.weight"),
        "a Linknet": ("decoder.blocks.0.block.0.0.weight",),
        "an FPN": ("decoder.p5.weight",),
        "a PSPNet": ("decoder.psp.blocks.0.pool.1.0.weight",),
        "a UPerNet": ("decoder.psp.blocks.0.1.0.weight", "decoder.fpn_lateral_blocks.0.conv_norm_relu.0.weight"),
        "a PAN": ("decoder.fpa.branch1.1.conv.weight",),
        "a SegFormer": ("decoder.mlp_stage.0.linear.weight",),
    },
}
CASES = [(source, kind) for source, heads in HEADS.items() for kind in heads]
PREFIXES = {"torchvision": "backbone.", "mmseg": "backbone.", "smp": "encoder."}


def make_network(source, kind, backbone="resnet50"):
    shapes = dict.fromkeys(HEADS[source][kind], (4, 8, 1, 1)) | (
        {"segmentation_head.0.weight": (4, 8, 1, 1)} if source == "smp" else {}
    )
    head = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    return StateDict("x.pth", make_backbone(backbone, prefix=PREFIXES[source]) | head, {})


@pytest.mark.parametrize(("source", "kind"), CASES)
def test_a_head_is_named_by_its_tensors(source, kind):
    assert describe_head(HEADS[source][kind]) == f"is {kind}"


@pytest.mark.parametrize(("source", "kind"), CASES)
def test_the_backbone_of_another_network_is_taken(source, kind):
    network = recognize(make_network(source, kind))
    assert (network.is_backbone, network.config.model.backbone) == (True, "resnet50")
    assert network.other_head == f"is {kind}"


def test_an_unknown_head_has_no_name():
    assert describe_head(["decode_head.something.weight"]) == "has a head without ASPP"


def test_an_unknown_backbone_is_named_with_the_head():
    tensors = {"backbone.stage2.0.branches.0.0.conv1.weight": np.zeros((4, 4, 3, 3), np.float32)}
    tensors |= {name: np.zeros((4, 8, 1, 1), np.float32) for name in HEADS["mmseg"]["an FCN"]}
    with pytest.raises(CheckpointError, match=r"`x\.pth` is an FCN, and its backbone, an HRNet, is not supported"):
        recognize(StateDict("x.pth", tensors, {}))
