"""Folders as Hugging Face's libraries write them: weights in one or several files, with settings next to them."""

import json
import pickle
import re

import numpy as np
import pytest
from conftest import tiny_config, tiny_model, tiny_resnet18
from safetensors.numpy import save_file
from test_other_networks import MODELS, make_residual_network, make_state

from deeplab_jax.checkpoints.paths import resolve
from deeplab_jax.checkpoints.store import stored_config
from deeplab_jax.config import Config, ModelConfig
from deeplab_jax.errors import CheckpointError
from deeplab_jax.weights import names, state_dicts, transfer
from deeplab_jax.weights.convert import variable_shapes
from deeplab_jax.weights.recognize import recognize

pytestmark = pytest.mark.usefixtures("trace_networks_once")

TENSORS = {name: np.full((2, i + 1), i, np.float32) for i, name in enumerate(("a.weight", "b.weight", "c.weight"))}
SMP = {"_model_class": "DeepLabV3", "encoder_name": "resnet18", "encoder_output_stride": 8}


def write_folder(folder, tensors, **settings):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    for name, content in settings.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def write_shards(folder, index=None, suffix="safetensors"):
    """Write a.weight to a first file, and the others to a second one."""
    first, rest = dict(list(TENSORS.items())[:1]), dict(list(TENSORS.items())[1:])
    places = {}
    for i, tensors in enumerate((first, rest)):
        name = f"part-{i}.{suffix}"
        if suffix == "bin":
            (folder / name).write_bytes(pickle.dumps(tensors))
        else:
            save_file(tensors | {"other": np.zeros(1, np.float32)}, folder / name)
        places |= dict.fromkeys(tensors, name)
    stem = "pytorch_model.bin" if suffix == "bin" else "model.safetensors"
    content = {"metadata": {"total_size": 0}, "weight_map": places} if index is None else index
    (folder / f"{stem}.index.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def assert_same(read):
    assert read.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        np.testing.assert_array_equal(read[name], value)


def test_a_folder_is_read_with_its_settings(tmp_path):
    folder = write_folder(tmp_path / "net", TENSORS, config={"a": 1}, preprocessor_config={"size": 3})
    state = state_dicts.read(str(folder))
    assert_same(state.tensors)
    assert (state.config, state.preprocessing, state.source) == ({"a": 1}, {"size": 3}, str(folder))


def test_settings_are_optional_and_belong_to_the_folder(tmp_path):
    folder = write_folder(tmp_path / "net", TENSORS)
    assert state_dicts.read(str(folder)).config == {}
    write_folder(folder, TENSORS, config={"a": 1})
    assert state_dicts.read(str(folder / "model.safetensors")).config == {}


def test_safetensors_are_preferred_and_pickles_are_read(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(TENSORS))
    assert_same(state_dicts.read(str(tmp_path)).tensors)
    save_file({"b.weight": np.ones(1, np.float32)}, tmp_path / "model.safetensors")
    assert state_dicts.read(str(tmp_path)).tensors.keys() == {"b.weight"}


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_several_files_are_read_as_one(tmp_path, suffix):
    assert_same(state_dicts.read(str(write_shards(tmp_path, suffix=suffix))).tensors)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "has a model.safetensors.index.json that cannot be read (Expecting"),
        ({}, "has a damaged model.safetensors.index.json, which lists no weights files"),
        ({"weight_map": {}}, "does not contain weights with names"),
        ({"weight_map": {"a": 3}}, "has a damaged model.safetensors.index.json"),
        ({"weight_map": {"a": "../x.safetensors"}}, "has a damaged model.safetensors.index.json"),
        ({"weight_map": {"a": "x\n.safetensors"}}, "has a damaged model.safetensors.index.json"),
        ({"weight_map": {"a\x1b": "part-0.safetensors"}}, "has a damaged model.safetensors.index.json"),
        ({"weight_map": {"a": "gone.safetensors"}}, "lacks gone.safetensors, which model.safetensors.index.json lists"),
        ({"weight_map": {"b.weight": "part-0.safetensors"}}, "has a damaged part-0.safetensors ("),
    ],
)
def test_a_damaged_index_is_a_one_line_error(tmp_path, index, message):
    with pytest.raises(CheckpointError, match=re.escape(message)) as error:
        state_dicts.read(str(write_shards(tmp_path, index)))
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_part_is_named(tmp_path):
    write_shards(tmp_path)
    (tmp_path / "part-1.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(CheckpointError, match=r"has a damaged part-1\.safetensors \(.*\)\. Download it again"):
        state_dicts.read(str(tmp_path))


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe{", b"[" * 100_000, b"\0" * 10])
def test_a_damaged_config_is_a_one_line_error(tmp_path, content):
    (write_folder(tmp_path / "net", TENSORS) / "config.json").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"has a config\.json that cannot be read \(.*\)\. Download or save it again"
    ) as error:
        state_dicts.read(str(tmp_path / "net"))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_a_config_that_is_a_list_is_a_one_line_error(tmp_path):
    write_folder(tmp_path / "net", TENSORS, config=[1])
    with pytest.raises(CheckpointError, match="that is not a JSON object"):
        state_dicts.read(str(tmp_path / "net"))


def test_other_commands_say_what_the_folder_is(tmp_path):
    folder = write_folder(tmp_path / "net", TENSORS, config={})
    with pytest.raises(CheckpointError, match=r"is a folder with weights, for `deeplab-jax weights import .*net --out DIR`"):
        resolve(str(folder))


def test_a_folder_without_known_weights_is_described(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tf_model.h5").write_text("")
    with pytest.raises(CheckpointError, match=r"contains weights files.*tf_model\.h5"):
        transfer.import_weights(str(tmp_path), str(tmp_path / "out"))


def import_folder(folder, out):
    lines = []
    transfer.import_weights(str(folder), str(out), say=lines.append)
    return stored_config(str(out)), "\n".join(lines)


def test_a_whole_network_is_imported_from_a_folder(tmp_path):
    folder = write_folder(tmp_path / "net", make_state("smp"), config=SMP | {"decoder_aspp_dropout": 0.25})
    config, text = import_folder(folder, tmp_path / "imported")
    assert (config.model.dropout, config.model.output_stride) == (0.25, 8)
    assert "dropout = 0.25  (config.json)" in text
    # The result is a checkpoint, also with a weights file inside.
    save_file(TENSORS, tmp_path / "imported" / "model.safetensors")
    assert resolve(str(tmp_path / "imported")).parent.parent == tmp_path / "imported"
    with pytest.raises(CheckpointError, match="is a checkpoint"):
        transfer.import_weights(str(tmp_path / "imported"), str(tmp_path / "again"))


def test_a_file_in_a_folder_is_read_alone_and_says_so(tmp_path):
    folder = write_folder(tmp_path / "net", make_state("smp"), config=SMP | {"decoder_aspp_dropout": 0.25})
    config, text = import_folder(folder / "model.safetensors", tmp_path / "imported")
    assert config.model.dropout == 0.5
    assert "the settings in config.json next to" in text


def test_a_training_starts_from_a_folder(tmp_path):
    model = MODELS["smp"]
    folder = write_folder(tmp_path / "net", make_state("smp"), config=SMP)
    lines = []
    config = tiny_config(model=tiny_resnet18(fusion="1x1+3x3", output_stride=8, pretrained=str(folder)))
    variables = names.flatten(transfer.pretrained_variables(config, lines.append))
    assert ("params", "aspp", "fuse", "conv", "kernel") in variables
    assert model.fusion == config.model.fusion
    assert f"variables were loaded from {folder}" in lines[0]


def test_a_config_names_a_network_that_its_tensors_do_not_show(tmp_path):
    # timm's efficientnet_lite0 and tf_efficientnet_lite0 have the same tensors, but pad images differently.
    model = tiny_model(backbone="efficientnet_lite0_symmetric", width=8)
    shapes = {path: shape for path, shape in variable_shapes(Config(model=model)).items() if path[1] == "backbone"}
    tensors = {
        names.strip_backbone_prefix(name): names.to_reference(path, np.ones(shapes[path], np.float32), model, "timm")
        for path, name in names.reference_names(shapes, model, "timm").items()
    }
    for i, (config, backbone) in enumerate(
        (
            ({"architecture": "efficientnet_lite0"}, model.backbone),
            ({"architecture": "tf_efficientnet_lite0"}, "efficientnet_lite0"),
            ({"encoder_name": "tu-efficientnet_lite0"}, model.backbone),  # segmentation_models.pytorch's
        )
    ):
        folder = write_folder(tmp_path / str(i), tensors, config=config)
        network = recognize(state_dicts.read(str(folder)))
        assert (network.config.model.backbone, network.assumption) == (backbone, "")


def test_a_config_of_timm_gives_the_normalization(tmp_path):
    tensors = make_residual_network("resnet50")
    # As in resnet50d.ra4_e3600_r224_in1k, in the two forms of timm's config.json.
    images = {"mean": [0.5, 0.5, 0.25], "std": [0.5, 0.4, 0.2]}
    for i, config in enumerate(({"pretrained_cfg": images}, images)):
        folder = write_folder(tmp_path / str(i), tensors, config={"architecture": "resnet50", **config})
        network = recognize(state_dicts.read(str(folder)))
        assert network.config.model.mean == (127.5, 127.5, 63.75)
        assert network.config.model.std == (127.5, 102.0, 51.0)
        assert network.origin["model.mean"] == "config.json"
    grey = make_residual_network("resnet50", **{"conv1.weight": (8, 1, 7, 7)})
    folder = write_folder(tmp_path / "grey", grey, config={"architecture": "resnet50", **images})
    assert recognize(state_dicts.read(str(folder))).config.model.mean == (106.25,)  # the average, as of the kernels
    for content in (images, {"architecture": "resnet50"}, {"architecture": "resnet50", "pretrained_cfg": None}):
        folder = write_folder(tmp_path / "none", tensors, config=content)
        assert recognize(state_dicts.read(str(folder))).config.model.mean == ModelConfig().mean
    folder = write_folder(tmp_path / "wrong", tensors, config={"architecture": "resnet50", "mean": [0.5]})
    with pytest.raises(CheckpointError, match=r"has mean=\[0\.5\] in its config\.json, not three numbers"):
        recognize(state_dicts.read(str(folder)))
