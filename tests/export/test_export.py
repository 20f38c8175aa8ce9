"""Compare exported files with their checkpoint, at image sizes that the export itself does not check."""

import copy
import dataclasses
import functools
import io
import json
import pickle
import re
import subprocess
import sys
import zipfile

import jax
import jax.export
import numpy as np
import onnx
import pytest
from conftest import random_variables, run_cli, tiny_config, tiny_model

import deeplab_jax as dl
from deeplab_jax import api
from deeplab_jax.config import EvalConfig
from deeplab_jax.errors import CheckpointError, DataError
from deeplab_jax.evaluation import inference
from deeplab_jax.evaluation.inference import evaluation_model
from deeplab_jax.evaluation.pictures import require_images
from deeplab_jax.export import export as run
from deeplab_jax.export import loading, stablehlo
from deeplab_jax.export.folding import fold
from deeplab_jax.models import DeepLabV3
from deeplab_jax.runtime.canvases import Canvas

pytestmark = pytest.mark.usefixtures("quick_export")
SIZES = run.CHECKED_SIZES  # before `quick_export` replaces them

SWITCHES = {
    "smallest": {"backbone": "four_convolutions", "atrous_rates": (6,)},
    "basic": {"decoder_width": 8, "low_level_width": 4},
    "bottleneck": {
        "backbone": "seven_bottlenecks",
        "stem": "3x3",
        "shortcut": "avgpool+1x1",
        "pool_dilated_shortcuts": False,
        "conv_bias": True,
        "output_stride": 8,
        "multi_grid": (0.5, 1.0, 2.0),
        "fusion": "1x1+3x3",
        "align_corners": True,
        "aux_head": True,
        "decoder_width": 8,
    },
}


def make_network(switches):
    """Return a config and random variables."""
    config = tiny_config(model=tiny_model(**switches))
    return config, random_variables(DeepLabV3(config.model, config.labels.num_classes))


@pytest.fixture(scope="module", params=["basic", pytest.param("bottleneck", marks=pytest.mark.slow)])
def segmenter(request):
    config, variables = make_network(SWITCHES[request.param])
    return api.Segmenter(config, variables)


# For tests of what does not depend on the network.
one_network = pytest.mark.parametrize("segmenter", ["smallest"], indirect=True)


@pytest.fixture
def checkpoint(monkeypatch, segmenter):
    """Return a fake checkpoint path that loads the segmenter's network without any files."""
    monkeypatch.setattr(run, "resolve", lambda checkpoint: checkpoint)
    monkeypatch.setattr(run, "stored_config", lambda step: segmenter.config)
    monkeypatch.setattr(run, "restore_model", lambda step, like, given: segmenter.variables)
    return "runs/here/checkpoints/7"


def make_images(n, h, w):
    return np.random.default_rng(n + h).integers(0, 256, (n, 3, h, w), np.uint8)


def test_folding_does_not_change_the_predictions(segmenter):
    model = DeepLabV3(segmenter.config.model, segmenter.config.labels.num_classes)
    x = jax.numpy.asarray(np.random.default_rng(0).normal(size=(1, 33, 40, 3)), np.float32)
    apply = jax.jit(lambda variables: model.apply(variables, x, False).logits)
    parameters = fold(segmenter.variables, evaluation_model(segmenter.config))
    assert list(parameters) == ["params"]
    expected = apply(segmenter.variables)
    np.testing.assert_allclose(apply(parameters), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("form", ["stablehlo", "onnx"])
@pytest.mark.parametrize(
    ("segmenter", "output"),
    [("bottleneck", "logits"), ("basic", "labels")],
    indirect=["segmenter"],
)
def test_an_exported_file_gives_the_logits_or_labels_of_the_checkpoint(
    segmenter, output, checkpoint, tmp_path, monkeypatch, capsys, form
):
    path = tmp_path / "exported"
    arguments = ("export", "--checkpoint", checkpoint, "--out", path, "--format", form, "--output", output)
    assert run_cli(monkeypatch, capsys, *arguments)[0] == 0
    exported = dl.load_exported(str(path)) if form == "stablehlo" else run._load_onnx(path.read_bytes())
    for size in ((1, 33, 65), (3, 48, 40), (1, 257, 50)):  # the last image is larger than the canvas
        expected, actual = segmenter.logits(make_images(*size)), exported(make_images(*size))
        if output == "logits":
            assert np.linalg.norm(actual - expected) < 1e-4 * np.linalg.norm(expected)
        else:
            assert actual.dtype == np.uint8
            assert np.mean(actual == expected.argmax(1)) >= 0.9999


@pytest.mark.slow
@pytest.mark.parametrize(
    "switches",
    [
        {"backbone": "mobilenetv3_large", "multi_grid": (1.0, 1.0, 1.0), "decoder_width": 8},
        pytest.param({"backbone": "resnext50_32x4d", "aux_head": True}, marks=pytest.mark.long),
        {
            "aspp_conv": "depthwise+bn+relu+1x1",
            "fusion": "1x1+depthwise+1x1",
            "decoder_width": 8,
            "decoder_conv": "depthwise+bn+1x1",
        },
        {"backbone": "efficientnet_lite0", "decoder_width": 8},
        pytest.param({"backbone": "xception41", "decoder_width": 8}, marks=pytest.mark.long),
        {"backbone": "mobilenetv2_vainf", "output_stride": 8},
    ],
    ids=lambda switches: switches.get("backbone", "separable"),
)
def test_other_networks_are_exported_in_both_formats(switches):
    config, variables = make_network(switches)
    params, expected = (
        fold(variables, evaluation_model(config)),
        api.Segmenter(config, variables).logits(make_images(1, 71, 50)),
    )
    for make, load in ((stablehlo.serialize, loading.load), (run._make_onnx, run._load_onnx)):
        for size in (None, (71, 50)):
            actual = load(make(evaluation_model(config), params, "logits", {}, size=size))(make_images(1, 71, 50))
            assert np.linalg.norm(actual - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.slow
def test_images_of_many_sizes_need_one_program_on_a_cpu(segmenter):
    network = evaluation_model(segmenter.config)
    canvases = [Canvas((64, 96), False), Canvas((64, 64), False)]
    file = stablehlo.serialize(network, fold(segmenter.variables, network), "labels", {}, canvases=canvases)
    exported = loading.load(file)
    for size in ((1, 40, 60), (2, 64, 33), (1, 55, 64)):
        images = make_images(*size)
        assert np.mean(exported(images) == segmenter.predict(images)) >= 0.9999
    assert list(exported._programs._programs) == [loading.canvas_name((64, 64))]
    assert exported._find_canvas((20, 64)) is None  # the canvas would have more than twice the pixels
    with zipfile.ZipFile(io.BytesIO(file)) as parts:
        program = jax.export.deserialize(bytearray(parts.read(loading.canvas_name((64, 96)))))
    assert program.platforms == ("cpu",)


def test_programs_for_other_platforms_have_plain_convolutions(segmenter):
    network = evaluation_model(segmenter.config)
    file = stablehlo.serialize(network, fold(segmenter.variables, network), "labels", {}, size=(64, 96))
    with zipfile.ZipFile(io.BytesIO(file)) as parts:
        plain, fast = (
            jax.export.deserialize(bytearray(parts.read(name))).mlir_module() for name in (loading.PROGRAM, loading.FIXED)
        )
    names = [[key.key for key in path] for path, _ in jax.tree.leaves_with_path(segmenter.variables["params"])]
    kernels = sum(name[-1] == "kernel" and not name[0].startswith("aux") for name in names)
    assert plain.count("stablehlo.convolution") == kernels * len(stablehlo.PLATFORMS)  # one branch for each platform
    assert fast.count("stablehlo.convolution") < kernels


@one_network
def test_a_file_of_the_first_version_is_read(segmenter):
    network = evaluation_model(segmenter.config)
    compute = functools.partial(inference.logits, segmenter.variables, model=network, protocol=EvalConfig())
    program = jax.export.export(jax.jit(lambda images: compute(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)))(
        jax.ShapeDtypeStruct((1, 3, 32, 64), np.uint8)
    )
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("metadata.json", "{}")
        file.writestr("program.bin", bytes(program.serialize()))
    images = make_images(1, 32, 64)
    expected = segmenter.logits(images)
    actual = loading.load(content.getvalue())(images)
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
@one_network
def test_a_loaded_file_can_be_pickled_copied_and_hashed_after_its_use(segmenter):
    network = evaluation_model(segmenter.config)
    exported = loading.load(
        stablehlo.serialize(network, fold(segmenter.variables, network), "logits", {}, canvases=[Canvas((32, 64), False)])
    )
    images = make_images(1, 32, 64), make_images(1, 33, 65)  # on a canvas, and without one
    expected = [exported(each) for each in images]
    for same in (pickle.loads(pickle.dumps(exported)), copy.deepcopy(exported)):
        for result, logits in zip(map(same, images), expected, strict=True):
            np.testing.assert_array_equal(result, logits)
            result[:] = 0  # results can be changed
        assert len({exported, same, exported}) == 2
    assert repr(exported) == "Exported(metadata={}, shape=(n, 3, h, w))"  # without the programs and the weights


@one_network
def test_a_file_contains_its_metadata(segmenter, checkpoint, tmp_path, monkeypatch):
    import onnxruntime

    config = dataclasses.replace(segmenter.config, data=dataclasses.replace(segmenter.config.data, value_range=(0, 4095)))
    monkeypatch.setattr(run, "stored_config", lambda step: config)
    run.export(checkpoint, str(tmp_path / "a.dl"), "stablehlo", "labels", say=lambda line: None)
    run.export(checkpoint, str(tmp_path / "a.onnx"), "onnx", "labels", say=lambda line: None)
    metadata = dl.load_exported(str(tmp_path / "a.dl")).metadata
    assert metadata["names"] == list(segmenter.config.labels.names)
    assert metadata["colors"][0] == [128, 64, 128]
    assert metadata["checkpoint"] == "7"
    assert metadata["value_range"] == [0, 4095]
    onnx_metadata = onnxruntime.InferenceSession(tmp_path / "a.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(onnx_metadata["names"]) == metadata["names"]
    assert json.loads(onnx_metadata["mean"]) == metadata["mean"]


@one_network
def test_a_file_with_different_logits_is_not_written(segmenter, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "fold", lambda *arguments: jax.tree.map(lambda leaf: 1.1 * leaf, fold(*arguments)))
    with pytest.raises(CheckpointError, match="was not written, because its logits would differ"):
        run.export(checkpoint, str(tmp_path / "a.onnx"), "onnx", "logits", say=lambda line: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@one_network
def test_a_file_is_compared_at_every_size(segmenter):
    def compute(images):
        return segmenter.logits(images) * (1.1 if images.shape == (2, 3, 64, 100) else 1.0)

    differences = run._measure_differences(compute, segmenter, "logits", SIZES)
    np.testing.assert_allclose(differences, [0.0, 0.1, 0.0], atol=1e-6)


@one_network
def test_settings_that_are_not_part_of_the_file_are_reported(segmenter, checkpoint, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(segmenter.config, "eval", EvalConfig(flip=True))
    run.export(checkpoint, str(tmp_path / "a.onnx"), "onnx", "labels", say=lines.append)
    assert "eval.flip" in lines[1]


@pytest.mark.slow
@one_network
def test_an_exported_file_runs_without_the_code_of_the_model(segmenter, checkpoint, tmp_path):
    run.export(checkpoint, str(tmp_path / "a.dl"), "stablehlo", "labels", say=lambda line: None)
    code = f"""
import sys
for name in ("flax", "tensorflow", "deeplab_jax.models", "deeplab_jax.config"): sys.modules[name] = None
import numpy as np, deeplab_jax as dl
print(dl.load_exported({str(tmp_path / "a.dl")!r})(np.zeros((2, 3, 20, 30), np.uint8)).shape)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "(2, 20, 30)", result.stderr


@pytest.mark.parametrize(
    ("form", "opset"),
    [pytest.param("stablehlo", None, marks=pytest.mark.slow), ("onnx", 11), ("onnx", 13), ("onnx", 21)],
)
def test_a_file_for_a_fixed_size_gives_the_logits_of_the_checkpoint(segmenter, checkpoint, tmp_path, form, opset):
    path, lines = tmp_path / "fixed", []
    run.export(checkpoint, str(path), form, "logits", lines.append, size=(33, 65), opset=opset)
    assert lines[-1].endswith("It maps uint8 [1, 3, 33, 65] to logits.")
    loaded = dl.load_exported(path) if form == "stablehlo" else run._load_onnx(path.read_bytes())
    images = make_images(1, 33, 65)
    expected = segmenter.logits(images)
    np.testing.assert_allclose(loaded(images), expected, atol=1e-4 * np.abs(expected).max())
    if form == "stablehlo":
        for others in (make_images(2, 33, 65), make_images(1, 48, 65)):
            with pytest.raises(DataError, match=r"this file takes uint8 \[1, 3, 33, 65\]\. Resize them"):
                loaded(others)
    if form == "onnx":
        model = onnx.load(path)
        assert model.opset_import[0].version == opset
        assert not {"Shape", "Slice"} & {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("segmenter", ["basic"], indirect=True)
@pytest.mark.parametrize("opset", [11, 14, 21])
def test_older_and_newer_operator_sets_take_any_size(segmenter, checkpoint, tmp_path, opset):
    run.export(checkpoint, str(tmp_path / "a.onnx"), "onnx", "labels", lambda line: None, opset=opset)
    assert onnx.load(tmp_path / "a.onnx").opset_import[0].version == opset


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format", "onnx", "--opset", "9"], r"`--opset` \(=9\) is not supported\. Use 11 to 21\."),
        (["--format", "stablehlo", "--opset", "13"], r"`--opset` \(=13\) is only for --format onnx\."),
        (["--format", "onnx", "--size", "0", "64"], r"`--size` \(=\(0, 64\)\) cannot be used\."),
        (["--format", "tflite"], r"`--format` \(='tflite'\) is not supported\. Use one of stablehlo, onnx\."),
    ],
)
def test_impossible_settings_are_refused(tmp_path, monkeypatch, capsys, flags, message):
    code, output = run_cli(monkeypatch, capsys, "export", "--checkpoint", "run", "--out", tmp_path / "a", *flags)
    assert code == 2
    assert re.match(f"error: {message}", output)


def test_a_new_format_needs_only_its_entry(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(run.FORMATS, "mine", (lambda: b"", lambda content: []))
    _, output = run_cli(monkeypatch, capsys, "export", "--checkpoint", tmp_path / "none", "--out", "a", "--format", "mine")
    assert output.startswith(f"error: `checkpoint` (='{tmp_path / 'none'}') does not exist.")


def test_a_file_that_is_not_an_export_is_reported(tmp_path):
    (tmp_path / "a.dl").write_text("nothing")
    for path in (tmp_path / "a.dl", tmp_path / "none"):
        with pytest.raises(DataError, match="cannot be loaded"):
            loading.load_exported(str(path))


def test_images_with_a_wrong_dtype_are_refused():
    with pytest.raises(DataError, match=r"`images` \(=float32 \[1, 3, 4, 4\]\)"):
        require_images(np.zeros((1, 3, 4, 4), np.float32), 3)
