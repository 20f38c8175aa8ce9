"""Networks that are not quite a DeepLabV3 with a supported backbone."""

import numpy as np
import pytest
from conftest import tiny_model, tiny_resnet18

from deeplab_jax.config import Config
from deeplab_jax.errors import CheckpointError
from deeplab_jax.labels import CITYSCAPES, VOC
from deeplab_jax.weights import names
from deeplab_jax.weights.convert import to_state_dict, to_variables, variable_shapes
from deeplab_jax.weights.recognize import recognize
from deeplab_jax.weights.state_dicts import StateDict
from deeplab_jax.weights.transfer import _describe

pytestmark = pytest.mark.usefixtures("trace_networks_once")

MODELS = {
    "mmseg": tiny_resnet18(fusion="3x3", aux_head=True, output_stride=8, dilate_conv2=False),
    "torchvision": tiny_resnet18(fusion="1x1+3x3", aux_head=True, output_stride=8),
    "smp": tiny_resnet18(fusion="1x1+3x3", output_stride=8),
}
LABELS = {"mmseg": CITYSCAPES, "torchvision": VOC, "smp": CITYSCAPES}  # what files without a label set are assumed to have
CLASSIFIERS = {
    "mmseg": ("decode_head.conv_seg", "auxiliary_head.conv_seg"),
    "torchvision": ("classifier.4", "aux_classifier.4"),
}
KERNEL = np.ones((4, 4, 1, 1), np.float32)


def make_state(fmt):
    """Return random tensors with the names of a library."""
    model, rng = MODELS[fmt], np.random.default_rng(0)
    shapes = variable_shapes(Config(model=model, labels=LABELS[fmt]))
    return {
        name: names.to_reference(path, rng.random(shapes[path], np.float32), model, fmt)
        for path, name in names.reference_names(shapes, model, fmt).items()
    }


@pytest.fixture(scope="module", params=["mmseg", "torchvision"])
def state(request):
    return request.param, make_state(request.param)


def convert(tensors, meta=None, **settings):
    state = StateDict("x.pth", tensors, meta or {})
    network = recognize(state)
    return network, *to_variables(state, network, **settings)


def with_one_logit(fmt, tensors):
    return {name: x[1:2] if name.startswith(CLASSIFIERS[fmt]) else x for name, x in tensors.items()}


def test_one_logit_becomes_two_classes(state):
    fmt, tensors = state
    network, variables, _ = convert(with_one_logit(fmt, tensors))
    assert (network.num_classes, network.is_sigmoid) == (2, True)
    assert network.config.labels.names == ("background", "foreground")
    kernel, bias = variables["params", "classifier", "kernel"], variables["params", "classifier", "bias"]
    name = CLASSIFIERS[fmt][0]
    # The softmax of (0, x) is the sigmoid of x. mmsegmentation decides at 0.3, where x is -log(7/3).
    assert not kernel[..., 0].any()
    np.testing.assert_array_equal(kernel[0, 0, :, 1], tensors[f"{name}.weight"][1, :, 0, 0])
    shift = {"mmseg": np.float32(0.84729786), "torchvision": 0}[fmt]
    np.testing.assert_array_equal(bias, [0, tensors[f"{name}.bias"][1] + shift])
    auxiliary = variables["params", "aux_classifier", "bias"]
    np.testing.assert_array_equal(auxiliary, [0, tensors[f"{CLASSIFIERS[fmt][1]}.bias"][1]])


@pytest.mark.parametrize(
    ("settings", "threshold"),
    [("", 0.3), (", threshold=None", 0.3), (", threshold=0.5", 0.5), (", threshold=0.75", 0.75), (", threshold=1e-6", 1e-6)],
)
def test_one_logit_is_compared_with_the_threshold_of_the_head(settings, threshold):
    tensors = with_one_logit("mmseg", make_state("mmseg"))
    network, variables, _ = convert(tensors, {"cfg": f"model = dict(decode_head=dict(out_channels=1{settings}))"})
    bias = variables["params", "classifier", "bias"]
    x = np.linspace(-20, 20, 1001)  # logits without their bias
    logit = x + tensors["decode_head.conv_seg.bias"]
    # The second class is the larger logit where mmsegmentation's sigmoid is above the threshold.
    np.testing.assert_array_equal(x + bias[1] > bias[0], 1 / (1 + np.exp(-logit)) > threshold)
    assert f"the sigmoid of x is above {threshold}" in "\n".join(_describe(network, "x.pth"))
    # An export has two logits, so another import finds the same tensors.
    exported = to_state_dict(variables, network.config.model, "mmseg", step=0)
    again = convert(exported, {"CLASSES": ("background", "foreground")})[1]
    for path, value in variables.items():
        np.testing.assert_array_equal(again[path], value)


@pytest.mark.parametrize("threshold", ["0", "1.0", "2", "'x'"])
def test_a_threshold_that_is_no_probability_is_refused(threshold):
    tensors = with_one_logit("mmseg", make_state("mmseg"))
    with pytest.raises(CheckpointError, match=r"^`x\.pth` (has decode_head.threshold=|contains invalid metadata)"):
        convert(tensors, {"cfg": f"model = dict(decode_head=dict(threshold={threshold}))"})


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("crack",), ("background", "crack")),
        (("road", "crack"), ("road", "crack")),
        ((), ("background", "foreground")),
    ],
)
def test_one_logit_keeps_the_names_in_the_file(classes, expected):
    network, _, _ = convert(with_one_logit("mmseg", make_state("mmseg")), {"dataset_meta": {"classes": classes}})
    assert network.config.labels.names == expected


def test_heads_of_other_networks_are_left_out(state):
    fmt, tensors = state
    if fmt == "mmseg":
        other = tensors | {"decode_head.sep_bottleneck.0.depthwise_conv.conv.weight": KERNEL}
        reason = "has the head of a DeepLabV3+ without low-level features"
    else:
        other = {name: x for name, x in tensors.items() if not name.startswith("classifier.0.")}
        reason = "has a head without ASPP"
    network, variables, messages = convert(other)
    assert (network.is_backbone, network.other_head) == (True, reason)
    assert {path[1] for path in variables} == {"backbone"}
    assert any("not part of the backbone" in message for message in messages)


def test_heads_with_other_names_are_left_out():
    backbone = {name: x for name, x in make_state("mmseg").items() if name.startswith("backbone.")}
    # As in pytorch-deeplab-xception.
    network, _, messages = convert(backbone | {"aspp.aspp1.atrous_conv.weight": KERNEL, "decoder.conv1.weight": KERNEL})
    assert network.is_backbone
    assert messages == ["tensors not used: 2 (not part of the backbone: aspp.aspp1.atrous_conv.weight, decoder.conv1.weight)"]


def test_modules_without_kernels_are_not_part_of_the_network(state):
    _, tensors = state
    _, _, messages = convert(tensors | {"criterion.weight": np.ones(19, np.float32)})
    assert "tensors not used: 1 (not part of the network: criterion.weight)" in messages
    images = {name: np.ones((1, 3, 1, 1), np.float32) for name in ("mean", "std")}
    _, _, messages = convert(tensors | images)
    assert "tensors not used: 2 (not part of the network: mean, std)" in messages
    with pytest.raises(CheckpointError, match=r"1 unexpected: refine.weight"):
        convert(tensors | {"refine.weight": KERNEL})


def test_an_auxiliary_head_of_another_form_is_left_out():
    tensors = make_state("mmseg")
    changed = {name.replace("auxiliary_head.", "auxiliary_head.0."): value for name, value in tensors.items()}
    network, variables, messages = convert(changed)
    _, expected, _ = convert(tensors)
    assert not network.config.model.aux_head
    assert variables.keys() == {path for path in expected if not path[1].startswith("aux")}
    assert any("not part of the network: auxiliary_head.0.conv_seg.bias" in message for message in messages)


def test_a_classification_head_is_not_part_of_the_network():
    head = {"classification_head.3.weight": np.ones((2, 64), np.float32), "classification_head.3.bias": np.ones(2, np.float32)}
    _, _, messages = convert(make_state("smp") | head)
    names = "classification_head.3.bias, classification_head.3.weight"
    assert messages == [f"tensors not used: 2 (not part of the network: {names})"]


def test_a_long_list_of_names_is_cut(state):
    _, tensors = state
    with pytest.raises(CheckpointError, match=r"9 unexpected: refine.0.weight, .*, refine.4.weight and 4 more"):
        convert(tensors | {f"refine.{i}.weight": KERNEL for i in range(9)})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("backbone.layer1.0.conv1.weight_fake_quant.scale", "a network prepared for quantization .*"),
        ("backbone.layer1.0.conv.0.conv.weight", "mmsegmentation's MobileNetV2"),
        ("backbone.layer1.0.conv2.fc1.weight", "a ResNeSt"),
        ("encoder.layer1.0.se_module.fc1.weight", "an SE-ResNet"),
        ("layer1.0.conv1.paths.0.conv.weight", "an SK-ResNet"),
        ("body.layer1.0.conv2.conv.weight", "a TResNet"),
        ("stages.0.0.conv1.gain", "a ResNet without normalisation"),
        ("backbone.stage2.0.branches.0.0.conv1.weight", "an HRNet"),
        ("blocks.0.0.conv_dw.weight", "timm's MobileNet or EfficientNet"),
        ("backbone.block1.rep.0.conv1.weight", "an Xception without timm's names"),
        ("blocks.0.stack.conv2.norm.weight", "a pre-activation Xception"),
        ("stages.0.blocks.0.conv1.weight", "a pre-activation ResNet"),
        ("layers.0.blocks.0.attn.qkv.weight", "a Swin Transformer"),
        ("blocks.0.attn.qkv.weight", "a Vision Transformer"),
    ],
)
def test_unsupported_backbones_are_named(name, kind):
    head = {name: x for name, x in make_state("mmseg").items() if name.startswith("decode_head.")}
    with pytest.raises(CheckpointError, match=rf"is a DeepLabV3 for \d+ classes, but its backbone, {kind}, is not supported"):
        convert({name: KERNEL} | head)
    with pytest.raises(CheckpointError, match=f"is not a DeepLabV3 network or a supported backbone, but contains {kind}"):
        convert({name: KERNEL})


def make_residual_network(name="resnet50", **changes):
    """Return the tensors of a network of width 8, as timm names them, with some of them added or changed."""
    model, ones = tiny_model(backbone=name), np.ones
    shapes = {path: x for path, x in variable_shapes(Config(model=model)).items() if path[1] == "backbone"}
    tensors = {
        names.strip_backbone_prefix(theirs): names.to_reference(path, ones(shapes[path], np.float32), model, "timm")
        for path, theirs in names.reference_names(shapes, model, "timm").items()
    }
    return tensors | {name: ones(shape, np.float32) for name, shape in changes.items()}


@pytest.mark.parametrize("name", ["weight_orig", "weight_g", "parametrizations.weight.original0"])
def test_pruned_and_parametrized_networks_are_named(state, name):
    _, tensors = state
    parts = {each.replace("weight", name) if value.ndim == 4 else each: value for each, value in tensors.items()}
    with pytest.raises(CheckpointError, match=r"its backbone, a pruned or parametrized network"):
        convert(parts)


@pytest.mark.parametrize("backbone", ["resnet50", "resnext50_32x4d", "wide_resnet50_2"])
@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"layer1.0.se.fc1.weight": (2, 32, 1, 1)}, "an SE-ResNet"),
        ({"layer1.0.se.conv.weight": (1, 1, 5)}, "an ECA-ResNet"),
        ({"layer1.0.ca.fc1.weight": (2, 32, 1, 1)}, "a ResNet with CBAM"),
        ({"layer2.0.aa.filt": (16, 1, 3, 3)}, "a ResNet with anti-aliasing"),  # as saved by older versions of timm
        ({"layer2.0.conv2.conv_offset.weight": (18, 8, 3, 3)}, "a ResNet with deformable convolutions"),
        ({"layer3.1.extra.weight": (8, 8, 1, 1)}, r"a ResNet with layers of another network \(layer3\.1\.extra\.weight\)"),
        ({"layer3.1.conv1.bias": (8,)}, r"a ResNet with layers of another network \(layer3\.1\.conv1\.bias\)"),
    ],
)
def test_residual_networks_with_other_layers_are_named(backbone, changes, kind):
    with pytest.raises(CheckpointError, match=f"is not a DeepLabV3 network or a supported backbone, but contains {kind}"):
        convert(make_residual_network(backbone, **changes))


def test_group_norm_and_other_stems_are_named():
    tensors = make_residual_network()
    without_statistics = {name: x for name, x in tensors.items() if "running" not in name}
    with pytest.raises(CheckpointError, match="contains a ResNet without BatchNorm's statistics, such as one with GroupNorm"):
        convert(without_statistics)
    stem = {"conv1.0.weight": (3, 3, 3, 3), "conv1.3.weight": (4, 3, 3, 3), "conv1.6.weight": (8, 4, 3, 3)}
    with pytest.raises(CheckpointError, match=r"has a stem with 3, 4, 8 channels, .*, not 4, 4, 8\."):
        convert(make_residual_network(**stem))


@pytest.mark.parametrize(
    ("name", "difference"),
    [
        ("hf:timm/resnetblur50.bt_in1k", r"resnetblur50 network, .* filters features before each stride"),
        ("w/resnetaa50d.sw_in12k/model.safetensors", r"resnetaa50d network, .* filters features before each stride"),
        ("resnet50_caffe-788b5fa3.pth", r"caffe network, .* has its strides in other convolutions"),
    ],
)
def test_other_residual_networks_with_the_same_tensors_are_refused_by_name(name, difference):
    with pytest.raises(CheckpointError, match=f"is named like a {difference} and is not supported"):
        recognize(StateDict(name, make_residual_network(), {}))


@pytest.mark.parametrize("folder", ["/home/msra/weights", "/data/caffe/new", "C:\\caffe\\new"])
def test_only_the_file_and_its_folder_name_a_network(folder):
    network = recognize(StateDict(f"{folder}/mine.pth", make_residual_network(), {}))
    assert network.config.model.backbone == "resnet50"
    assert network.assumption


@pytest.mark.parametrize(
    ("name", "is_assumed"), [("hf:timm/resnet50d.ra2_in1k", False), ("wide_resnet50_2-9ba9bcbe.pth", False), ("mine.pth", True)]
)
def test_plain_layers_are_assumed_if_the_name_does_not_say_so(name, is_assumed):
    assert bool(recognize(StateDict(name, make_residual_network(), {})).assumption) == is_assumed


def test_unsupported_residual_networks_are_described():
    shapes = {"conv1": (64, 128), "conv2": (128, 128), "conv3": (256, 128)}
    wide = {
        f"layer{i}.0.{name}.weight": np.ones((*shape, 1, 1), np.float32) for i in (1, 2, 3, 4) for name, shape in shapes.items()
    }
    with pytest.raises(CheckpointError, match=r"a Wide ResNet with \(1, 1, 1, 1\) blocks per stage"):
        convert(wide)
    grouped = {name: x[:, :8] if "conv2" in name else x for name, x in wide.items()}
    with pytest.raises(CheckpointError, match="16 groups of 8 channels"):
        convert(grouped)
    narrow = {f"layer{i}.0.conv{j}.weight": KERNEL for i in (1, 2, 3, 4) for j in (1, 2)} | {
        f"layer{i}.0.conv3.weight": np.ones((16, 4, 1, 1), np.float32) for i in (1, 2, 3, 4)
    }
    with pytest.raises(CheckpointError, match=r"has a backbone with \(1, 1, 1, 1\) bottlenecks per stage"):
        convert(narrow)
