"""Xception with timm's tensor names."""

import numpy as np
import pytest
from conftest import tiny_config, tiny_model
from safetensors.numpy import save_file

from deeplab_jax.config import Config
from deeplab_jax.errors import CheckpointError
from deeplab_jax.weights import convert, names, transfer
from deeplab_jax.weights.recognize import recognize
from deeplab_jax.weights.source import StateDict

pytestmark = pytest.mark.usefixtures("trace_networks_once")


def make_state(name, width=8, prefix=""):
    """Return a backbone's random variables, and the state dict with an ImageNet classifier that contains them."""
    model, rng = tiny_model(backbone=name, width=width), np.random.default_rng(0)
    shapes = {path: x for path, x in convert.variable_shapes(Config(model=model)).items() if path[1] == "backbone"}
    variables = {path: rng.uniform(0.2, 1, shape).astype(np.float32) for path, shape in shapes.items()}
    state = {
        prefix + names.strip_backbone_prefix(theirs): names.to_reference(path, variables[path], model, "timm")
        for path, theirs in names.reference_names(shapes, model, "timm").items()
    }
    return variables, state | {f"{prefix}head.fc.{each}": np.ones((3, 4), np.float32) for each in ("weight", "bias")}


@pytest.mark.parametrize(("name", "width"), [("xception41", 2), ("xception41", 64), ("xception65", 8), ("xception71", 6)])
def test_networks_and_widths_are_recognized(name, width):
    network = recognize(StateDict("x.pth", make_state(name, width)[1], {}))
    model = network.config.model
    assert (model.backbone, model.width, network.fmt, network.is_backbone) == (name, width, "timm", True)
    assert (model.mean, model.std) == ((127.5,) * 3, (127.5,) * 3)


def test_the_names_are_those_of_timm():
    """The names are from timm 1.0.31's xception65 and xception71."""
    tensors = set(make_state("xception65")[1])
    assert len(tensors) == 794 - 132  # without the counters of 132 BatchNorm layers
    assert {"stem.0.conv.weight", "stem.1.bn.running_var", "blocks.0.stack.conv1.bn_dw.weight"} <= tensors
    assert {"blocks.0.shortcut.conv.weight", "blocks.19.shortcut.bn.bias", "blocks.20.stack.conv3.conv_pw.weight"} <= tensors
    assert not any(name.startswith(("blocks.3.shortcut", "blocks.20.shortcut", "blocks.21")) for name in tensors)
    assert "blocks.4.shortcut.conv.weight" in make_state("xception71")[1]


@pytest.mark.parametrize("prefix", ["", "module.", "model.backbone."])
def test_training_starts_from_a_file(tmp_path, prefix):
    variables, tensors = make_state("xception41", prefix=prefix)
    save_file(tensors, tmp_path / "x.safetensors")
    lines = []
    model = tiny_model(backbone="xception41", pretrained=str(tmp_path / "x.safetensors"))
    loaded = names.flatten(transfer.pretrained_variables(tiny_config(model=model), lines.append))
    assert loaded.keys() == variables.keys()
    assert all(np.array_equal(loaded[path], x) for path, x in variables.items())
    assert any("these weights were trained with (127.5, 127.5, 127.5)" in line for line in lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.21.stack.conv1.conv_dw.weight": np.ones((8, 1, 3, 3), np.float32)}, "has an Xception with 22 blocks"),
        ({"blocks.3.stack.conv3.conv_pw.weight": np.ones((8, 8, 1, 1), np.float32)}, "has an Xception with 21 blocks"),
        ({"blocks.20.stack.conv3.conv_pw.weight": np.ones((0, 8, 1, 1), np.float32)}, "has an Xception with 21 blocks"),
    ],
    ids=["depth", "channels", "empty"],
)
def test_other_networks_with_these_names_are_refused(change, message):
    with pytest.raises(CheckpointError, match=f"{message}, which is not supported. Use weights of xception41, "):
        recognize(StateDict("x.pth", make_state("xception65")[1] | change, {}))
