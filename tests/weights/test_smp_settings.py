"""Tests for the config.json that segmentation_models.pytorch's `save_pretrained` writes."""

import re

import numpy as np
import pytest
from test_recognize import PLUS, make_smp

from deeplab_jax.errors import CheckpointError
from deeplab_jax.weights.recognize import recognize
from deeplab_jax.weights.source import StateDict

pytestmark = pytest.mark.usefixtures("trace_networks_once")

# What version 0.6 writes for DeepLabV3Plus("resnet18", classes=...).
CONFIG = {
    "_model_class": "DeepLabV3Plus",
    "activation": None,
    "aux_params": None,
    "classes": 19,
    "decoder_aspp_dropout": 0.5,
    "decoder_aspp_separable": True,
    "decoder_atrous_rates": [12, 24, 36],
    "decoder_channels": 256,
    "encoder_depth": 5,
    "encoder_name": "resnet18",
    "encoder_output_stride": 16,
    "encoder_weights": None,
    "in_channels": 3,
    "upsampling": 4,
}
V3 = {"_model_class": "DeepLabV3", "decoder_aspp_separable": False, "encoder_output_stride": 8, "upsampling": None}


def recognize_folder(is_plus=True, classes=19, stored_classes=None, **changes):
    tensors = make_smp("decoder.aspp.0", **PLUS) if is_plus else make_smp()
    tensors["segmentation_head.0.weight"] = np.zeros((classes, 8, 1, 1), np.float32)
    config = CONFIG | {"decoder_channels": 8, "classes": stored_classes or classes} | ({} if is_plus else V3) | changes
    return recognize(StateDict("net", tensors, {}, config=config))


@pytest.mark.parametrize(
    ("is_plus", "changes", "expected"),
    [
        (True, {}, (16, (12, 24, 36), 0.5, 1)),
        (False, {}, (8, (6, 12, 18), 0.5, 2)),
        (True, {"encoder_output_stride": 8}, (8, (6, 12, 18), 0.5, 2)),
        (False, {"encoder_output_stride": 16}, (16, (12, 24, 36), 0.5, 1)),
        (True, {"decoder_atrous_rates": [6, 12, 18]}, (16, (6, 12, 18), 0.5, 1)),
        # Rates are stored in units of output stride 16.
        (False, {"decoder_atrous_rates": [2, 4, 8]}, (8, (1, 2, 4), 0.5, 2)),
        (True, {"decoder_aspp_dropout": 0.1}, (16, (12, 24, 36), 0.1, 1)),
        (True, {"encoder_output_stride": 16.0}, (16, (12, 24, 36), 0.5, 1)),
    ],
)
def test_the_settings_come_from_the_file(is_plus, changes, expected):
    network = recognize_folder(is_plus, **changes)
    model = network.config.model
    assert (model.output_stride, model.atrous_rates, model.dropout, model.stage3_first_rate) == expected
    assert all(isinstance(rate, int) for rate in model.atrous_rates)
    assert network.origin["model.output_stride"] == "config.json"


@pytest.mark.parametrize("activation", ["identity", "softmax2d", "softmax", "logsoftmax", "argmax2d"])
def test_activations_that_do_not_matter_are_accepted(activation):
    assert recognize_folder(activation=activation).num_classes == 19


def test_a_sigmoid_of_one_class_is_accepted():
    assert recognize_folder(classes=1, activation="sigmoid").is_sigmoid


def test_a_config_of_another_program_leaves_the_defaults():
    network = recognize(StateDict("net", make_smp(), {}, config={"lr": 0.1, "output_stride": 16}))
    assert network.config.model.output_stride == 8
    assert network.origin["model.output_stride"].startswith("assumed")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_output_stride": 32}, "has encoder_output_stride=32 in its config.json, but only 8 or 16 is supported"),
        ({"encoder_output_stride": "8"}, "has encoder_output_stride='8' in its config.json"),
        ({"encoder_depth": 4}, "has encoder_depth=4 in its config.json, but only 5 is supported"),
        ({"upsampling": 8}, "has upsampling=8 in its config.json, but only 4 is supported"),
        ({"activation": "sigmoid"}, "has activation='sigmoid' for 19 classes in its config.json, which is not supported. Its"),
        ({"activation": "tanh"}, "has activation='tanh' for 19 classes in its config.json, which is not supported. It changes"),
        ({"activation": {"a": 1}}, "which is not supported"),
        ({"decoder_atrous_rates": [5, 10, 15], "encoder_output_stride": 8}, "has decoder_atrous_rates=[5, 10, 15] at output"),
        ({"decoder_atrous_rates": [0, 1, 2]}, "has decoder_atrous_rates=[0, 1, 2] at output stride 16"),
        ({"decoder_atrous_rates": 12}, "has decoder_atrous_rates=12 at output stride 16"),
        ({"decoder_atrous_rates": [10**4000] * 3}, "has decoder_atrous_rates=["),
        ({"decoder_atrous_rates": [10**30, 12, 24]}, "has decoder_atrous_rates=["),
        ({"in_channels": 4}, "has in_channels=4 in its config.json, but tensors for 3"),
        ({"decoder_aspp_dropout": "no"}, "has invalid settings in its JSON files"),
        ({"decoder_aspp_dropout": 10**4000}, "has invalid settings in its JSON files"),
        ({"encoder_output_stride": 10**4000}, "has encoder_output_stride=1000"),
        ({"encoder_name": "x" * 4000}, "has encoder_name='xxx"),
        ({"_model_class": "Unet"}, "has _model_class='Unet' in its config.json, but tensors for 'DeepLabV3Plus'"),
        ({"encoder_name": "resnet50"}, "has encoder_name='resnet50' in its config.json, but tensors for 'resnet18'"),
        ({"stored_classes": 3}, "has classes=3 in its config.json, but tensors for 19"),
        ({"decoder_channels": 256}, "has decoder_channels=256 in its config.json, but tensors for 8"),
    ],
)
def test_what_our_network_cannot_express_is_a_one_line_error(changes, message):
    with pytest.raises(
        CheckpointError, match=re.escape(f"`net` {message}" if message.startswith("has ") else message)
    ) as error:
        recognize_folder(**changes)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_upsampling_of_deeplabv3_is_its_output_stride():
    assert recognize_folder(is_plus=False, upsampling=8).config.model.output_stride == 8
    with pytest.raises(CheckpointError, match=r"has upsampling=4 in its config\.json, but only 8 is supported"):
        recognize_folder(is_plus=False, upsampling=4)
