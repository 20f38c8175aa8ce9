import dataclasses
import shlex
import shutil

import jax
import numpy as np
import pytest
from conftest import random_variables, read_pixels, run_cli, tiny_config, tiny_model
from PIL import Image

from deeplab_jax import api
from deeplab_jax.checkpoints import paths
from deeplab_jax.commands.pseudo_labels import fits
from deeplab_jax.config import DataConfig
from deeplab_jax.data.evaluation import eval_batches
from deeplab_jax.data.find import find_split
from deeplab_jax.data.pipeline import train_batches
from deeplab_jax.labels import CAMVID, CITYSCAPES, IGNORE, LABEL_SETS, LabelSet, distinct_colors, merge
from deeplab_jax.models import DeepLabV3
from deeplab_jax.predict import images

MIN_CONFIDENCE = 0.6


@pytest.fixture(scope="module")
def segmenter():
    config = tiny_config(model=tiny_model())
    return api.Segmenter(config, random_variables(DeepLabV3(config.model, config.labels.num_classes), seed=3))


@pytest.fixture
def root(street_scenes, tmp_path):
    """Return a copy of the street scenes, whose test scenes have no labels."""
    return shutil.copytree(street_scenes, tmp_path / "scenes")


@pytest.fixture
def predict(segmenter, root, monkeypatch, capsys):
    """Return a function that runs the command on the images of the test split and returns its exit code and output."""

    def run(*arguments, network=segmenter, out="pseudo", folder="leftImg8bit/test", confidence=MIN_CONFIDENCE):
        monkeypatch.setattr(api, "load", lambda checkpoint: network)
        monkeypatch.setattr(paths, "resolve", lambda checkpoint: checkpoint)
        words = ("predict", root / folder, "--checkpoint", "run", "--out", root / out)
        threshold = () if confidence is None else ("--min-confidence", confidence)
        return run_cli(monkeypatch, capsys, *words, "--as-labels", *threshold, *arguments)

    return run


@pytest.mark.slow
def test_confident_pixels_become_a_split_that_training_reads(segmenter, root, predict):
    code, output = predict("--flip")
    assert code == 0, output
    data = DataConfig(root=str(root), train_split="train+pseudo", mix=(1, 1), batch_size=4, crop_size=(64, 128))
    joined, samples = find_split(data, data.train_split), find_split(data, "pseudo")
    assert (joined.part_sizes, joined.kind) == ((6, 2), "labelIds")
    protocol = dataclasses.replace(segmenter.config.eval, flip=True)
    flipped = api.Segmenter(dataclasses.replace(segmenter.config, eval=protocol), segmenter.variables)
    kept = pixels = 0
    for batch in eval_batches(samples, CITYSCAPES, 1):
        probabilities = np.asarray(jax.nn.softmax(flipped.logits(batch["image"].transpose(0, 3, 1, 2)), axis=1))
        expected = np.where(probabilities.max(1) >= MIN_CONFIDENCE, probabilities.argmax(1), IGNORE)
        # Rounding can move a probability to the other side of the limit.
        assert (batch["label"] != expected).mean() < 0.001
        kept, pixels = kept + (batch["label"] != IGNORE).sum(), pixels + expected.size
    assert 0.1 < kept / pixels < 0.9
    assert f"Kept {kept / pixels:.1%} of the pixels of 2 images" in output
    assert f"--config.data.root={root} --config.data.train_split=train+pseudo '--config.data.mix=(1,1)'" in output
    batch = next(train_batches(joined, CITYSCAPES, data, (0, 0, 0), seed=0, start_step=0, steps=1))
    assert (batch["index"] >= 6).sum() == 2


def test_the_summary_shows_each_class(predict):
    _, output = predict(confidence=0.0)
    rows = {cells[1].strip(): cells[2:4] for line in output.splitlines() if len(cells := line.split("│")) == 5}
    assert len(rows) == 19
    shares = [float(predicted.strip(" %")) for predicted, _ in rows.values()]
    assert sum(shares) == pytest.approx(100, abs=0.2)  # 19 numbers rounded to 0.01
    assert {kept.strip() for _, kept in rows.values()} == {"100.0%", "-"}
    assert "Kept 100.0% of the pixels" in output


@pytest.mark.slow
def test_a_repeated_command_replaces_its_labels_but_no_others(root, predict):
    assert predict()[0] == 0
    (label, _) = sorted((root / "pseudo").rglob("*.png"))
    first = read_pixels(label)
    assert predict(confidence=0.0)[0] == 0
    assert (read_pixels(label) != first).any()
    Image.fromarray(first).save(label)
    before = (root / "list" / "pseudo.lst").read_text()
    code, output = predict()
    assert code == 2
    assert f"{label} was not written by `predict --as-labels`, or was edited since" in output
    assert (root / "list" / "pseudo.lst").read_text() == before


@pytest.mark.slow
def test_without_a_probability_nine_tenths_are_required(segmenter, root, predict):
    assert predict(confidence=None)[0] == 0
    (name, *_) = find_split(DataConfig(root=str(root)), "pseudo").images
    image = read_pixels(root / name).transpose(2, 0, 1)[None]
    probabilities = np.asarray(jax.nn.softmax(segmenter.logits(image), axis=1))
    label = read_pixels(next((root / "pseudo").rglob(f"{name.rpartition('/')[2].removesuffix('.png')}_labelIds.png")))
    assert ((label != 255) != (probabilities.max(1)[0] >= 0.9)).mean() < 0.001


def test_large_images_are_predicted_in_windows(root, predict, monkeypatch):
    monkeypatch.setattr(images, "WINDOW", (32, 64))

    def read_labels(confidence):
        assert predict("--max-pixels", 4000, confidence=confidence)[0] == 0
        samples = find_split(DataConfig(root=str(root)), "pseudo")
        return np.concatenate([batch["label"] for batch in eval_batches(samples, CITYSCAPES, 1)])

    everything, confident = read_labels(0.0), read_labels(MIN_CONFIDENCE)
    assert (everything != IGNORE).all()
    assert 0.1 < (confident == IGNORE).mean() < 0.9
    np.testing.assert_array_equal(confident[confident != IGNORE], everything[confident != IGNORE])


def test_a_split_without_any_labelled_pixel_is_not_written(root, predict):
    code, output = predict(confidence=1.0)
    assert code == 2
    assert "`--min-confidence` (=1) keeps no pixel" in output
    assert not (root / "list" / "pseudo.lst").exists()


def test_a_second_round_replaces_the_split_that_the_network_was_trained_on(segmenter, root, predict):
    assert predict()[0] == 0
    data = dataclasses.replace(segmenter.config.data, train_split="train+pseudo", mix=(1, 1))
    second = api.Segmenter(dataclasses.replace(segmenter.config, data=data), segmenter.variables)
    code, output = predict(network=second)
    assert code == 0
    assert "--config.data.train_split=train+pseudo '--config.data.mix=(1,1)'" in output
    code, output = predict(network=second, out="more")
    assert "is already in the split 'pseudo'" in output


def test_a_network_trained_on_the_pseudo_labels_alone_is_advised_without_a_ratio(segmenter, root, predict):
    assert predict()[0] == 0
    data = dataclasses.replace(segmenter.config.data, train_split="pseudo")
    code, output = predict(network=api.Segmenter(dataclasses.replace(segmenter.config, data=data), segmenter.variables))
    assert code == 0, output
    assert f"To train on it:\n  --config.data.root={root} --config.data.train_split=pseudo\n" in output


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([], {"confidence": 1.5}, "`--min-confidence` (=1.5) cannot be used. Use a probability from 0 to 1."),
        (["--confidence"], {}, "`--confidence` cannot be combined with --as-labels"),
        (["--opacity", "0.3"], {}, "`--opacity` (=0.3) cannot be combined with --as-labels"),
        ([], {"out": "train"}, "scenes/train') is a split that this command did not write, or that was edited"),
        ([], {"out": "a+b"}, "scenes/a+b') has a plus sign"),
        ([], {"out": "."}, "must be a data set folder and the name of a new split, such as ROOT/pseudo, but"),
        ([], {"out": "here/pseudo"}, "must be a data set folder and the name of a new split, such as ROOT/pseudo, but"),
        ([], {"folder": "leftImg8bit/val"}, "Predict only images that are in no split with labels."),
        ([], {"folder": "../outside.png"}, "outside.png is not below"),
    ],
)
def test_wrong_arguments_are_reported_on_one_line(root, predict, arguments, options, message):
    Image.new("RGB", (64, 64)).save(root.parent / "outside.png")
    code, output = predict(*arguments, **options)
    assert code == 2
    assert message in output
    assert len(output.strip().splitlines()) <= 2  # the second one is the checkpoint
    assert not (root / "list" / "pseudo.lst").exists()


@pytest.mark.parametrize("eval_split", ["val+test", "train", "test"])
def test_validation_images_are_refused_whatever_the_run_evaluates(segmenter, root, predict, eval_split):
    protocol = dataclasses.replace(segmenter.config.eval, split=eval_split)
    network = api.Segmenter(dataclasses.replace(segmenter.config, eval=protocol), segmenter.variables)
    code, output = predict(network=network, folder="leftImg8bit/val")
    assert code == 2
    assert "is already in the split 'val', as leftImg8bit/val/" in output
    assert not (root / "list" / "pseudo.lst").exists()


def test_links_to_validation_images_are_refused_but_not_those_to_other_images(root, predict):
    outside = root.parent / "outside.png"
    validation, other = next((root / "leftImg8bit" / "val").rglob("*.png")), root / "free" / "a.png"
    shutil.copy(validation, outside)
    (root / "extra").symlink_to(root / "leftImg8bit" / "val")
    (root / "linked").mkdir()
    (root / "linked" / "a.png").symlink_to(validation)
    for folder in ("extra", "linked"):
        code, output = predict(folder=folder)
        assert (code, "is already in the split 'val'" in output) == (2, True), output
    other.parent.mkdir()
    other.symlink_to(outside)
    assert predict(folder="free")[0] == 0


def test_the_printed_flags_can_be_pasted_into_a_shell(root, predict):
    (root / "my data").mkdir()
    for folder in ("leftImg8bit", "gtFine"):
        shutil.move(root / folder, root / "my data" / folder)
    code, output = predict(folder="my data/leftImg8bit/test", out="my data/less sure", confidence=0.0)
    assert code == 0
    words = next(shlex.split(line) for line in output.splitlines() if "--config.data.root" in line)
    expected = [f"root={root / 'my data'}", "train_split=train+less sure", "mix=(1,1)"]
    assert words == [f"--config.data.{each}" for each in expected]


def test_the_same_images_can_be_labelled_as_several_splits(root, predict):
    assert predict()[0] == 0
    assert predict(out="less_sure", confidence=0.0)[0] == 0


FOUR, EIGHT = (LabelSet("custom", tuple("abcdefgh"[:n]), distinct_colors(n)) for n in (4, 8))
MERGED = merge(EIGHT, {"ab": ("a", "b")}, ignored=("h",))


@pytest.mark.parametrize(
    ("labels", "expected", "kinds"),
    [
        (CITYSCAPES, CITYSCAPES, ["labelIds", "labelTrainIds", "color"]),
        (LABEL_SETS["cityscapes_categories"], CITYSCAPES, ["labelIds", "color"]),
        (LABEL_SETS["camvid11"], LABEL_SETS["camvid32"], ["labelIds", "color"]),
        (LABEL_SETS["mapillary_cityscapes"], LABEL_SETS["mapillary"], ["labelIds", "color"]),
        (MERGED, EIGHT, ["labelIds", "color"]),
        (CAMVID, LABEL_SETS["voc"], []),
        (CITYSCAPES, LABEL_SETS["ade20k"], []),
        (FOUR, EIGHT, []),
        (EIGHT, FOUR, []),
        (dataclasses.replace(EIGHT, ids=(1, 0, *range(2, 8))), EIGHT, ["labelTrainIds", "color"]),
    ],
)
def test_a_network_fits_its_own_classes_and_those_it_merges(labels, expected, kinds):
    assert [kind for kind in ("labelIds", "labelTrainIds", "color") if fits(labels, expected, kind)] == kinds


def test_min_confidence_needs_as_labels(tmp_path, monkeypatch, capsys):
    words = ("predict", tmp_path, "--checkpoint", "run", "--out", tmp_path / "out", "--min-confidence", 0.9)
    code, output = run_cli(monkeypatch, capsys, *words)
    assert (code, len(output.splitlines())) == (2, 1)
    assert "`--min-confidence` (=0.9) only works with --as-labels" in output


def test_other_classes_videos_and_records_are_refused(segmenter, root, predict, monkeypatch):
    camvid = api.Segmenter(dataclasses.replace(segmenter.config, labels=CAMVID), segmenter.variables)
    code, output = predict(network=camvid)
    assert code == 2
    assert "label set camvid (11 classes) does not fit cityscapes (19 classes), inferred from the Cityscapes" in output
    (root / "drive.mp4").write_text("")
    assert "drive.mp4 is a video, which cannot be a part of a split" in predict(folder="drive.mp4")[1]
    monkeypatch.setattr("deeplab_jax.commands.pseudo_labels.is_records", lambda root: True)
    assert "is in prepared records" in predict()[1]


def read_split(root):
    paths = [root / "list" / "pseudo.lst", *(root / "pseudo").rglob("*.png")]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths if path.is_file()}


@pytest.mark.slow
def test_shards_write_the_split_that_one_process_writes(root, predict):
    (root / "leftImg8bit" / "test" / "broken.png").write_text("not an image")
    assert predict()[0] == 1
    expected = read_split(root)
    (root / "list" / "pseudo.lst").unlink()
    shutil.rmtree(root / "pseudo")
    outputs = [predict("--shard", f"{number}/3")[1] for number in (2, 3, 1)]
    assert "Shard 1 of 3 is not done yet. The last one to end writes" in outputs[1]
    assert "Wrote" not in outputs[0] + outputs[1]
    assert sum("failed:" in output for output in outputs) == 1
    assert "of the pixels of 2 images" in outputs[2]
    assert read_split(root) == expected


def test_shards_with_another_probability_do_not_join(root, predict):
    predict("--shard", "1/2", confidence=0.5)
    output = predict("--shard", "2/2")[1]
    assert "Shard 1 of 2 is not done yet." in output
    assert not (root / "list" / "pseudo.lst").exists()


@pytest.mark.parametrize("folder", ["more", "link"])
def test_labels_are_not_written_among_the_images(root, predict, folder):
    (root / "more").mkdir()
    (root / "link").symlink_to(root / "more")
    shutil.copy(next((root / "leftImg8bit" / "test").rglob("*.png")), root / "more" / "a.png")
    code, output = predict(out="more", folder=folder)
    assert code == 2
    assert f"`--out` (='{root}/more') is a folder with images to predict, such as {root}/{folder}/a.png" in output
    assert sorted(path.name for path in (root / "more").iterdir()) == ["a.png"]
