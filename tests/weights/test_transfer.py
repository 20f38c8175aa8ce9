"""Test import, export and fine-tuning with narrow networks.

test_logits_parity.py compares names and logits with the references.
"""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import tiny_config, tiny_resnet18
from safetensors.numpy import load_file, save_file

import deeplab_jax as dl
from deeplab_jax.checkpoints.store import Checkpoints, restore_variables, save_model, stored_config
from deeplab_jax.config import Config, EvalConfig
from deeplab_jax.errors import CheckpointError, ConfigError
from deeplab_jax.labels import CITYSCAPES, VOC
from deeplab_jax.models import DeepLabV3
from deeplab_jax.training.optimizer import make_optimizer
from deeplab_jax.training.state import init_state, to_trees
from deeplab_jax.weights import convert, names, transfer
from deeplab_jax.weights.sources import SOURCES

pytestmark = pytest.mark.usefixtures("trace_networks_once")

MMSEG = tiny_resnet18(stem="3x3", fusion="3x3", dilate_conv2=False, aux_head=True, output_stride=8)
TORCHVISION = tiny_resnet18(fusion="1x1+3x3", aux_head=True, output_stride=8, dropout=0.5)


def random_variables(config):
    rng = np.random.default_rng(0)
    return {path: rng.uniform(0.2, 1, shape).astype(np.float32) for path, shape in convert.variable_shapes(config).items()}


def make_state_dict(variables, model, fmt):
    """Return the state dict that a reference network of the same width would save."""
    name_of = names.reference_names(variables, model, fmt)
    state = {name: names.to_reference(path, variables[path], model, fmt) for path, name in name_of.items()}
    return state | {"backbone.layer1.0.bn1.num_batches_tracked": np.array(3)}


@pytest.fixture(scope="module")
def mmseg():
    variables = random_variables(Config(model=MMSEG))
    return variables, make_state_dict(variables, MMSEG, "mmseg")


def import_state(tmp_path, state, name="weights.safetensors", **arguments):
    """Import a state dict, and return the output folder and the printed text."""
    save_file(state, tmp_path / name)
    lines, out = [], str(tmp_path / f"imported-{len(list(tmp_path.iterdir()))}")
    transfer.import_weights(str(tmp_path / name), out, say=lines.append, **arguments)
    return out, "\n".join(lines)


def assert_same(folder, variables):
    stored = names.flatten(restore_variables(folder))
    assert stored.keys() == variables.keys()
    for path, value in variables.items():
        np.testing.assert_array_equal(stored[path], value)


def test_an_imported_network_can_predict(mmseg, tmp_path):
    variables, state = mmseg
    folder, lines = import_state(tmp_path, state)
    assert_same(folder, variables)
    assert "model.stem = '3x3'  (from the tensors)" in lines
    assert "tensors not used: 1 (num_batches_tracked" in lines
    segmenter = dl.load(folder)
    assert segmenter.label_set == CITYSCAPES
    assert segmenter.config.model == MMSEG
    assert segmenter.predict(np.zeros((1, 3, 33, 47), np.uint8)).shape == (1, 33, 47)


def test_torchvision_networks_get_the_classes_of_voc(tmp_path):
    config = Config(model=TORCHVISION, labels=VOC)
    variables = random_variables(config)
    folder, _ = import_state(tmp_path, make_state_dict(variables, TORCHVISION, "torchvision"))
    assert_same(folder, variables)
    assert stored_config(folder).labels == VOC
    assert stored_config(folder).model == TORCHVISION


def test_import_export_import_is_bit_identical_and_keeps_the_config(mmseg, tmp_path):
    variables, state = mmseg
    overrides = {"multi_grid": (0.5, 2.0), "output_stride": 16, "align_corners": True}
    folder, _ = import_state(tmp_path, state, model=overrides)
    lines = []
    transfer.export_weights(folder, str(tmp_path / "out.safetensors"), fmt="mmseg", say=lines.append)
    assert "'multi_grid': (1, 4)" in lines[-1]
    exported = load_file(tmp_path / "out.safetensors")
    assert exported.keys() - state.keys() == {name for name in exported if name.endswith("num_batches_tracked")} - state.keys()
    again, _ = import_state(tmp_path, exported)
    assert_same(again, variables)
    transfer.import_weights(str(tmp_path / "out.safetensors"), str(tmp_path / "again"), say=lines.append)
    assert_same(str(tmp_path / "again"), variables)
    assert stored_config(str(tmp_path / "again")).model == stored_config(folder).model


def test_every_tensor_is_used_or_the_import_fails(mmseg, tmp_path):
    _, state = mmseg
    broken = dict(state)
    del broken["backbone.layer2.0.bn1.bias"]
    broken["decode_head.extra.weight"] = np.ones(3, np.float32)
    broken["backbone.layer3.1.conv2.weight"] = np.ones((32, 32, 1, 1), np.float32)
    with pytest.raises(CheckpointError) as error:
        import_state(tmp_path, broken)
    message = str(error.value)
    assert "1 missing: backbone.layer2.0.bn1.bias" in message
    assert "1 unexpected: decode_head.extra.weight" in message
    assert "1 with a wrong shape: backbone.layer3.1.conv2.weight (32, 32, 1, 1) instead of (32, 32, 3, 3)" in message
    assert "\n" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("decode_head.conv_seg.weight", "decode_head.conv_seg.weight is missing"),
        (
            "backbone.layer1.0.conv1.weight",
            "is a DeepLabV3 for 19 classes, but its backbone is not supported .its tensors include backbone.layer1.0.bn1.bias",
        ),
    ],
)
def test_other_architectures_and_sources_are_refused(mmseg, tmp_path, drop, message):
    state = {name: value for name, value in mmseg[1].items() if name != drop}
    with pytest.raises(CheckpointError, match=message):
        import_state(tmp_path, state)
    with pytest.raises(CheckpointError, match="not a DeepLabV3 network or a supported backbone"):
        import_state(tmp_path, {"features.0.weight": np.ones(1, np.float32)})
    with pytest.raises(CheckpointError, match="Use --from=mmseg"):
        import_state(tmp_path, mmseg[1], fmt="torchvision")


def test_a_different_number_of_classes_needs_a_label_set_or_ignore_head(mmseg, tmp_path):
    variables, state = mmseg
    with pytest.raises(CheckpointError, match=r"safetensors` has 19 classes, but the label set 'voc' has 21\. Use --labels"):
        import_state(tmp_path, state, labels=VOC)
    folder, lines = import_state(tmp_path, state, labels=VOC, ignore_head=True)
    assert "tensors not used: 4 (the segmentation classifiers" in lines
    assert_same(folder, {path: x for path, x in variables.items() if path[1] not in names.HEADS})
    for given in (folder, f"{folder}/"):
        with pytest.raises(CheckpointError) as caught:
            dl.load(given)
        assert str(caught.value).startswith(f"`checkpoint` (={str(given)!r}) has no classifier. Train one with")
        assert str(caught.value).endswith(f"pretrained={given}.")


def test_an_empty_source_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="The source of the weights is empty"):
        transfer.import_weights("", str(tmp_path / "out"))


def test_an_existing_folder_an_invalid_field_and_invalid_values_are_refused(mmseg, tmp_path):
    folder, _ = import_state(tmp_path, mmseg[1])
    with pytest.raises(CheckpointError, match="already contains checkpoints"):
        transfer.import_weights(str(tmp_path / "weights.safetensors"), folder)
    with pytest.raises(ConfigError, match=r"model\.output_stride"):
        import_state(tmp_path, mmseg[1], model={"output_stride": 12})
    (tmp_path / "file").write_text("precious")
    with pytest.raises(CheckpointError, match="cannot be written"):
        transfer.import_weights(str(tmp_path / "weights.safetensors"), str(tmp_path / "file"), say=lambda _: None)
    # An interrupted import leaves an empty checkpoints folder, which does not count as a checkpoint.
    (tmp_path / "half" / "checkpoints").mkdir(parents=True)
    transfer.import_weights(str(tmp_path / "weights.safetensors"), str(tmp_path / "half"), say=lambda _: None)
    with pytest.raises(CheckpointError, match="NaN, infinity or a variance"):
        import_state(tmp_path, mmseg[1] | {"backbone.layer1.0.bn1.bias": np.full(8, np.nan, np.float32)})
    with pytest.raises(CheckpointError, match="variance below 0"):
        import_state(tmp_path, mmseg[1] | {"backbone.layer1.0.bn1.running_var": np.full(8, -1, np.float32)})


@pytest.mark.parametrize(
    ("stem", "shortcut", "fmt"),
    [("7x7", "1x1", "timm"), ("3x3", "1x1", "timm"), ("3x3", "avgpool+1x1", "timm"), ("3x3", "avgpool+1x1", "mmseg")],
)
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_training_can_start_from_a_backbone(tmp_path, stem, shortcut, fmt, prefix):
    config = Config(model=tiny_resnet18(stem=stem, shortcut=shortcut))
    backbone = {path: x for path, x in random_variables(config).items() if path[1] == "backbone"}
    state = {prefix + name.removeprefix("backbone."): x for name, x in make_state_dict(backbone, config.model, fmt).items()}
    state["fc.weight"] = np.ones((1000, 64), np.float32)
    save_file(state, tmp_path / "resnet18.safetensors")
    config.model.pretrained = str(tmp_path / "resnet18.safetensors")
    lines = []
    loaded = names.flatten(transfer.pretrained_variables(config, lines.append))
    assert loaded.keys() == backbone.keys()
    assert all(np.array_equal(loaded[path], x) for path, x in backbone.items())
    assert lines[1] == "these parts start with random weights: aspp, classifier"
    others = {"stem": {"7x7": "3x3"}.get(stem, "7x7"), "shortcut": {"1x1": "avgpool+1x1"}.get(shortcut, "1x1")}
    for field, other in others.items():
        with pytest.raises(ConfigError, match=rf"`model\.{field}`"):
            transfer.pretrained_variables(Config(model=dataclasses.replace(config.model, **{field: other})))
    with pytest.raises(ConfigError, match=r"^`model\.stem` .*, `model\.shortcut` .*\. Set these fields"):
        transfer.pretrained_variables(Config(model=dataclasses.replace(config.model, **others)))


def test_classifiers_are_only_loaded_for_the_same_classes(mmseg, tmp_path):
    variables, state = mmseg
    save_file(state, tmp_path / "x.safetensors")
    lines = []
    config = Config(
        model=tiny_resnet18(
            stem="3x3", fusion="3x3", align_corners=True, aux_head=True, pretrained=str(tmp_path / "x.safetensors")
        )
    )
    assert names.flatten(transfer.pretrained_variables(config, lines.append)).keys() == variables.keys()
    assert "model.align_corners is True in the config, but these weights were trained with False" in lines
    folder, _ = import_state(tmp_path, state)
    config.labels, config.model.pretrained = VOC, folder
    loaded = names.flatten(transfer.pretrained_variables(config, lines.append)).keys()
    assert loaded == {path for path in variables if path[1] not in names.HEADS}
    assert "these parts start with random weights: aux_classifier, classifier" in lines
    config.model.aspp_width = 16  # a backbone has no ASPP, so `aspp_width` does not matter
    backbone, _ = import_state(
        tmp_path, {name: x for name, x in state.items() if name.startswith("backbone.")}, "b.safetensors"
    )
    config.model.pretrained = backbone
    assert {path[1] for path in names.flatten(transfer.pretrained_variables(config, lines.append))} == {"backbone"}
    config.model.pretrained = folder
    with pytest.raises(ConfigError, match=r"`model\.aspp_width` \(=16\) is 8 in"):
        transfer.pretrained_variables(config)


def test_a_decoder_starts_random_if_the_weights_have_none(mmseg, tmp_path):
    variables, state = mmseg
    folder, _ = import_state(tmp_path, state)
    lines = []
    # The decoder is as wide as the ASPP, so the classifier would fit, but it was trained on different features.
    config = Config(model=dataclasses.replace(MMSEG, decoder_width=8, pretrained=folder))
    loaded = names.flatten(transfer.pretrained_variables(config, lines.append))
    assert loaded.keys() == {path for path in variables if path[1] != "classifier"}
    assert "these parts start with random weights: classifier, decoder" in lines


def test_fields_that_make_no_difference_are_not_compared(mmseg, tmp_path):
    variables, state = mmseg
    folder, _ = import_state(tmp_path, state)
    lines = []
    # Neither field changes the network, because there is no decoder and ResNet-18's last stage has only two blocks.
    fields = {"low_level_width": 32, "multi_grid": (0.5, 1.0), "pretrained": folder}
    config = Config(model=dataclasses.replace(MMSEG, **fields))
    assert names.flatten(transfer.pretrained_variables(config, lines.append)).keys() == variables.keys()
    assert lines == [f"{len(variables)} of {len(variables)} variables were loaded from {folder}"]


@pytest.mark.parametrize(("decoder_width", "low_level_width"), [(8, 4), (16, 8)])
def test_a_classifier_is_only_loaded_with_the_same_decoder(tmp_path, decoder_width, low_level_width):
    config = Config(model=tiny_resnet18(decoder_width=8, low_level_width=8))
    variables = random_variables(config)
    save_model(str(tmp_path / "stored"), config, names.unflatten(variables))
    config.model.pretrained = str(tmp_path / "stored")
    assert names.flatten(transfer.pretrained_variables(config, lambda _: None)).keys() == variables.keys()
    config.model.decoder_width, config.model.low_level_width = decoder_width, low_level_width
    loaded = names.flatten(transfer.pretrained_variables(config, lambda _: None))
    assert {path[1] for path in loaded} == {"backbone", "aspp"}


def test_weights_without_a_training_state_cannot_be_resumed(mmseg, tmp_path):
    variables, _ = mmseg
    config = tiny_config(model=MMSEG)
    save_model(str(tmp_path / "imported"), config, names.unflatten(variables))
    optimizer = make_optimizer(config.optim, 1)
    state = jax.eval_shape(lambda: init_state(DeepLabV3(MMSEG, 19), optimizer, 0))
    with (
        Checkpoints(str(tmp_path / "imported"), config) as checkpoints,
        pytest.raises(CheckpointError, match="contains only weights, so it cannot be resumed"),
    ):
        checkpoints.restore(to_trees(state))


def test_networks_that_a_reference_does_not_have_are_refused(mmseg, tmp_path):
    folder, _ = import_state(tmp_path, mmseg[1])
    with pytest.raises(CheckpointError, match=r"does not support model\.backbone='resnet18', only 'resnet50' or 'resnet101'"):
        transfer.export_weights(folder, str(tmp_path / "x.safetensors"), fmt="torchvision")


def test_the_evaluation_settings_of_the_reference_are_imported(mmseg, tmp_path):
    folder, lines = import_state(tmp_path, mmseg[1], name="deeplabv3_r18-d8_769x769_80k_cityscapes_2020.safetensors")
    config = stored_config(folder)
    assert config.model.align_corners
    assert config.eval == EvalConfig(window=(769, 769), window_stride=(513, 513))
    assert "eval.window = (769, 769)  (the file name)" in lines


def test_a_source_can_have_a_prefix_and_defaults_that_depend_on_overrides(monkeypatch, tmp_path):
    def read_facts(state, model, overrides):
        stride = overrides.get("output_stride", 8)
        if stride == 32:
            raise CheckpointError("was trained at output stride 8 or 16")
        return {"model.output_stride": (8, "usual"), "model.stage3_first_rate": (2 if stride == 8 else 1, "usual")}

    source = dataclasses.replace(SOURCES["torchvision"], backbone_prefix="encoder.", read_facts=read_facts)
    monkeypatch.setitem(SOURCES, "torchvision", source)
    config = Config(model=TORCHVISION)
    variables = random_variables(config)
    name_of = names.reference_names(variables, config.model, "torchvision")
    assert sum(name.startswith("encoder.") for name in name_of.values()) == sum(path[1] == "backbone" for path in variables)
    state = {name: names.to_reference(path, variables[path], TORCHVISION, "torchvision") for path, name in name_of.items()}
    for model, first_rate in (({}, 2), ({"output_stride": 16}, 1)):
        folder, _ = import_state(tmp_path, state, model=model, labels=CITYSCAPES)
        assert_same(folder, variables)
        assert stored_config(folder).model.stage3_first_rate == first_rate
    with pytest.raises(CheckpointError, match=r"`.*weights.safetensors` was trained at output stride 8 or 16"):
        import_state(tmp_path, state, model={"output_stride": 32})
