import numpy as np
import pytest

from deeplab_jax.errors import CheckpointError
from deeplab_jax.labels import CITYSCAPES, VOC, distinct_colors
from deeplab_jax.models.backbones.mobilenetv3 import list_blocks
from deeplab_jax.models.backbones.resnet import DEPTHS
from deeplab_jax.models.inverted_residual import scale_channel_count
from deeplab_jax.weights.recognize import recognize
from deeplab_jax.weights.state_dicts import StateDict

pytestmark = pytest.mark.usefixtures("trace_networks_once")

# A configuration as mmcv stores it in checkpoints, with references to norm_cfg replaced by its value.
PUBLISHED = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    backbone=dict(
        type='ResNetV1c', depth=101, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), multi_grid=(1, 2, 4),
        norm_cfg=dict(type='SyncBN', requires_grad=True), contract_dilation=True),
    decode_head=dict(type='ASPPHead', dilations=(1, 6, 12, 18), dropout_ratio=0.2, align_corners=True),
    test_cfg=dict(mode='slide', crop_size=(769, 769), stride=(513, 513)))
img_norm_cfg = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=True)
workflow = [('train', 1)]
lr = undefined_name
"""


def make_backbone(depth, prefix="backbone.", width=4):
    counts, is_bottleneck = DEPTHS[depth]
    last = 3 if is_bottleneck else 2
    names = [f"{prefix}layer{i + 1}.{j}.conv{n}.weight" for i in range(4) for j in range(counts[i]) for n in (1, 2, last)]
    channels = {name: width * (4 if "conv3" in name else 1) for name in names}
    return {name: np.zeros((count, width, 1, 1), np.float32) for name, count in channels.items()}


def make_mmseg(depth="resnet101", classes=19, **meta):
    head = {
        "decode_head.conv_seg.weight": np.zeros((classes, 8, 1, 1), np.float32),
        "decode_head.aspp_modules.0.conv.weight": np.zeros((8, 8, 1, 1), np.float32),
    }
    return make_backbone(depth) | head, meta


def make_mmseg_plus(depth="resnet101"):
    """Return the kernels that tell mmsegmentation's DeepLabV3+ from its DeepLabV3."""
    tensors, _ = make_mmseg(depth)
    return tensors | {
        "decode_head.c1_bottleneck.conv.weight": np.zeros((6, 8, 1, 1), np.float32),
        "decode_head.sep_bottleneck.1.pointwise_conv.conv.weight": np.zeros((8, 8, 1, 1), np.float32),
    }


def recognize_tensors(tensors, meta=None, source="x.pth"):
    return recognize(StateDict(source, tensors, meta or {}))


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("stem", "name"), [("7x7", "conv1.weight"), ("3x3", "stem.0.weight"), ("3x3", "conv1.0.weight")])
def test_resnets_are_recognized_by_their_blocks_and_stems(depth, stem, name):
    network = recognize_tensors(make_backbone(depth, prefix="") | {name: np.zeros((2, 3, 3, 3), np.float32)})
    assert network.is_backbone
    assert (network.config.model.backbone, network.config.model.stem, network.config.model.width) == (depth, stem, 4)


def make_mobilenet(width, **channels):
    """Return the kernels that reveal the width of torchvision's MobileNetV3-Large."""
    last = list_blocks(width)[-1][-1].config
    outputs = {
        "0.0": scale_channel_count(16, width),
        "15.block.0.0": last.expanded,
        "15.block.2.fc1": 8,
        "16.0": 6 * last.features,
    }
    outputs |= channels
    return {f"features.{name}.weight": np.zeros((count, 1, 1, 1), np.float32) for name, count in outputs.items()}


def test_every_width_of_a_mobilenet_is_recognized_by_its_channels():
    for width in range(2, 401, 2):
        model = recognize_tensors(make_mobilenet(width)).config.model
        assert (model.backbone, model.width) == ("mobilenetv3_large", width)


@pytest.mark.parametrize(
    ("tensors", "channels"),
    [
        (make_mobilenet(63), "16, 944 and 960"),  # an odd width
        (make_mobilenet(64, **{"16.0": 480}), "16, 960 and 480"),
        (make_mobilenet(64, **{"0.0": 24}), "24, 960 and 960"),
        (make_mobilenet(64, **{"15.block.0.0": 4}), "16, 4 and 960"),
    ],
)
def test_a_mobilenet_whose_channels_fit_no_width_is_refused(tensors, channels):
    with pytest.raises(CheckpointError, match=rf"x\.pth.* {channels} channels"):
        recognize_tensors(tensors)


@pytest.mark.parametrize(
    "names",
    [
        ["features.0.weight", "classifier.1.weight"],
        # timm's mobilenetv3_large_100
        [
            "conv_stem.weight",
            "bn1.weight",
            "blocks.0.0.conv_dw.weight",
            "conv_head.weight",
            "conv_head.bias",
            "classifier.weight",
        ],
        # torchvision's mobilenet_v3_small
        [
            "features.0.0.weight",
            "features.1.block.0.0.weight",
            "features.12.0.weight",
            "classifier.0.weight",
            "classifier.3.weight",
        ],
    ],
)
def test_unsupported_networks_are_refused(names):
    with pytest.raises(
        CheckpointError, match=r"is not a DeepLabV3 network or a supported backbone.* Use weights for resnet18, "
    ):
        recognize_tensors(dict.fromkeys(names, np.zeros((8, 8, 1, 1), np.float32)))


def test_pooled_shortcuts_are_recognized_by_the_index_of_their_layers():
    pooled = dict.fromkeys(("layer2.0.downsample.1.weight", "layer2.0.downsample.2.weight"), np.zeros(1, np.float32))
    assert recognize_tensors(make_backbone("resnet50", prefix="") | pooled).config.model.shortcut == "avgpool+1x1"
    tensors, _ = make_mmseg("resnet50")
    model = recognize_tensors(tensors | {f"backbone.{name}": value for name, value in pooled.items()}).config.model
    assert (model.shortcut, model.pool_dilated_shortcuts) == ("avgpool+1x1", False)
    assert recognize_tensors(tensors).config.model.pool_dilated_shortcuts


def test_settings_come_from_the_configuration_in_a_checkpoint():
    tensors, _ = make_mmseg()
    network = recognize_tensors(tensors, {"config": PUBLISHED})
    model = network.config.model
    assert model.output_stride == 16
    assert model.multi_grid == (0.5, 1.0, 2.0)
    assert model.atrous_rates == (6, 12, 18)
    assert model.align_corners
    assert model.dropout == 0.2
    assert (model.mean, model.std) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert network.config.eval.window == (769, 769)
    assert network.config.eval.window_stride == (513, 513)
    assert network.origin["model.output_stride"] == "the configuration in the file"
    usual = PUBLISHED.replace("(1, 2, 2, 1)", "(1, 2, 1, 1)").replace("(1, 6, 12, 18)", "(1, 12, 24, 36)")
    usual = usual.replace("(1, 1, 1, 2)", "(1, 1, 2, 4)")
    model = recognize_tensors(tensors, {"cfg": usual.replace("multi_grid=(1, 2, 4),", "")}).config.model
    assert (model.output_stride, model.atrous_rates, model.multi_grid) == (8, (6, 12, 18), (0.5, 1.0, 1.0))


PREPROCESSOR = "data_preprocessor = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], bgr_to_rgb=True)"
VERSION_1 = PUBLISHED.replace("img_norm_cfg = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=True)", PREPROCESSOR)


def test_the_preprocessor_of_the_model_takes_precedence():
    tensors, _ = make_mmseg()
    own = PREPROCESSOR.replace("data_preprocessor = ", "data_preprocessor=").replace("1.0", "7.0")
    for unused in ("", "data_preprocessor = dict(mean=[0.0], std=[1.0])\n", "img_norm_cfg = dict(to_rgb=False)\n"):
        text = unused + PUBLISHED.replace("img_norm_cfg", "unused").replace("    backbone=", f"    {own}, backbone=")
        assert recognize_tensors(tensors, {"cfg": text}).config.model.mean == (7.0, 2.0, 3.0)
    text = f"img_norm_cfg = dict(to_rgb=False)\n{VERSION_1}"
    assert recognize_tensors(tensors, {"cfg": text}).config.model.mean == (1.0, 2.0, 3.0)


def test_a_preprocessor_without_a_mean_does_not_normalize():
    tensors, _ = make_mmseg()
    for text in ("", "mean=None, std=None, "):
        text = VERSION_1.replace("mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], ", text)
        model = recognize_tensors(tensors, {"cfg": text}).config.model
        assert (model.mean, model.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("order", ["", ", bgr_to_rgb=False", ", rgb_to_bgr=True"])
def test_networks_that_see_bgr_are_refused(order):
    tensors, _ = make_mmseg()
    with pytest.raises(CheckpointError, match="was trained with bgr_to_rgb=False, but only True is supported"):
        recognize_tensors(tensors, {"cfg": VERSION_1.replace(", bgr_to_rgb=True", order)})
    # In version 0.x, RGB is the default.
    recognize_tensors(tensors, {"config": PUBLISHED.replace(", to_rgb=True", "")})


def test_a_configuration_that_cannot_be_parsed_is_ignored():
    tensors, _ = make_mmseg()
    for text in ("model = dict(", "model = build()", "", "import os\nos.remove('x')"):
        assert recognize_tensors(tensors, {"config": text}).config.model.output_stride == 8


def test_settings_that_we_do_not_support_are_refused():
    tensors, _ = make_mmseg()
    for change, field in (
        (("contract_dilation=True", "contract_dilation=False"), "contract_dilation"),
        (("dilations=(1, 1, 1, 2)", "dilations=(1, 1, 2, 4)"), "dilations"),
        (("depth=101", "depth=101, style='caffe'"), "style"),
        (("to_rgb=True", "to_rgb=False"), "to_rgb"),
        (("(1, 6, 12, 18)", "(1, 6, 12, 17.5)"), "ASPP dilations"),
    ):
        with pytest.raises(CheckpointError, match=field):
            recognize_tensors(tensors, {"config": PUBLISHED.replace(*change)})


def test_the_settings_of_a_backbone_are_checked_too():
    tensors = make_backbone("resnet50") | {"decode_head.conv_seg.weight": np.zeros((19, 8, 1, 1), np.float32)}
    assert recognize_tensors(tensors, {"config": PUBLISHED}).is_backbone
    for change, field in ((("depth=101", "depth=101, style='caffe'"), "style"), (("to_rgb=True", "to_rgb=False"), "to_rgb")):
        with pytest.raises(CheckpointError, match=f"was trained with {field}="):
            recognize_tensors(tensors, {"config": PUBLISHED.replace(*change)})


@pytest.mark.parametrize(
    "meta",
    [
        {"config": PUBLISHED.replace("[1.0, 2.0, 3.0]", "None")},
        {"config": PUBLISHED.replace("(1, 2, 2, 1)", "None")},
        {"config": PUBLISHED.replace("(1, 2, 4)", "5")},
        {"config": PUBLISHED.replace("(769, 769)", "769")},
        {"dataset_meta": "x"},
        {"CLASSES": 3},
        {"CLASSES": ("a", "b"), "PALETTE": [[1, 2], [3, 4]]},
        {"deeplab_jax": []},
        {"deeplab_jax": {"model": 5}},
        {"deeplab_jax": {"model": {"mean": 5}}},
        {"deeplab_jax": {"model": {"unheard": 5}}},
        {"deeplab_jax": {"labels": {"name": "a"}}},
        {"deeplab_jax": {"eval": None}},
    ],
)
def test_invalid_metadata_is_a_one_line_error(meta):
    tensors, _ = make_mmseg()
    with pytest.raises(CheckpointError, match=r"x\.pth") as error:
        recognize_tensors(tensors, meta)
    assert "\n" not in str(error.value)


def test_the_file_name_is_ignored_if_there_is_a_configuration():
    tensors, _ = make_mmseg()
    plain = PUBLISHED.replace("mode='slide', crop_size=(769, 769), stride=(513, 513)", "mode='whole'")
    plain = plain.replace("multi_grid=(1, 2, 4),", "").replace(", align_corners=True", "")
    config = recognize_tensors(tensors, {"config": plain}, "deeplabv3_r101-d16-mg124_769x769_80k_cityscapes.pth").config
    assert (config.model.multi_grid, config.model.align_corners, config.eval.window) == ((0.5, 1.0, 1.0), False, (0, 0))


def test_tensors_take_precedence_over_the_stored_config():
    tensors, _ = make_mmseg("resnet50")
    record = {"model": {"backbone": "resnet18", "fusion": "1x1", "multi_grid": [1.0, 2.0, 4.0], "pretrained": "/somewhere"}}
    model = recognize_tensors(tensors, {"deeplab_jax": record}).config.model
    assert (model.backbone, model.fusion, model.multi_grid, model.pretrained) == ("resnet50", "3x3", (1.0, 2.0, 4.0), "")


@pytest.mark.parametrize(("depth", "dilated"), [("resnet18", False), ("resnet50", True)])
def test_only_basic_blocks_have_an_undilated_second_convolution(depth, dilated):
    tensors, _ = make_mmseg(depth)
    assert recognize_tensors(tensors).config.model.dilate_conv2 == dilated


def test_settings_come_from_published_file_names():
    tensors, _ = make_mmseg()
    model = recognize_tensors(tensors, source="/w/deeplabv3_r101-d16-mg124_512x1024_80k_cityscapes_20200908.pth").config.model
    assert (model.output_stride, model.multi_grid, model.align_corners) == (16, (0.5, 1.0, 2.0), False)
    model = recognize_tensors(tensors, source="/d16/mine-769x769.pth").config.model
    assert (model.output_stride, model.multi_grid, model.align_corners) == (8, (0.5, 1.0, 1.0), False)


def test_a_decoder_of_mmsegmentation_is_recognized():
    name = "/w/deeplabv3plus_r101-d16-mg124_769x769_80k_cityscapes.pth"
    config = recognize_tensors(make_mmseg_plus(), source=name).config
    model = config.model
    assert (model.decoder_width, model.low_level_width, model.decoder_depth) == (8, 6, 2)
    assert model.aspp_conv == model.decoder_conv == "depthwise+bn+relu+1x1"
    assert (model.dropout, model.decoder_dropout) == (0.0, 0.1)
    assert (model.output_stride, model.multi_grid, model.align_corners) == (16, (0.5, 1.0, 2.0), True)
    assert config.eval.window == (769, 769)
    stored = recognize_tensors(make_mmseg_plus(), {"cfg": PUBLISHED}).config.model
    assert (stored.dropout, stored.decoder_dropout) == (0.0, 0.2)


def test_an_incomplete_decoder_is_reported():
    tensors = make_mmseg_plus()
    del tensors["decode_head.sep_bottleneck.1.pointwise_conv.conv.weight"]
    with pytest.raises(CheckpointError, match=r"sep_bottleneck\.1\.pointwise_conv\.conv\.weight is missing"):
        recognize_tensors(tensors)


def make_smp(aspp="decoder.aspp", **channels):
    """Return the kernels that tell the networks of segmentation_models.pytorch apart."""
    kernels = {f"{aspp}.convs.0.0": 8, "segmentation_head.0": 19} | channels
    head = {f"{name}.weight": np.zeros((count, 8, 1, 1), np.float32) for name, count in kernels.items()}
    return make_backbone("resnet18", prefix="encoder.") | head


PLUS = {"decoder.block2.0.1": 8, "decoder.block1.0": 48, "decoder.aspp.0.convs.1.0.1": 8}


def test_networks_of_segmentation_models_are_recognized():
    network = recognize_tensors(make_smp())
    model = network.config.model
    assert (network.fmt, model.fusion, model.aspp_conv, model.decoder_width) == ("smp", "1x1+3x3", "3x3", 0)
    assert model.align_corners
    plus = recognize_tensors(make_smp("decoder.aspp.0", **PLUS)).config.model
    assert (plus.fusion, plus.aspp_conv, plus.decoder_conv) == ("1x1+depthwise+1x1", "depthwise+1x1", "depthwise+1x1")
    assert (plus.decoder_width, plus.low_level_width, plus.decoder_depth) == (8, 48, 1)
    plain = {name: count for name, count in PLUS.items() if "aspp" not in name}
    assert recognize_tensors(make_smp("decoder.aspp.0", **plain)).config.model.aspp_conv == "3x3"


@pytest.mark.parametrize(
    ("tensors", "overrides", "expected"),
    [
        (make_smp(), {}, (8, (6, 12, 18), 2)),
        (make_smp(), {"output_stride": 16}, (16, (12, 24, 36), 1)),
        (make_smp("decoder.aspp.0", **PLUS), {}, (16, (12, 24, 36), 1)),
        (make_smp("decoder.aspp.0", **PLUS), {"output_stride": 8}, (8, (6, 12, 18), 2)),
        (make_smp(), {"output_stride": 32}, (8, (6, 12, 18), 2)),  # not an output stride of this library
    ],
)
def test_rates_of_segmentation_models_depend_on_the_output_stride(tensors, overrides, expected):
    model = recognize(StateDict("x.pth", tensors, {}), overrides=overrides).config.model
    assert (model.output_stride, model.atrous_rates, model.stage3_first_rate) == expected
    assert model.multi_grid == (1.0,)


def test_other_networks_of_segmentation_models_are_named():
    unet = recognize_tensors(make_smp("decoder.blocks"))
    assert (unet.is_backbone, unet.other_head) == (True, "has a head without ASPP")
    with pytest.raises(CheckpointError, match=r"x\.pth. was saved by an older version of segmentation_models\.pytorch"):
        recognize_tensors(make_smp("decoder.0"))


def test_only_a_matching_source_can_be_requested():
    tensors, _ = make_mmseg()
    backbone = StateDict("x.pth", make_backbone("resnet50", prefix=""), {})
    for source in ("timm", "torchvision", "mmseg"):  # all three use the same tensor names for a backbone
        assert recognize(backbone, source).is_backbone
    with pytest.raises(CheckpointError, match=r"has mmseg tensor names, not timm names\. Use --from=mmseg"):
        recognize(StateDict("x.pth", tensors, {}), "timm")


@pytest.mark.parametrize(
    ("name", "depth", "inner", "per_group"),
    [
        ("resnext50_32x4d", "resnet50", 128, 4),
        ("resnext101_32x8d", "resnet101", 256, 8),
        ("resnext101_64x4d", "resnet101", 256, 4),
        ("wide_resnet50_2", "resnet50", 128, 128),
        ("wide_resnet101_2", "resnet101", 128, 128),
    ],
)
@pytest.mark.parametrize("width", [64, 32])
def test_wide_and_grouped_resnets_are_recognized_by_their_second_convolutions(name, depth, inner, per_group, width):
    inner, per_group = inner * width // 64, per_group * width // 64
    tensors = make_backbone(depth, prefix="", width=width)
    tensors |= {each: np.zeros((inner, per_group, 1, 1), np.float32) for each in tensors if "conv2" in each}
    model = recognize_tensors(tensors).config.model
    assert (model.backbone, model.width) == (name, width)


def test_label_sets_come_from_the_metadata_or_the_source():
    tensors, _ = make_mmseg()
    assert recognize_tensors(tensors).config.labels == CITYSCAPES
    assert recognize_tensors(tensors, {"CLASSES": list(CITYSCAPES.names)}).config.labels == CITYSCAPES
    named = recognize_tensors(
        tensors, {"dataset_meta": {"classes": ("a", "b"), "palette": [[1, 2, 3], [4, 5, 6]]}}
    ).config.labels
    assert (named.names, named.colors) == (("a", "b"), ((1, 2, 3), (4, 5, 6)))
    ade = recognize_tensors(tensors, {"CLASSES": ("a", "b"), "config": "x = dict(reduce_zero_label=True)"}).config.labels
    assert (ade.class_ids, ade.ignored_ids) == ((1, 2), (0, 255))
    # Two classes share a colour, as in some published palettes.
    named = recognize_tensors(tensors, {"CLASSES": ("a", "b"), "PALETTE": [[1, 2, 3], [1, 2, 3]]}).config.labels
    assert named.colors == distinct_colors(2)
    torchvision = make_backbone("resnet50") | {
        "classifier.4.weight": np.zeros((21, 8, 1, 1), np.float32),
        "classifier.0.convs.0.0.weight": np.zeros((8, 8, 1, 1), np.float32),
    }
    assert recognize_tensors(torchvision).config.labels == VOC
