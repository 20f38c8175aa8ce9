"""Files written by PaddlePaddle: PaddleSeg's networks and PaddleClas's backbones. The files are made without PaddlePaddle."""

import dataclasses
import pickle

import numpy as np
import pytest
from conftest import tiny_config, tiny_resnet18

from deeplab_jax.config import Config, ModelConfig
from deeplab_jax.errors import CheckpointError
from deeplab_jax.labels import CITYSCAPES, VOC
from deeplab_jax.weights import names, state_dicts, transfer
from deeplab_jax.weights.convert import require_exportable, to_state_dict, to_variables, variable_shapes
from deeplab_jax.weights.recognize import recognize
from deeplab_jax.weights.source import StateDict
from deeplab_jax.weights.sources import SOURCES

pytestmark = pytest.mark.usefixtures("trace_networks_once")

V3 = ModelConfig(
    width=8,
    aspp_width=8,
    stem="3x3",
    shortcut="avgpool+1x1",
    pool_dilated_shortcuts=False,
    output_stride=8,
    multi_grid=(1.0,),
    stage3_first_rate=2,
    conv_bias=True,
    mean=(127.5,) * 3,
    std=(127.5,) * 3,
)
PLUS = dataclasses.replace(
    V3, aspp_conv="depthwise+bn+1x1", decoder_width=8, decoder_conv="depthwise+bn+1x1", low_level_width=4
)
PUBLISHED = "deeplabv3p_resnet50_os8_cityscapes_1024x512_80k"


def make_state(model, fmt="paddleseg", labels=CITYSCAPES, parts=("backbone", "aspp", "decoder", "classifier")):
    """Return random tensors with the names of a library."""
    rng = np.random.default_rng(0)
    shapes = variable_shapes(Config(model=model, labels=labels))
    name_of = names.reference_names([path for path in shapes if path[1] in parts], model, fmt)
    return {name: names.to_reference(path, rng.random(shapes[path], np.float32), model, fmt) for path, name in name_of.items()}


@pytest.fixture(scope="module")
def plus():
    return make_state(PLUS)


class NamedTensor:
    """A tensor as paddle.save writes it inside other objects: a call of `tuple` with its name and values."""

    def __init__(self, value):
        self.value = value

    def __reduce__(self):
        return tuple, (("conv2d_0.w_0", self.value),)


def convert(tensors, source="x.pdparams", **overrides):
    state = StateDict(source, tensors, {})
    network = recognize(state, overrides=overrides)
    return network, *to_variables(state, network)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("is_nested", [False, True])
def test_what_paddle_writes_is_read(tmp_path, protocol, is_nested):
    # NumPy stores arrays at protocol 2 as text, with a call of _codecs.encode.
    weights = {"bb_0_0.conv0._conv.weight": np.arange(-128.0, 128.0, dtype=np.float32).reshape(4, 64, 1, 1)}
    weights |= {"fc.bias": np.float32([np.pi, 1e-40])}
    if is_nested:
        tensors = {name: NamedTensor(value) for name, value in weights.items()}
        optimizer = {"conv2d_0.w_0_moment1_0": NamedTensor(np.ones((4, 4), np.float32)), "LR_Scheduler": {"last_epoch": 3}}
        content = {"epoch": 3, "model_state_dict": tensors, "opt": optimizer}
    else:
        content = weights | {"StructuredToParameterName@@": dict.fromkeys(weights, "conv2d_0.w_0")}
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps(content, protocol))
    read = state_dicts.read(str(tmp_path / "x.pdparams")).tensors
    assert read.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(read[name], value)


def test_bfloat16_is_read_from_its_bits(tmp_path):
    # 1.5 is 0 01111111 1000000 in bfloat16.
    content = {"a.weight": np.array([0b0011111111000000], np.uint16), "StructuredToParameterName@@": {"a.weight": "a"}}
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps(content))
    state = state_dicts.read(str(tmp_path / "x.pdparams"))
    assert state.tensors["a.weight"].tolist() == [1.5]
    assert state.notes == ("tensors converted from bfloat16 to float32: 1",)


def test_a_written_file_is_a_pickle_of_arrays(tmp_path, plus):
    state_dicts.write(str(tmp_path / "x.pdparams"), plus, {"ignored": 1})
    written = pickle.loads((tmp_path / "x.pdparams").read_bytes())
    assert written.keys() == plus.keys()
    assert all(np.array_equal(written[name], value) for name, value in plus.items())


@pytest.mark.parametrize("model", [V3, PLUS])
def test_networks_are_recognized_and_every_tensor_is_used(model):
    tensors = make_state(model)
    network, variables, messages = convert(tensors)
    assert (network.fmt, network.num_classes, network.config.model, messages) == ("paddleseg", 19, model, [])
    assert network.assumption == ""  # PaddleSeg has no other networks with these tensors
    assert network.config.labels == CITYSCAPES
    assert variables.keys() == variable_shapes(network.config).keys()
    assert ("params", "aspp", "branch_rate1", "conv", "bias") in variables
    assert ("params", "aspp", "branch_pool", "conv", "bias") not in variables


@pytest.mark.parametrize(
    ("source", "overrides", "expected"),
    [
        ("model.pdparams", {}, (8, (1.0,), 2, False)),
        ("model.pdparams", {"output_stride": 16}, (8, (1.0,), 1, False)),
        (f"/w/{PUBLISHED}/model.pdparams", {}, (8, (1.0, 2.0, 4.0), 2, False)),
        (f"{PUBLISHED}.pdparams", {}, (8, (1.0, 2.0, 4.0), 2, False)),
        (f"C:\\w\\{PUBLISHED}\\model.pdparams", {}, (8, (1.0, 2.0, 4.0), 2, False)),
        ("deeplabv3_resnet101_os16_mine/model.pdparams", {}, (16, (1.0, 2.0, 4.0), 1, False)),
        ("deeplabv3p_resnet101_os8_cityscapes_769x769_80k/model.pdparams", {}, (8, (1.0, 2.0, 4.0), 2, True)),
        (f"{PUBLISHED}/output/iter_1000/model.pdparams", {}, (8, (1.0,), 2, False)),
    ],
)
def test_settings_come_from_names_of_published_folders(plus, source, overrides, expected):
    network = recognize(StateDict(source, plus, {}), overrides=overrides)
    model = network.config.model
    assert (model.output_stride, model.multi_grid, model.stage3_first_rate, model.align_corners) == expected
    assert ("1 2 4" in network.origin["model.multi_grid"]) == (model.multi_grid == (1.0,))


def test_the_folder_of_a_relative_path_counts(plus, tmp_path, monkeypatch):
    (tmp_path / PUBLISHED).mkdir()
    monkeypatch.chdir(tmp_path / PUBLISHED)
    assert recognize(StateDict("model.pdparams", plus, {})).config.model.multi_grid == (1.0, 2.0, 4.0)


def test_networks_for_other_images_have_the_normalization_for_their_channels():
    tensors = make_state(dataclasses.replace(V3, mean=(127.5,) * 4, std=(127.5,) * 4))
    config = recognize(StateDict("x", tensors, {})).config
    assert (config.data.channels, config.model.mean, config.model.std) == (4, (127.5,) * 4, (127.5,) * 4)
    assert "normalised" not in SOURCES["paddleseg"].describe(config)


def test_21_classes_are_those_of_voc():
    assert recognize(StateDict("x", make_state(V3, labels=VOC), {})).config.labels == VOC


@pytest.mark.parametrize(
    ("fmt", "stem", "shortcut"),
    [("paddleseg", "3x3", "avgpool+1x1"), ("paddleclas", "3x3", "avgpool+1x1"), ("paddleclas", "7x7", "1x1")],
)
def test_a_training_can_start_from_imagenet_weights(tmp_path, fmt, stem, shortcut):
    file = str(tmp_path / "ResNet50_vd_ssld_pretrained.pdparams")
    model = ModelConfig(width=8, stem=stem, shortcut=shortcut, pretrained=file)
    classifier = {"fc.weight": np.ones((64, 1000), np.float32), "out.bias": np.ones(1000, np.float32)}
    state = make_state(model, fmt, parts=("backbone",))
    state_dicts.write(file, {name.removeprefix("backbone."): value for name, value in state.items()} | classifier, {})
    lines = []
    loaded = names.flatten(transfer.pretrained_variables(tiny_config(model=model), lines.append))
    assert loaded.keys() == {path for path in variable_shapes(tiny_config(model=model)) if path[1] == "backbone"}
    assert lines[-1] == "these parts start with random weights: aspp, classifier"


def test_backbones_of_other_networks_are_taken(plus):
    backbone = {name: value for name, value in plus.items() if name.startswith("backbone.")}
    for head, reason in (
        ({"head.conv_1._conv.weight": 1, "head.cls.weight": 1}, "has a head without ASPP"),
        ({"head.aspp.x": 1, "head.bot_fine.weight": 1}, "has the head of a different network, which also has head.bot_fine"),
    ):
        network, variables, messages = convert(backbone | {name: np.ones((4, 4, 1, 1), np.float32) for name in head})
        assert (network.is_backbone, network.other_head) == (True, reason)
        assert {path[1] for path in variables} == {"backbone"}
        assert len(messages) == 1


def test_networks_with_the_same_names_are_refused():
    resnet18 = tiny_resnet18(stem="3x3", shortcut="avgpool+1x1")
    basic = {name.removeprefix("backbone."): x for name, x in make_state(resnet18, parts=("backbone",)).items()}
    with pytest.raises(CheckpointError, match=r"has PaddlePaddle's resnet18, whose first shortcut is a convolution"):
        convert(basic | {"bb_0_0.short._conv.weight": np.ones((8, 8, 1, 1), np.float32)})
    bare = {name.removeprefix("backbone."): x for name, x in make_state(V3, parts=("backbone",)).items()}
    assert convert(bare, "ResNet50_vd_pretrained.pdparams")[0].is_backbone
    # The tensors of a ResNet_vc have the same names and shapes.
    for source, is_assumed in (("ResNet50_vd_pretrained.pdparams", False), ("model.pdparams", True)):
        assert ("ResNet_vc" in convert(bare, source)[0].assumption) == is_assumed
    with pytest.raises(CheckpointError, match=r"ResNet50_vc_pretrained\.pdparams` is named like a ResNet50_vc network"):
        convert(bare, "ResNet50_vc_pretrained.pdparams")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # The beginning of the first block: number 0 and parent -1.
        (b"\n\xc6\xb8\x02\x08\0\x10" + b"\xff" * 9 + b"\x01\x1a" + b"x" * 100, "inference model"),
        # A tensor: version, no levels, version, and the length of a description, whose type is 5 (float32).
        (b"\0" * 16 + b"\x08\0\0\0\x08\x05\x10\x20\x10\x03" + b"x" * 100, "inference model"),
        (
            pickle.dumps({"conv2d_0.w_0_velocity_0": np.ones((4, 4), np.float32), "LR_Scheduler": {"last_epoch": 1}}),
            "contains the optimizer state of a PaddlePaddle training",
        ),
        (pickle.dumps({"a.weight": np.ones((4, 4), np.float32)})[:-30], "damaged or truncated"),
        (b"\x80\x04cos\nsystem\nX\x04\0\0\0echo\x85R.", "which can run code"),
    ],
    ids=["pdmodel", "pdiparams", "pdopt", "truncated", "code"],
)
def test_other_files_are_refused_in_one_line(tmp_path, content, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        recognize(state_dicts.read(str(tmp_path / "x")))
    assert "\n" not in str(error.value)


def test_an_exported_network_has_the_names_and_values_of_the_imported_one(plus):
    full = dataclasses.replace(PLUS, width=64, aspp_width=256, decoder_width=256, low_level_width=48)
    require_exportable(full, "paddleseg")
    _, variables, _ = convert(plus)
    exported = {
        name: names.to_reference(path, variables[path], PLUS, "paddleseg")
        for path, name in names.reference_names(variables, PLUS, "paddleseg").items()
    }
    assert exported.keys() == plus.keys()
    assert all(np.array_equal(exported[name], value) for name, value in plus.items())
    assert "paddleseg.models.DeepLabV3P(19, paddleseg.models.ResNet50_vd(output_stride=8, multi_grid=(1, 1, 1))" in SOURCES[
        "paddleseg"
    ].describe(Config(model=full))


def test_only_files_of_the_library_are_written(tmp_path):
    for fmt, suffix in (("paddleseg", ".pth"), ("mmseg", ".pdparams")):
        with pytest.raises(CheckpointError, match=rf"has the suffix '{suffix}'\. {fmt} reads \."):
            transfer.export_weights("runs/none", str(tmp_path / f"x{suffix}"), fmt=fmt)
    with pytest.raises(CheckpointError, match="has no segmentation networks"):
        to_state_dict({}, V3, "paddleclas", 0)
