"""Tests for TensorFlow Datasets support, on small data sets built by the tests. Nothing is downloaded."""

import ast
import io
import os
import pathlib

import numpy as np
import pytest
from rich.console import Console

from deeplab_jax.commands import main as cli
from deeplab_jax.commands.data import prepare as prepare_command
from deeplab_jax.config import Config, DataConfig
from deeplab_jax.data import ranges
from deeplab_jax.data import tfds as tfds_module
from deeplab_jax.data.evaluation import eval_batches, plan_evaluation
from deeplab_jax.data.find import describe, find_split
from deeplab_jax.data.pipeline import train_batches
from deeplab_jax.data.prepare import prepare
from deeplab_jax.data.samples import digest, read_sample
from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.labels import LabelSet
from deeplab_jax.training import verify as verification

tfds = pytest.importorskip("tensorflow_datasets")
LABELS = LabelSet("plain", ("a", "b", "c"), ((10, 0, 0), (0, 200, 0), (0, 0, 255)))


def image_feature(channels, **options):
    return tfds.features.Image(shape=(None, None, channels), **options)


def make_examples(first, count, image_name="image", label_name="segmentation_mask", **more):
    """Yield `count` examples, numbered from `first`. The first pixel in each image stores the example number."""
    for i in range(first, first + count):
        rng = np.random.default_rng(i)
        height, width = 12 + i % 2, 16
        picture, mask = rng.integers(0, 256, (height, width, 3), np.uint8), rng.integers(0, 3, (height, width, 1), np.uint8)
        picture[0, 0] = i
        yield {image_name: picture, label_name: mask} | more


def build_data_set(folder, title, features, shards=1, **splits):
    class OwnBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = title
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {split: enumerate(rows) for split, rows in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError

    builder = OwnBuilder(data_dir=str(folder))
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))
    return builder


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """Return the folder and the builder for a data set with the same features as oxford_iiit_pet.

    The training split has 10 samples and the test split has 5. Each split is stored in 3 files.
    """
    folder = tmp_path_factory.mktemp("tfds")
    features = {
        "image": image_feature(3),
        "label": tfds.features.ClassLabel(num_classes=37),
        "species": tfds.features.ClassLabel(names=["Cat", "Dog"]),
        "file_name": tfds.features.Text(),
        "segmentation_mask": image_feature(1, use_colormap=True),
        "head_bbox": tfds.features.BBoxFeature(),
    }
    more = {"label": 3, "species": 1, "file_name": "x", "head_bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0)}
    splits = {"train": make_examples(0, 10, **more), "test": make_examples(20, 5, **more)}
    return folder, build_data_set(folder, "own_pets", features, 3, **splits)


def find_pets(pets, split, **options):
    return find_split(DataConfig(source="tfds:own_pets", root=str(pets[0]), **options), split)


@pytest.mark.parametrize("split", ["train", "train[:50%]", "train+test", "test[3:]+train[2:4]", "all"])
def test_samples_match_those_of_tfds_in_content_and_order(pets, split):
    samples = find_pets(pets, split)
    expected = list(tfds.as_numpy(pets[1].as_dataset(split)))
    assert len(samples) == len(expected) > 0
    assert samples.part_sizes == tuple(len(find_pets(pets, part)) for part in split.split("+"))
    assert len(set(samples.images)) == len(samples)
    for i in np.random.default_rng(0).permutation(len(samples)):
        picture, values = read_sample(samples, int(i))
        np.testing.assert_array_equal(picture, expected[i]["image"])
        np.testing.assert_array_equal(values, expected[i]["segmentation_mask"][..., 0])
        written = next(make_examples(int(picture[0, 0, 0]), 1))
        np.testing.assert_array_equal(picture, written["image"])
        np.testing.assert_array_equal(values, written["segmentation_mask"][..., 0])


def test_the_summary_and_the_sample_names_identify_the_source(pets):
    samples = find_pets(pets, "train")
    assert describe("train", samples) == "train: 10 samples from tfds:own_pets/1.0.0, with labelIds labels"
    assert samples.images[0] == "own_pets-train.tfrecord-00000-of-00003/000000"
    assert samples.labels[0] == "own_pets-train.tfrecord-00000-of-00003/000000#segmentation_mask"
    assert digest(samples) == digest(find_pets(pets, "train"))


def read_training_batches(samples, **options):
    data = DataConfig(batch_size=4, crop_size=(8, 10), **options.pop("data", {}))
    options = {"start_step": 0, "steps": 4} | options
    return list(train_batches(samples, LABELS, data, (1, 2, 3), seed=5, **options))


def assert_same(actual, expected):
    assert len(actual) == len(expected) > 0
    for a, b in zip(actual, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], name)


def test_training_can_start_at_a_later_step_and_yields_the_fingerprints_of_the_samples(pets):
    samples = find_pets(pets, "train")
    run = read_training_batches(samples)
    assert_same(read_training_batches(samples, start_step=2), run[2:])
    fingerprints = np.array([list(samples.store.fingerprint(samples, i)) for i in range(10)], np.uint8)
    assert len(np.unique(fingerprints, axis=0)) == 10
    for batch in run:
        np.testing.assert_array_equal(batch["fingerprint"], fingerprints[batch["index"]])


@pytest.mark.slow
def test_records_of_a_tfds_data_set_give_the_same_batches(pets, tmp_path):
    prepare_command("tfds:own_pets", str(tmp_path / "records"), ("train", "test[20%:]"), data_dir=str(pets[0]))
    for split in ("train", "test[20%:]"):
        from_records, from_tfds = find_split(DataConfig(root=str(tmp_path / "records")), split), find_pets(pets, split)
        assert digest(from_records) == digest(from_tfds)
        assert_same(list(eval_batches(from_records, LABELS, 2)), list(eval_batches(from_tfds, LABELS, 2)))
    assert_same(read_training_batches(from_records), read_training_batches(from_tfds))
    console = Console(file=io.StringIO(), width=200)
    data = DataConfig(source="tfds:own_pets", root=str(pets[0]))
    prepare(data, str(tmp_path / "records"), ("test[20%:]",), console)
    assert "is already up to date" in console.file.getvalue()
    assert find_split(DataConfig(root=str(tmp_path / "records")), "train").images == find_pets(pets, "train").images


def test_sizes_match_the_decoded_images(pets):
    samples = find_pets(pets, "train")
    assert [samples.store.size(samples, i) for i in range(10)] == [read_sample(samples, i)[0].shape[:2] for i in range(10)]
    assert sorted(i for batch in plan_evaluation(samples, 3).batches for i in batch) == list(range(10))


def test_planning_the_evaluation_decodes_nothing(pets, monkeypatch):
    samples = find_pets(pets, "train")
    monkeypatch.setattr(tfds_module.TfdsStore, "decode", None)
    assert len(plan_evaluation(samples, 3).batches) == 4


def test_each_file_is_opened_once_to_build_the_index_without_pread(pets, monkeypatch):
    names, original = [], open
    expected = [location[1:] for location in find_pets(pets, "train").store.locations]
    monkeypatch.delattr(os, "pread")
    monkeypatch.setattr("builtins.open", lambda name, *args, **kwargs: names.append(name) or original(name, *args, **kwargs))
    assert [location[1:] for location in find_pets(pets, "train").store.locations] == expected
    names = [name for name in names if "tfrecord" in str(name)]
    assert len(names) == len(set(names)) == 3


def test_verify_accepts_records_instead_of_the_tfds_data_set(pets, tmp_path, monkeypatch):
    out = tmp_path / "records"
    prepare_command("tfds:own_pets", str(out), ("train", "test"), data_dir=str(pets[0]))
    config = Config(data=DataConfig(source="tfds:own_pets", root="gone", train_split="train"))
    config.eval.split, config.train.steps = "test", 1
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr(verification, "config_at", lambda *_: (config, None))
    read = []
    monkeypatch.setattr(verification, "verify", lambda run, from_, steps, data, *_: read.append(data.names) or [])
    with pytest.raises(SystemExit) as stop:
        cli.verify(str(tmp_path / "run"), 0, 1, str(out))
    assert stop.value.code == 0
    assert read == [find_split(DataConfig(root=str(out)), "train").images]


def test_the_suggested_prepare_command_contains_the_data_dir(pets, tmp_path, monkeypatch):
    monkeypatch.chdir(pets[0].parent)
    prepare_command("tfds:own_pets", str(tmp_path / "records"), ("train",), data_dir=pets[0].name)
    for path in (tmp_path / "records").glob("*.bin"):
        path.unlink()
    with pytest.raises(DataError, match=rf"--splits train --data-dir {pets[0]}` again"):
        find_split(DataConfig(root=str(tmp_path / "records")), "train")


def test_cityscapes_features_are_recognized(tmp_path):
    features = {
        "image_left": image_feature(3),
        "image_right": image_feature(3),
        "segmentation_label": image_feature(1),
        "disparity_map": image_feature(1),
    }
    some = np.zeros((12, 16, 1), np.uint8)
    rows = make_examples(
        0, 1, "image_left", "segmentation_label", image_right=np.zeros((12, 16, 3), np.uint8), disparity_map=some
    )
    build_data_set(tmp_path, "own_streets", features, train=rows)
    samples = find_split(DataConfig(source="tfds:own_streets", root=str(tmp_path)), "train")
    assert samples.labels[0].endswith("#segmentation_label")
    np.testing.assert_array_equal(read_sample(samples, 0)[0], next(make_examples(0, 1))["image"])


@pytest.mark.parametrize(
    ("features", "shown"),
    [
        (
            {"image": image_feature(3), "label": tfds.features.ClassLabel(num_classes=3)},
            r"image \(None, None, 3\) uint8, label$",
        ),
        ({"image": image_feature(3), "mask": image_feature(1, dtype=np.uint16)}, r"mask \(None, None, 1\) uint16"),
        ({"image": image_feature(3), "mask": image_feature(1), "annotation": image_feature(1)}, "annotation"),
        ({"a": image_feature(3), "b": image_feature(3), "mask": image_feature(1)}, "a .*, b .*, mask"),
        (
            {"image": image_feature(3), "objects": tfds.features.Sequence({"a": np.int64, "b": np.int64, "c": np.int64})},
            "objects$",
        ),
    ],
)
def test_the_error_for_features_without_a_segmentation_lists_them(features, shown):
    features = dict(tfds.features.FeaturesDict(features).items())
    with pytest.raises(
        DataError,
        match=rf"`data\.source` \(='tfds:x'\) must have exactly one uint8 image .* features of this one are: .*{shown}",
    ) as caught:
        tfds_module._choose_features("x", features, 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "split", "options", "message"),
    [
        ("own_nothing", "train", {}, r"\(='tfds:own_nothing'\) cannot be loaded in .* \(Dataset own_nothing not found\.\)"),
        (
            "oxford_iiit_pet",
            "train",
            {},
            r"\(='tfds:oxford_iiit_pet'\) has not been built in .*\. Run `tfds build oxford_iiit_pet`",
        ),
        ("own_pets:3.0.0", "train", {}, r"\(='tfds:own_pets:3\.0\.0'\) cannot be loaded"),
        ("own_pets", "val", {}, r"tfds:own_pets has no split 'val' \(Unknown split 'val'.*\)\. Choose from train, test\."),
        ("own_pets", "train[:x]", {}, r"tfds:own_pets has no split 'train\[:x\]' \("),
        ("own_pets", "train[:0]", {}, r"Split 'train\[:0\]' of tfds:own_pets is empty"),
        ("own_pets", "train+train[:1]", {}, r"contains some samples twice"),
        ("own_pets", "train", {"label_kind": "color"}, r"`data\.label_kind` \(='color'\) cannot be used with tfds:own_pets"),
    ],
)
def test_a_data_set_or_split_that_cannot_be_used_is_an_error(pets, source, split, options, message):
    with pytest.raises(DataError, match=message) as caught:
        find_split(DataConfig(source=f"tfds:{source}", root=str(pets[0]), **options), split)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_truncated_missing_and_changed_files_are_errors(tmp_path):
    builder = build_data_set(
        tmp_path, "own_broken", {"image": image_feature(3), "segmentation_mask": image_feature(1)}, train=make_examples(0, 3)
    )
    data = DataConfig(source="tfds:own_broken", root=str(tmp_path))
    (path,) = builder.data_path.glob("*.tfrecord*")
    samples = find_split(data, "train")
    contents = path.read_bytes()
    middle = samples.store.locations[1][1] + 50
    path.write_bytes(contents[:middle] + bytes(40) + contents[middle + 40 :])
    with pytest.raises(
        DataError, match=r"000001 of tfds:own_broken/1\.0\.0 cannot be read \(.*\)\. Build the data set again"
    ) as caught:
        list(eval_batches(find_split(data, "train"), LABELS, 1))
    assert "\n" not in str(caught.value)
    _, start, length = samples.store.locations[1]
    path.write_bytes(contents[:start] + b"\xff" * length + contents[start + length :])
    with pytest.raises(DataError, match=r"000001 of .* cannot be read \(.*\)\. Build the data set again"):
        samples.store.size(samples, 1)
    ranges._open.cache_clear()  # the path now holds a different file
    for read in (samples.store.size, samples.store.fingerprint):
        with pytest.raises(DataError, match=r"000001 of .* cannot be read \(.* was replaced .*\)\. Build the data set again"):
            read(samples, 1)
    for broken, message in ((contents[:-20], "is truncated at example 2"), (contents[:5], "ends at byte 5")):
        path.write_bytes(broken)
        with pytest.raises(
            DataError, match=rf"A file of tfds:own_broken cannot be read \(.*{message}\)\. Build the data set again"
        ):
            find_split(data, "train")
    path.unlink()
    with pytest.raises(DataError, match=r"A file of tfds:own_broken cannot be read \(.*No such file"):
        find_split(data, "train")


def test_the_error_for_an_unknown_value_names_the_label(tmp_path):
    rows = list(make_examples(0, 2))
    rows[1]["segmentation_mask"][5, 5] = 77
    build_data_set(tmp_path, "own_values", {"image": image_feature(3), "segmentation_mask": image_feature(1)}, train=rows)
    samples = find_split(DataConfig(source="tfds:own_values", root=str(tmp_path)), "train")
    with pytest.raises(
        DataError, match=r"/00000\d#segmentation_mask holds the value 77 \(1 pixels\), which the label set does not"
    ):
        list(eval_batches(samples, LABELS, 1))


def test_a_data_dir_requires_a_tfds_name(tmp_path):
    with pytest.raises(ConfigError, match=r"`--data-dir` \(='x'\) only works with tfds:NAME"):
        prepare_command(str(tmp_path), str(tmp_path / "records"), data_dir="x")


def test_tensorflow_datasets_is_imported_only_inside_functions():
    for path in pathlib.Path(tfds_module.__file__).parents[1].rglob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            assert "tensorflow_datasets" not in ast.dump(node) or isinstance(node, ast.FunctionDef | ast.Expr), path


def test_grey_images_have_one_channel_and_other_numbers_are_refused():
    features = {"image": image_feature(1), "segmentation_mask": image_feature(1)}
    features = dict(tfds.features.FeaturesDict(features).items())
    assert tfds_module._choose_features("x", features, 1) == ("image", "segmentation_mask")
    with pytest.raises(DataError, match=r"exactly one uint8 image \(h, w, 3\)"):
        tfds_module._choose_features("x", features)
    with pytest.raises(DataError, match=r"`data.channels` \(=4\) cannot be used with tfds:x"):
        find_split(DataConfig(source="tfds:x", channels=4), "train")
