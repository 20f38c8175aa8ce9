"""Tests for the MobileNetV2 networks of Hugging Face's transformers, with narrow ones."""

import dataclasses
import json
import re

import numpy as np
import pytest
from conftest import tiny_config
from safetensors.numpy import load_file, save_file

from deeplab_jax.checkpoints.store import restore_variables, stored_config
from deeplab_jax.config import Config, ModelConfig
from deeplab_jax.errors import CheckpointError
from deeplab_jax.labels import VOC, LabelSet
from deeplab_jax.models.backbones import BACKBONES
from deeplab_jax.weights import convert, names, transfer
from deeplab_jax.weights.recognize import recognize
from deeplab_jax.weights.source import StateDict
from deeplab_jax.weights.sources.huggingface import read_notes

pytestmark = pytest.mark.usefixtures("trace_networks_once")

MODEL = ModelConfig(backbone="mobilenetv2_tf", width=18, atrous_rates=(), aspp_width=256, fusion="1x1")
VOC_LABELS = {str(i): {"tvmonitor": "tv", "diningtable": "dining table"}.get(name, name) for i, name in enumerate(VOC.names)}
CONFIG = {"model_type": "mobilenet_v2", "depth_multiplier": 0.28125, "output_stride": 16, "id2label": VOC_LABELS}
PREPROCESSING = {
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 513},
}


def make_tensors(classes=21, model=MODEL):
    labels = VOC if classes == 21 else LabelSet("x", tuple(map(str, range(classes))), VOC.colors[:classes])
    rng = np.random.default_rng(0)
    shapes = convert.variable_shapes(Config(model=model, labels=labels))
    tensors = {
        name: names.to_reference(path, rng.random(shapes[path], np.float32), model, "huggingface")
        for path, name in names.reference_names(shapes, model, "huggingface").items()
    }
    unused = BACKBONES["mobilenetv2_tf"].unused(model, "huggingface")
    return tensors | {f"mobilenet_v2.{name}": np.ones(shape, np.float32) for name, shape in unused.items()}


TENSORS = make_tensors()


def recognize_folder(config=None, preprocessing=None, tensors=TENSORS):
    return recognize(
        StateDict("net", tensors, {}, config=CONFIG | (config or {}), preprocessing=PREPROCESSING | (preprocessing or {}))
    )


def write_folder(folder, config=CONFIG, preprocessing=PREPROCESSING):
    folder.mkdir()
    save_file(TENSORS, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return str(folder)


def test_a_folder_is_imported_with_its_settings_and_exported_again(tmp_path):
    lines, out = [], str(tmp_path / "out")
    transfer.import_weights(write_folder(tmp_path / "net", CONFIG | {"classifier_dropout_prob": 0.25}), out, say=lines.append)
    config = stored_config(out)
    model = config.model
    assert (model.backbone, model.width, model.atrous_rates, model.aspp_width, model.fusion) == (
        "mobilenetv2_tf",
        18,
        (),
        256,
        "1x1",
    )
    assert (model.output_stride, model.dropout, model.mean, model.std) == (16, 0.25, (127.5,) * 3, (127.5,) * 3)
    assert config.labels == VOC
    assert "transformers resizes images for these weights (shortest_edge 513)" in "\n".join(lines)
    kernel = names.flatten(restore_variables(out))["params", "aspp", "fuse", "conv", "kernel"]
    # The library's first 256 input channels are those of the image pooling, which are our last ones.
    theirs = TENSORS["segmentation_head.conv_projection.convolution.weight"][:, :, 0, 0].T
    np.testing.assert_array_equal(kernel[0, 0], np.concatenate([theirs[256:], theirs[:256]]))
    transfer.export_weights(out, str(tmp_path / "out.safetensors"), fmt="huggingface", say=lines.append)
    exported = load_file(tmp_path / "out.safetensors")
    assert {name for name in exported if "num_batches" not in name} == TENSORS.keys()
    for name, value in TENSORS.items():
        if "conv_1x1" not in name:  # transformers' segmentation network does not compute with this layer
            np.testing.assert_array_equal(exported[name], value)
    assert "depth_multiplier=0.28125, output_stride=16" in lines[-1]


def test_a_file_without_settings_has_those_of_the_published_network():
    network = recognize(StateDict("net", TENSORS, {}))
    model = network.config.model
    assert (network.fmt, model.output_stride, model.dropout, model.mean, network.config.labels) == (
        "huggingface",
        8,
        0.8,
        (127.5,) * 3,
        VOC,
    )
    assert network.origin["model.output_stride"].startswith("assumed")


def test_a_setting_that_is_left_out_has_the_default_of_transformers():
    config = {name: value for name, value in CONFIG.items() if name != "output_stride"}
    assert recognize(StateDict("net", TENSORS, {}, config=config)).config.model.output_stride == 32


@pytest.mark.parametrize(
    ("preprocessing", "mean", "std"),
    [
        ({}, 127.5, 127.5),
        ({"image_mean": [0.25] * 3, "image_std": 0.75}, 63.75, 191.25),
        ({"image_mean": None, "image_std": None}, 127.5, 127.5),
        ({"rescale_factor": 0.5}, 1, 1),
        ({"do_rescale": False}, 0.5, 0.5),
        ({"do_normalize": False}, 0, 255),
        ({"do_normalize": False, "do_rescale": False}, 0, 1),
    ],
)
def test_the_normalization_is_that_of_the_file(preprocessing, mean, std):
    network = recognize_folder(preprocessing=preprocessing)
    assert (network.config.model.mean, network.config.model.std) == ((mean,) * 3, (std,) * 3)
    is_said = "only rescales" in network.origin["model.mean"]
    assert is_said == (preprocessing.get("do_normalize") is False)


def test_other_classes_become_a_label_set_with_distinct_colors():
    tensors = make_tensors(3)
    labels = recognize_folder({"id2label": {"0": "road", "2": "sky", "1": "car"}}, tensors=tensors).config.labels
    assert labels.names == ("road", "car", "sky")
    assert len(set(labels.colors)) == 3
    assert labels.class_ids == (0, 1, 2)
    shifted = recognize_folder(
        {"id2label": {"0": "road", "1": "car", "2": "sky"}}, {"do_reduce_labels": True}, tensors
    ).config.labels
    assert (shifted.class_ids, shifted.ignored_ids) == ((1, 2, 3), (0, 255))


@pytest.mark.parametrize(
    ("config", "preprocessing", "message"),
    [
        ({"model_type": "segformer"}, {}, "has model_type='segformer' in its config.json, but only 'mobilenet_v2'"),
        ({"tf_padding": False}, {}, "has tf_padding=False in its config.json, but only True is supported"),
        ({"hidden_act": "gelu"}, {}, "has hidden_act='gelu' in its config.json"),
        ({"layer_norm_eps": 1e-5}, {}, "has layer_norm_eps=1e-05 in its config.json"),
        ({"output_stride": 4}, {}, "has output_stride=4 in its config.json, but only 8, 16 or 32 is supported"),
        ({"output_stride": "8"}, {}, "has output_stride='8' in its config.json"),
        ({"id2label": {"0": "a"}}, {}, "has a head for 21 classes, but an id2label for 1 in its config.json"),
        ({"id2label": {"a": "b"}}, {}, "has an id2label in its config.json without a name for each class"),
        ({"id2label": {str(i): "same" for i in range(21)}}, {}, "has an id2label in its config.json that is not a valid"),
        (
            {},
            {"image_mean": [0.5]},
            "has image_mean=[0.5] in its preprocessor_config.json, not a number for each of 3 channels",
        ),
        ({}, {"image_std": ["a"] * 3}, "has image_std=['a', 'a', 'a'] in its preprocessor_config.json"),
        ({}, {"rescale_factor": 0}, "has rescale_factor=0.0 in its preprocessor_config.json"),
        ({}, {"do_flip_channel_order": True}, "was trained on BGR images"),
        ({"classifier_dropout_prob": "a"}, {}, "has invalid settings in its JSON files (could not convert"),
        ({"classifier_dropout_prob": 10**4000}, {}, "has invalid settings in its JSON files (int too large"),
        ({"classifier_dropout_prob": 1.5}, {}, "has invalid settings in its JSON files (`model.dropout` (=1.5)"),
        ({}, {"rescale_factor": 10**4000}, "has invalid settings in its JSON files (int too large"),
        ({}, {"image_mean": [10**4000] * 3}, "has invalid settings in its JSON files (int too large"),
        ({"layer_norm_eps": 10**4000}, {}, "has layer_norm_eps=1000"),
        ({"id2label": {str(i): {"name": i} for i in range(21)}}, {}, "has an id2label in its config.json without a name"),
        ({"id2label": {str(i): f"{i}\n" for i in range(21)}}, {}, "has an id2label in its config.json without a name"),
    ],
)
def test_what_our_network_cannot_express_is_a_one_line_error(config, preprocessing, message):
    with pytest.raises(CheckpointError, match=re.escape(f"`net` {message}")) as error:
        recognize_folder(config, preprocessing)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_network_whose_shortcuts_differ_is_refused():
    # 16 is a depth multiplier of 0.25. Its first block has 8 input and 8 output channels.
    model = dataclasses.replace(MODEL, width=16)
    tensors = make_tensors(model=model)
    with pytest.raises(CheckpointError, match=r"`net` has a MobileNetV2 with depth_multiplier=0\.25, whose shortcuts differ"):
        recognize(StateDict("net", tensors, {}))
    with pytest.raises(CheckpointError, match=r"does not support model\.width=16, only 18"):
        convert.require_exportable(model, "huggingface")


def test_an_imagenet_network_is_a_backbone():
    tensors = {name: value for name, value in TENSORS.items() if name.startswith("mobilenet_v2.")}
    tensors |= {"classifier.weight": np.ones((5, 1280), np.float32), "classifier.bias": np.ones(5, np.float32)}
    network = recognize(StateDict("net", tensors, {}, config={"model_type": "mobilenet_v2"}))
    assert (network.fmt, network.is_backbone, network.config.model.backbone) == ("huggingface", True, "mobilenetv2_tf")
    variables, messages = convert.to_variables(StateDict("net", tensors, {}), network)
    assert all(path[1] == "backbone" for path in variables)
    assert any("classifier" in line for line in messages)


@pytest.mark.parametrize(("config", "preprocessing"), [({"tf_padding": False}, {}), ({}, {"do_flip_channel_order": True})])
def test_the_settings_of_a_backbone_are_checked_too(config, preprocessing):
    tensors = {name: value for name, value in TENSORS.items() if name.startswith("mobilenet_v2.")}
    with pytest.raises(CheckpointError, match=r"only True is supported|BGR images"):
        recognize_folder(config, preprocessing, tensors)


def test_images_with_other_channels_have_the_published_normalization():
    name = "mobilenet_v2.conv_stem.first_conv.convolution.weight"
    tensors = TENSORS | {name: np.repeat(TENSORS[name][:, :1], 4, axis=1)}
    config = recognize(StateDict("net", tensors, {}, config=CONFIG)).config
    assert (config.data.channels, config.model.mean, config.model.std) == (4, (127.5,) * 4, (127.5,) * 4)


def test_sizes_that_are_not_numbers_are_not_printed():
    size = {"a\n": 1, "b": "\x1b"}
    assert read_notes(StateDict("net", {}, {}, preprocessing={"size": size})) == ()
    assert "(width 513)" in read_notes(StateDict("net", {}, {}, preprocessing={"size": size | {"width": 513}}))[0]


def test_a_training_starts_from_a_folder(tmp_path):
    model = dataclasses.replace(MODEL, pretrained=write_folder(tmp_path / "net"))
    lines = []
    loaded = names.flatten(transfer.pretrained_variables(tiny_config(model=model), lines.append))
    assert ("params", "aspp", "branch_pool", "conv", "kernel") in loaded
