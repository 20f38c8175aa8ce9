"""The weights of VainF/DeepLabV3Plus-Pytorch."""

import re

import numpy as np
import pytest
from conftest import tiny_model
from safetensors.numpy import save_file

from deeplab_jax.config import Config, ModelConfig
from deeplab_jax.errors import CheckpointError
from deeplab_jax.labels import CITYSCAPES, VOC
from deeplab_jax.weights import names, transfer
from deeplab_jax.weights.convert import to_state_dict, to_variables, variable_shapes
from deeplab_jax.weights.recognize import recognize
from deeplab_jax.weights.sources import SOURCES
from deeplab_jax.weights.sources.vainf import SEPARABLE
from deeplab_jax.weights.state_dicts import StateDict

pytestmark = pytest.mark.usefixtures("trace_networks_once")

PLUS = {"fusion": "1x1", "decoder_width": 16, "low_level_width": 6, "decoder_depth": 1}
NETWORKS = {
    "deeplabv3_resnet50": {"backbone": "resnet50", "fusion": "1x1+3x3"},
    "deeplabv3plus_resnet50": {"backbone": "resnet50"} | PLUS,
    "deeplabv3plus_mobilenet": {"backbone": "mobilenetv2_vainf"} | PLUS,
    "separable": {"backbone": "resnet50", "aspp_conv": SEPARABLE, "decoder_conv": SEPARABLE} | PLUS,
}


def make_state(switches, labels=VOC):
    """Return a network's random variables, and the state dict with VainF's names that contains them."""
    model, rng = tiny_model(aspp_width=16, output_stride=16, **switches), np.random.default_rng(0)
    shapes = variable_shapes(Config(model=model, labels=labels))
    variables = {path: rng.random(shape, np.float32) for path, shape in shapes.items()}
    return variables, {
        name: names.to_reference(path, variables[path], model, "vainf")
        for path, name in names.reference_names(shapes, model, "vainf").items()
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_recognized_and_unchanged_by_a_round_trip(name, monkeypatch):
    variables, tensors = make_state(NETWORKS[name])
    network = recognize(StateDict(f"best_{name}_voc_os16.pth", tensors, {}))
    model = network.config.model
    assert (network.fmt, network.num_classes, network.config.labels) == ("vainf", 21, VOC)
    assert {field: getattr(model, field) for field in NETWORKS[name]} == NETWORKS[name]
    assert (model.dropout, model.decoder_dropout, model.align_corners) == (0.1, 0.0, False)
    assert (model.atrous_rates, model.multi_grid) == ((6, 12, 18), (0.5, 1.0, 1.0))
    loaded, _ = to_variables(StateDict("x.pth", tensors, {}), network)
    assert loaded.keys() == variables.keys()
    assert all(np.array_equal(loaded[path], value) for path, value in variables.items())
    monkeypatch.setattr("deeplab_jax.weights.convert.require_exportable", lambda *_: None)  # the network is too narrow
    exported = to_state_dict(loaded, model, "vainf", 0)
    assert all(np.array_equal(exported[name], value) for name, value in tensors.items())


@pytest.mark.parametrize(
    ("file_name", "overrides", "stride"),
    [
        ("best_deeplabv3plus_resnet50_voc_os16.pth", {}, 16),
        ("/w/latest_deeplabv3plus_resnet50_cityscapes_os8.pth", {}, 8),
        ("mine_os8/weights.pth", {}, 16),  # the training script's default
        ("mine_os80.pth", {}, 16),
    ],
)
def test_the_output_stride_comes_from_the_file_name(file_name, overrides, stride):
    state = StateDict(file_name, make_state(NETWORKS["deeplabv3_resnet50"])[1], {})
    assert recognize(state, overrides=overrides).config.model.output_stride == stride


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_mobilenet_without_a_head_is_a_backbone(prefix):
    _, tensors = make_state(NETWORKS["deeplabv3plus_mobilenet"])
    own = {name.removeprefix("backbone."): value for name, value in tensors.items() if name.startswith("backbone.")}
    state = StateDict("x.pth", {f"{prefix}{name}": value for name, value in own.items()}, {})
    network = recognize(state)
    assert (network.fmt, network.is_backbone, network.config.model.backbone) == ("vainf", True, "mobilenetv2_vainf")
    assert len(to_variables(state, network)[0]) == len(own)


@pytest.mark.parametrize(("network", "name"), [("deeplabv3_resnet50", "DeepLabV3"), ("deeplabv3plus_resnet50", "DeepLabV3+")])
def test_the_messages_name_the_network(tmp_path, network, name):
    tensors, lines = make_state(NETWORKS[network])[1], []
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, tmp_path / "x.safetensors")
    transfer.import_weights(str(tmp_path / "x.safetensors"), str(tmp_path / "imported"), say=lines.append)
    assert lines[0] == f"{tmp_path / 'x.safetensors'}: a {name} for 21 classes with vainf tensor names"
    tensors["backbone.layer1.0.se.fc1.weight"] = np.ones((1, 1, 1, 1), np.float32)
    with pytest.raises(CheckpointError, match=rf"is a {re.escape(name)} for 21 classes, but its backbone, an SE-ResNet, "):
        recognize(StateDict("x.pth", tensors, {}))


def test_the_number_of_classes_tells_the_data_set():
    for labels in (VOC, CITYSCAPES):
        assert recognize(StateDict("x.pth", make_state(NETWORKS["deeplabv3_resnet50"], labels)[1], {})).config.labels == labels


def test_low_level_features_come_first():
    variables, tensors = make_state(NETWORKS["deeplabv3plus_resnet50"])
    ours = variables["params", "decoder", "refine1", "conv", "kernel"]
    assert ours.shape == (3, 3, 16 + 6, 16)
    theirs = tensors["classifier.classifier.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(theirs[:, :, :6], ours[:, :, 16:])
    np.testing.assert_array_equal(theirs[:, :, 6:], ours[:, :, :16])
    variables, tensors = make_state(NETWORKS["separable"])
    depthwise = variables["params", "decoder", "refine1", "depthwise", "kernel"]
    np.testing.assert_array_equal(
        tensors["classifier.classifier.0.body.0.weight"][:6, 0], depthwise[:, :, 0, 16:].transpose(2, 0, 1)
    )


def test_the_names_are_those_of_the_repository():
    """The names are from network/_deeplab.py and network/modeling.py."""
    _, tensors = make_state(NETWORKS["deeplabv3_resnet50"])
    assert {"backbone.layer1.0.conv1.weight", "classifier.classifier.0.convs.0.0.weight"} <= tensors.keys()
    assert {"classifier.classifier.0.convs.4.2.bias", "classifier.classifier.0.project.1.weight"} <= tensors.keys()
    assert {"classifier.classifier.1.weight", "classifier.classifier.4.bias"} <= tensors.keys()
    _, tensors = make_state(NETWORKS["deeplabv3plus_mobilenet"])
    assert {"backbone.low_level_features.0.0.weight", "backbone.low_level_features.3.conv.3.bias"} <= tensors.keys()
    assert {"backbone.high_level_features.4.conv.0.0.weight", "backbone.high_level_features.17.conv.2.weight"} <= tensors.keys()
    assert {"classifier.project.0.weight", "classifier.aspp.convs.3.0.weight", "classifier.classifier.3.bias"} <= tensors.keys()
    _, tensors = make_state(NETWORKS["separable"])
    assert {"classifier.aspp.convs.1.0.body.0.weight", "classifier.classifier.0.body.1.weight"} <= tensors.keys()


def test_the_instructions_build_the_network():
    model = ModelConfig("mobilenetv2_vainf", output_stride=8, decoder_width=256, decoder_depth=1)
    assert SOURCES["vainf"].describe(Config(model=model)) == (
        "network.modeling.deeplabv3plus_mobilenet(num_classes=19, output_stride=8, pretrained_backbone=False)"
    )


def test_other_heads_leave_the_backbone():
    tensors = {name: x for name, x in make_state(NETWORKS["deeplabv3plus_mobilenet"])[1].items() if "aspp" not in name}
    network = recognize(StateDict("x.pth", tensors, {}))
    assert (network.is_backbone, network.other_head) == (True, "has a head without ASPP")
    assert network.config.model.backbone == "mobilenetv2_vainf"
    variables, messages = to_variables(StateDict("x.pth", tensors, {}), network)
    assert {path[1] for path in variables} == {"backbone"}
    assert "not part of the backbone: classifier.classifier.0.weight" in "\n".join(messages)


def test_an_incomplete_head_is_reported():
    tensors = make_state(NETWORKS["deeplabv3plus_resnet50"])[1]
    del tensors["classifier.project.0.weight"]
    with pytest.raises(CheckpointError, match=r"classifier\.project\.0\.weight is missing"):
        recognize(StateDict("x.pth", tensors, {}))
