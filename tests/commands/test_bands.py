"""Train, evaluate, prepare, predict and export networks for images with other numbers of bands, started from RGB weights."""

import numpy as np
import pytest
import tifffile
from conftest import load_tiny_recipe, random_variables, read_pixels, run_cli, tiny_config, train
from PIL import Image
from test_evaluate import evaluate

import deeplab_jax as dl
from deeplab_jax.checkpoints.store import save_model
from deeplab_jax.commands.datasets import open_evaluation_set
from deeplab_jax.errors import CheckpointError, DataError
from deeplab_jax.evaluation.pictures import overlay
from deeplab_jax.models import DeepLabV3
from deeplab_jax.predict.inputs import read_image

pytestmark = [
    pytest.mark.usefixtures("plain_convolutions", "quick_export"),
    pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),  # raised by ml_collections
]


def save_grey(image, path):
    Image.fromarray(image).convert("L").save(path.with_suffix(".png"))
    return path.with_suffix(".png")


def save_rgba(image, path):
    """Save the green band a second time as alpha."""
    Image.fromarray(np.dstack([image, image[..., 1]])).save(path.with_suffix(".png"))
    return path.with_suffix(".png")


def save_five_bands(image, path):
    """Save 12-bit values, in a TIFF with five bands."""
    tifffile.imwrite(
        path.with_suffix(".tif"),
        np.dstack([image, image[..., :2]]).astype(np.uint16) * 16,
        photometric="minisblack",
        planarconfig="contig",
    )
    return path.with_suffix(".tif")


SETS = {
    1: (save_grey, ()),
    4: (save_rgba, ()),
    5: (save_five_bands, (0, 4080)),  # 16 * 255
}


@pytest.fixture(params=SETS)
def bands(request, street_scenes, tmp_path):
    """Return the number of bands, a data set in list files, and the config fields to read it."""
    channels, root = request.param, tmp_path / "set"
    save, value_range = SETS[channels]
    (root / "list").mkdir(parents=True)
    for split in ("train", "val"):
        lines = []
        for image in sorted((street_scenes / "leftImg8bit" / split).rglob("*.png")):
            name = image.name.removesuffix("_leftImg8bit.png")
            written = save(np.asarray(Image.open(image).convert("RGB")), root / f"{split}-{name}")
            label = f"{name}_gtFine_labelIds.png"
            (root / label).write_bytes(next((street_scenes / "gtFine" / split).rglob(label)).read_bytes())
            lines.append(f"{written.name}\t{label}\n")
        (root / "list" / f"{split}.lst").write_text("".join(lines))
    return channels, root, (f"data.channels={channels}", f"data.value_range={value_range}")


@pytest.fixture
def rgb_weights(tmp_path):
    config = load_tiny_recipe("")
    save_model(str(tmp_path / "rgb"), config, random_variables(DeepLabV3(config.model, config.labels.num_classes)))
    return tmp_path / "rgb"


@pytest.mark.slow
@pytest.mark.parametrize("bands", [1, 5, pytest.param(4, marks=pytest.mark.long)], indirect=True)
def test_a_run_on_other_bands_from_start_to_export(bands, rgb_weights, tmp_path, monkeypatch, capsys):
    channels, root, fields = bands
    run = tmp_path / "run"
    steps = ("train.steps=2", "train.eval_every=2", "train.save_every=2", "data.photometric=True", "data.rotation=5.0")
    output = train(root, run, *fields, *steps, f"model.pretrained={rgb_weights}")
    assert f"the first convolution was adapted from 3 channels to {channels}" in output
    assert output.count("data.photometric: saturation and hue are") == 1
    evaluated = evaluate(load_tiny_recipe(root, *fields), run, tmp_path / "val")
    assert "mIoU" in evaluated
    with pytest.raises(CheckpointError, match=rf"`data.channels` \(=3\) is {channels} in"):
        evaluate(load_tiny_recipe(root), run)

    segmenter = dl.load(str(run))
    assert segmenter.config.data.channels == len(segmenter.config.model.mean) == channels
    with pytest.raises(DataError, match=rf"Give images with {channels} channel.* as uint8 \[n, {channels}, h, w\]"):
        segmenter.predict(np.zeros((1, 3, 8, 8), np.uint8))

    path = next(each for each in sorted(root.iterdir()) if each.name.startswith("val-"))
    code, _ = run_cli(monkeypatch, capsys, "predict", path, "--checkpoint", run, "--out", tmp_path / "out")
    assert code == 0
    # Prediction and evaluation read the same pixels.
    samples, batches = open_evaluation_set(load_tiny_recipe(root, *fields))
    image = read_image(path, channels, segmenter.config.data.value_range)
    np.testing.assert_array_equal(image, next(batches())["image"][samples.images.index(path.name)])
    predicted = read_pixels(tmp_path / "out" / "train_ids" / f"{path.stem}.png")
    np.testing.assert_array_equal(predicted, segmenter.predict(image.transpose(2, 0, 1)[None])[0])
    shown = np.repeat(image[..., :1], 3, -1) if channels == 1 else image[..., :3]
    drawn = read_pixels(tmp_path / "out" / "overlay" / f"{path.stem}.png")
    np.testing.assert_array_equal(drawn, overlay(shown, predicted, segmenter.label_set))

    for fmt, name in (("stablehlo", "net.zip"), ("onnx", "net.onnx")):  # the export compares its outputs with the checkpoint's
        code, text = run_cli(
            monkeypatch, capsys, "export", "--checkpoint", run, "--out", tmp_path / name, "--format", fmt, "--output", "labels"
        )
        assert code == 0, text
        assert f"maps uint8 [n, {channels}, h, w] to labels" in text
    exported = dl.load_exported(str(tmp_path / "net.zip"))
    assert exported(image.transpose(2, 0, 1)[None])[0].shape == predicted.shape


def test_records_hold_all_bands_and_are_only_read_as_prepared(bands, tmp_path, monkeypatch, capsys):
    channels, root, fields = bands
    out, value_range = tmp_path / "records", SETS[channels][1]
    words = ["--channels", channels, *(["--value-range", *value_range] if value_range else [])]
    assert run_cli(monkeypatch, capsys, "data", "prepare", root, "--out", out, *words)[0] == 0
    for batch, expected in zip(*(open_evaluation_set(load_tiny_recipe(at, *fields))[1]() for at in (out, root)), strict=True):
        assert batch["image"].shape[-1] == channels
        np.testing.assert_array_equal(batch["image"], expected["image"])
        np.testing.assert_array_equal(batch["label"], expected["label"])
    with pytest.raises(DataError, match=rf"`data.channels` \(=3\) does not match .* prepared with {channels}\. Set it to"):
        open_evaluation_set(load_tiny_recipe(out))
    with pytest.raises(DataError, match=r"`data.value_range` \(=\(0, 9\)\) does not match"):
        open_evaluation_set(load_tiny_recipe(out, f"data.channels={channels}", "data.value_range=(0,9)"))
    # Records prepared in another way are replaced, not reused.
    assert "up to date" in run_cli(monkeypatch, capsys, "data", "prepare", root, "--out", out, *words)[1]
    if channels == 4:
        run_cli(monkeypatch, capsys, "data", "prepare", root, "--out", out)
        assert next(open_evaluation_set(load_tiny_recipe(out))[1]())["image"].shape[-1] == 3


def test_a_video_needs_a_grey_or_rgb_network(rgb_weights, tmp_path, monkeypatch, capsys):
    config = tiny_config()
    config.data.channels, config.model.mean, config.model.std = 4, (1.0,) * 4, (1.0,) * 4
    save_model(str(tmp_path / "four"), config, random_variables(DeepLabV3(config.model, config.labels.num_classes)))
    (tmp_path / "a.mp4").write_bytes(b"")
    code, text = run_cli(
        monkeypatch, capsys, "predict", tmp_path / "a.mp4", "--checkpoint", tmp_path / "four", "--out", tmp_path
    )
    assert (code, "Videos are grey or RGB, but this network reads 4 channels (data.channels)" in text) == (2, True)
