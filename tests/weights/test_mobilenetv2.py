"""MobileNetV2 with the tensor names of torchvision, timm and Hugging Face."""

import numpy as np
import pytest
from conftest import tiny_config, tiny_model
from safetensors.numpy import save_file

from deeplab_jax.config import Config, ModelConfig
from deeplab_jax.errors import CheckpointError
from deeplab_jax.weights import convert, names, transfer
from deeplab_jax.weights.recognize import recognize
from deeplab_jax.weights.source import StateDict

pytestmark = pytest.mark.usefixtures("trace_networks_once")

# The source, our backbone, the prefix in the source's ImageNet networks and their classifier.
NAMINGS = [
    ("timm", "mobilenetv2", "", "classifier"),
    ("torchvision", "mobilenetv2", "features.", "classifier.1"),
    ("huggingface", "mobilenetv2_tf", "mobilenet_v2.", "classifier"),
]
IDS = [naming[0] for naming in NAMINGS]


def make_state(naming, width=8):
    """Return a backbone's random variables, and the state dict with an ImageNet classifier that contains them."""
    source, name, prefix, classifier = naming
    model, rng = tiny_model(backbone=name, width=width), np.random.default_rng(0)
    shapes = {path: x for path, x in convert.variable_shapes(Config(model=model)).items() if path[1] == "backbone"}
    variables = {path: rng.uniform(0.2, 1, shape).astype(np.float32) for path, shape in shapes.items()}
    layers = names.find_backbone(name).tensor_names(model, source)
    leaves = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    state = {}
    for path, value in variables.items():
        theirs = f"{prefix}{layers['/'.join(path[2:-1])]}.{leaves[path[-1]]}"
        state[theirs] = np.ascontiguousarray(value.transpose(3, 2, 0, 1)) if path[-1] == "kernel" else value
    state |= {f"{classifier}.weight": np.ones((3, 4), np.float32), f"{classifier}.bias": np.ones(3, np.float32)}
    return variables, state


@pytest.mark.parametrize("naming", NAMINGS[:2], ids=IDS[:2])
@pytest.mark.parametrize("width", [8, 48, 64])
def test_names_and_widths_are_recognized(naming, width):
    network = recognize(StateDict("x.pth", make_state(naming, width)[1], {}))
    model = network.config.model
    assert (model.backbone, model.width, network.is_backbone) == (naming[1], width, True)
    assert (model.mean, model.std) == (ModelConfig().mean, ModelConfig().std)


def test_the_names_are_those_of_the_libraries():
    """The names are from torchvision 0.28's mobilenet_v2, timm 1.0.31's mobilenetv2_100 and transformers' MobileNetV2Model."""
    timm, torchvision, huggingface = (set(make_state(naming)[1]) for naming in NAMINGS)
    assert len(timm) == len(torchvision) == 314 - 52  # without the counters of 52 BatchNorm layers
    assert {"conv_stem.weight", "bn1.bias", "blocks.0.0.conv_pw.weight", "blocks.6.0.conv_pwl.weight"} <= timm
    assert {"blocks.3.3.bn3.running_var", "conv_head.weight", "bn2.weight", "classifier.bias"} <= timm
    assert {"features.0.0.weight", "features.1.conv.1.weight", "features.1.conv.2.bias"} <= torchvision
    assert {"features.17.conv.2.weight", "features.17.conv.3.running_var", "features.18.1.bias"} <= torchvision
    assert {f"mobilenet_v2.conv_stem.{layer}.convolution.weight" for layer in ("first_conv", "conv_3x3", "reduce_1x1")} <= (
        huggingface
    )
    assert {f"mobilenet_v2.layer.15.{layer}.normalization.bias" for layer in ("expand_1x1", "reduce_1x1")} <= huggingface


@pytest.mark.parametrize("naming", NAMINGS[:2], ids=IDS[:2])
def test_training_starts_from_a_file(tmp_path, naming):
    variables, tensors = make_state(naming)
    save_file(tensors | {"features.0.1.num_batches_tracked": np.ones(1)}, tmp_path / "x.safetensors")
    model = tiny_model(backbone=naming[1], pretrained=str(tmp_path / "x.safetensors"))
    loaded = names.flatten(transfer.pretrained_variables(tiny_config(model=model), lambda _: None))
    assert loaded.keys() == variables.keys()
    assert all(np.array_equal(loaded[path], x) for path, x in variables.items())


def test_the_images_of_tensorflows_network_have_values_from_minus_1_to_1():
    tensors = {name.removeprefix("mobilenet_v2."): x for name, x in make_state(NAMINGS[2], width=18)[1].items()}
    model = recognize(StateDict("x.pth", tensors, {})).config.model
    assert (model.backbone, model.width) == ("mobilenetv2_tf", 18)
    assert (model.mean, model.std) == ((127.5,) * 3, (127.5,) * 3)


@pytest.mark.parametrize(
    "change",
    [
        {"features.3.conv.2.weight": np.ones((16, 48, 1, 1), np.float32)},
        {"features.18.0.weight": np.ones((1288, 40, 1, 1), np.float32)},
        {"features.9.conv.0.0.weight": None},
    ],
    ids=["channels", "last convolution", "missing block"],
)
def test_other_networks_with_these_names_are_refused(change):
    tensors = {name: x for name, x in (make_state(NAMINGS[1])[1] | change).items() if x is not None}
    with pytest.raises(CheckpointError, match="has a MobileNetV2 with other blocks"):
        recognize(StateDict("x.pth", tensors, {}))


def test_encoders_of_segmentation_models_pytorch_have_torchvisions_names():
    variables, tensors = make_state(NAMINGS[1])
    tensors = {f"encoder.{name}": x for name, x in tensors.items() if name.startswith("features.")}
    state = StateDict("x.pth", tensors | {"segmentation_head.0.weight": np.ones((2, 16, 3, 3), np.float32)}, {})
    network = recognize(state)
    assert (network.fmt, network.other_head) == ("smp", "has a head without ASPP")
    loaded, _ = convert.to_variables(state, network)
    assert all(np.array_equal(loaded[path], x) for path, x in variables.items())
