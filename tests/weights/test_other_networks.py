"""Networks that are not quite a DeepLabV3 with a supported backbone."""

import numpy as np
import pytest
from conftest import tiny_resnet18

from deeplab_jax.config import Config
from deeplab_jax.errors import CheckpointError
from deeplab_jax.labels import CITYSCAPES, VOC
from deeplab_jax.weights import names
from deeplab_jax.weights.convert import to_variables, variable_shapes
from deeplab_jax.weights.recognize import recognize
from deeplab_jax.weights.state_dicts import StateDict

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
    # The softmax of (0, x) is the sigmoid of x.
    assert not kernel[..., 0].any()
    np.testing.assert_array_equal(kernel[0, 0, :, 1], tensors[f"{name}.weight"][1, :, 0, 0])
    np.testing.assert_array_equal(bias, [0, tensors[f"{name}.bias"][1]])


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
    with pytest.raises(CheckpointError, match=r"1 unexpected: refine.weight"):
        convert(tensors | {"refine.weight": KERNEL})


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
        ("backbone.layer1.0.conv.0.conv.weight", "mmsegmentation's MobileNetV2"),
        ("backbone.layer1.0.conv2.fc1.weight", "a ResNeSt"),
        ("encoder.layer1.0.se_module.fc1.weight", "an SE-ResNet"),
        ("backbone.stage2.0.branches.0.0.conv1.weight", "an HRNet"),
        ("blocks.0.0.conv_dw.weight", "timm's MobileNet or EfficientNet"),
        ("backbone.block1.rep.0.conv1.weight", "an Xception"),
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
