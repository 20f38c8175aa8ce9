"""Data sets of TensorFlow Datasets, built here: nothing is downloaded."""

import ast
import io
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

from deeplab_jax.commands import main as cli
from deeplab_jax.commands.data import prepare as command
from deeplab_jax.config import Config, DataConfig
from deeplab_jax.data import ranges
from deeplab_jax.data import samples as reading
from deeplab_jax.data import tfds as ours
from deeplab_jax.data.find import describe, find_split
from deeplab_jax.data.pipeline import eval_batches, plan_evaluation, train_batches
from deeplab_jax.data.prepare import prepare
from deeplab_jax.data.samples import digest
from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.labels import LabelSet
from deeplab_jax.train import verify as verification

tfds = pytest.importorskip("tensorflow_datasets")
PLAIN = LabelSet("plain", ("a", "b", "c"), ((10, 0, 0), (0, 200, 0), (0, 0, 255)))


def image(channels, **options):
    return tfds.features.Image(shape=(None, None, channels), **options)


def examples(first, count, image_name="image", label_name="segmentation_mask", **more):
    """Of each sample a picture whose first pixel is its number."""
    for i in range(first, first + count):
        rng = np.random.default_rng(i)
        height, width = 12 + i % 2, 16
        picture, mask = rng.integers(0, 256, (height, width, 3), np.uint8), rng.integers(0, 3, (height, width, 1), np.uint8)
        picture[0, 0] = i
        yield {image_name: picture, label_name: mask} | more


def build(folder, title, features, shards=1, **splits):
    class Own(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = title
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {split: enumerate(rows) for split, rows in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError

    builder = Own(data_dir=str(folder))
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))
    return builder


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """Folder and builder of a set with the features of oxford_iiit_pet: 10 samples and 5, in 3 files each."""
    folder = tmp_path_factory.mktemp("tfds")
    features = {
        "image": image(3),
        "label": tfds.features.ClassLabel(num_classes=37),
        "species": tfds.features.ClassLabel(names=["Cat", "Dog"]),
        "file_name": tfds.features.Text(),
        "segmentation_mask": image(1, use_colormap=True),
        "head_bbox": tfds.features.BBoxFeature(),
    }
    more = {"label": 3, "species": 1, "file_name": "x", "head_bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0)}
    splits = {"train": examples(0, 10, **more), "test": examples(20, 5, **more)}
    return folder, build(folder, "own_pets", features, 3, **splits)


def opened(pets, split, **options):
    return find_split(DataConfig(source="tfds:own_pets", root=str(pets[0]), **options), split)


@pytest.mark.parametrize("split", ["train", "train[:50%]", "train+test", "test[3:]+train[2:4]", "all"])
def test_samples_are_the_builder_s_in_its_order(pets, split):
    samples = opened(pets, split)
    expected = list(tfds.as_numpy(pets[1].as_dataset(split)))
    assert len(samples) == len(expected) > 0
    assert len(set(samples.images)) == len(samples)
    for i in np.random.default_rng(0).permutation(len(samples)):
        picture, values = reading.read_sample(samples, int(i))
        np.testing.assert_array_equal(picture, expected[i]["image"])
        np.testing.assert_array_equal(values, expected[i]["segmentation_mask"][..., 0])
        put_in = next(examples(int(picture[0, 0, 0]), 1))
        np.testing.assert_array_equal(picture, put_in["image"])
        np.testing.assert_array_equal(values, put_in["segmentation_mask"][..., 0])


def test_what_was_found_is_said(pets):
    samples = opened(pets, "train")
    assert describe("train", samples) == "train: 10 samples from tfds:own_pets/1.0.0, labels of kind labelIds"
    assert samples.images[0] == "own_pets-train.tfrecord-00000-of-00003/000000"
    assert samples.labels[0] == "own_pets-train.tfrecord-00000-of-00003/000000#segmentation_mask"
    assert digest(samples) == digest(opened(pets, "train"))


def train(samples, **options):
    data = DataConfig(batch_size=4, crop_size=(8, 10), **options.pop("data", {}))
    options = {"start_step": 0, "steps": 4} | options
    return list(train_batches(samples, PLAIN, data, (1, 2, 3), seed=5, **options))


def assert_same(actual, expected):
    assert len(actual) == len(expected) > 0
    for a, b in zip(actual, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], name)


def test_a_training_starts_late_and_its_fingerprints_are_those_of_the_samples(pets):
    samples = opened(pets, "train")
    run = train(samples)
    assert_same(train(samples, start_step=2), run[2:])
    prints = np.array([list(reading.fingerprint(samples, i)) for i in range(10)], np.uint8)
    assert len(np.unique(prints, axis=0)) == 10
    for batch in run:
        np.testing.assert_array_equal(batch["fingerprint"], prints[batch["index"]])


def test_records_of_it_give_the_same_batches(pets, tmp_path):
    command("tfds:own_pets", str(tmp_path / "records"), ("train", "test[20%:]"), data_dir=str(pets[0]))
    for split in ("train", "test[20%:]"):
        held, files = find_split(DataConfig(root=str(tmp_path / "records")), split), opened(pets, split)
        assert digest(held) == digest(files)
        assert_same(list(eval_batches(held, PLAIN, 2)), list(eval_batches(files, PLAIN, 2)))
    assert_same(train(held), train(files))
    console = Console(file=io.StringIO(), width=200)
    data = DataConfig(source="tfds:own_pets", root=str(pets[0]))
    prepare(data, str(tmp_path / "records"), ("test[20%:]",), console)
    assert "holds them already" in console.file.getvalue()
    assert find_split(DataConfig(root=str(tmp_path / "records")), "train").images == opened(pets, "train").images


def test_sizes_are_those_of_the_pictures(pets):
    samples = opened(pets, "train")
    assert [samples.store.size(samples, i) for i in range(10)] == [
        reading.read_sample(samples, i)[0].shape[:2] for i in range(10)
    ]
    assert sorted(i for batch in plan_evaluation(samples, 3) for i in batch) == list(range(10))


def test_a_plan_decodes_nothing(pets, monkeypatch):
    samples = opened(pets, "train")
    monkeypatch.setattr(ours.Builder, "decode", None)
    assert len(plan_evaluation(samples, 3)) == 4


def test_an_index_opens_each_file_once_where_that_is_slow(pets, monkeypatch):
    names, gfile = [], tf.io.gfile.GFile
    expected = [place[1:] for place in opened(pets, "train").store.places]
    monkeypatch.delattr(os, "pread")
    monkeypatch.setattr(tf.io.gfile, "GFile", lambda name, mode: names.append(name) or gfile(name, mode))
    assert [place[1:] for place in opened(pets, "train").store.places] == expected
    names = [name for name in names if "tfrecord" in str(name)]
    assert len(names) == len(set(names)) == 3


def test_verify_takes_records_in_place_of_the_set(pets, tmp_path, monkeypatch):
    out = tmp_path / "records"
    command("tfds:own_pets", str(out), ("train", "test"), data_dir=str(pets[0]))
    config = Config(data=DataConfig(source="tfds:own_pets", root="gone", train_split="train"))
    config.eval.split, config.train.steps = "test", 1
    monkeypatch.setattr(verification, "config_at", lambda *_: (config, None))
    read = []
    monkeypatch.setattr(verification, "verify", lambda run, from_, steps, data, *_: read.append(data.names) or [])
    with pytest.raises(SystemExit) as stop:
        cli.verify("run", 0, 1, str(out))
    assert stop.value.code == 0
    assert read == [find_split(DataConfig(root=str(out)), "train").images]


def test_the_command_that_is_advised_for_records_names_the_data_dir(pets, tmp_path, monkeypatch):
    monkeypatch.chdir(pets[0].parent)
    command("tfds:own_pets", str(tmp_path / "records"), ("train",), data_dir=pets[0].name)
    for path in (tmp_path / "records").glob("*.bin"):
        path.unlink()
    with pytest.raises(DataError, match=rf"--splits train --data-dir {pets[0]}` again"):
        find_split(DataConfig(root=str(tmp_path / "records")), "train")


def test_cityscapes_features_are_known(tmp_path):
    features = {"image_left": image(3), "image_right": image(3), "segmentation_label": image(1), "disparity_map": image(1)}
    some = np.zeros((12, 16, 1), np.uint8)
    rows = examples(0, 1, "image_left", "segmentation_label", image_right=np.zeros((12, 16, 3), np.uint8), disparity_map=some)
    build(tmp_path, "own_streets", features, train=rows)
    samples = find_split(DataConfig(source="tfds:own_streets", root=str(tmp_path)), "train")
    assert samples.labels[0].endswith("#segmentation_label")
    np.testing.assert_array_equal(reading.read_sample(samples, 0)[0], next(examples(0, 1))["image"])


@pytest.mark.parametrize(
    ("features", "shown"),
    [
        ({"image": image(3), "label": tfds.features.ClassLabel(num_classes=3)}, r"image \(None, None, 3\) uint8, label$"),
        ({"image": image(3), "mask": image(1, dtype=np.uint16)}, r"mask \(None, None, 1\) uint16"),
        ({"image": image(3), "mask": image(1), "annotation": image(1)}, "annotation"),
        ({"a": image(3), "b": image(3), "mask": image(1)}, "a .*, b .*, mask"),
        ({"image": image(3), "objects": tfds.features.Sequence({"a": np.int64, "b": np.int64, "c": np.int64})}, "objects$"),
    ],
)
def test_features_that_are_no_segmentation_are_named(features, shown):
    features = dict(tfds.features.FeaturesDict(features).items())
    with pytest.raises(
        DataError, match=rf"`data\.source` \(='tfds:x'\) has no single image .* its features: .*{shown}"
    ) as caught:
        ours._features("x", features)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "split", "options", "message"),
    [
        ("own_nothing", "train", {}, r"\(='tfds:own_nothing'\) cannot be used in .* \(Dataset own_nothing not found\.\)"),
        (
            "oxford_iiit_pet",
            "train",
            {},
            r"\(='tfds:oxford_iiit_pet'\) has not been built in .*: run `tfds build oxford_iiit_pet`",
        ),
        ("own_pets:3.0.0", "train", {}, r"\(='tfds:own_pets:3\.0\.0'\) cannot be used"),
        ("own_pets", "val", {}, r"tfds:own_pets has no split 'val' but train, test \(Unknown split 'val'"),
        ("own_pets", "train[:x]", {}, r"tfds:own_pets has no split 'train\[:x\]' but"),
        ("own_pets", "train[:0]", {}, r"split 'train\[:0\]' of tfds:own_pets is empty"),
        ("own_pets", "train+train[:1]", {}, r"holds samples twice"),
        ("own_pets", "train", {"label_kind": "color"}, r"`data\.label_kind` \(='color'\) does not go with tfds:own_pets"),
    ],
)
def test_what_is_not_there_is_one_line(pets, source, split, options, message):
    with pytest.raises(DataError, match=message) as caught:
        find_split(DataConfig(source=f"tfds:{source}", root=str(pets[0]), **options), split)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_files_that_are_cut_short_gone_or_changed_are_one_line(tmp_path):
    builder = build(tmp_path, "own_broken", {"image": image(3), "segmentation_mask": image(1)}, train=examples(0, 3))
    data = DataConfig(source="tfds:own_broken", root=str(tmp_path))
    (path,) = builder.data_path.glob("*.tfrecord*")
    samples = find_split(data, "train")
    whole = path.read_bytes()
    middle = samples.store.places[1][1] + 50
    path.write_bytes(whole[:middle] + bytes(40) + whole[middle + 40 :])
    with pytest.raises(
        DataError, match=r"000001 of tfds:own_broken/1\.0\.0 cannot be read \(.*\): build the set again"
    ) as caught:
        list(eval_batches(find_split(data, "train"), PLAIN, 1))
    assert "\n" not in str(caught.value)
    _, start, length = samples.store.places[1]
    path.write_bytes(whole[:start] + b"\xff" * length + whole[start + length :])
    with pytest.raises(DataError, match=r"000001 of .* cannot be read \(.*\): build the set again"):
        samples.store.size(samples, 1)
    ranges._open.cache_clear()  # another file has taken its place
    for ask in (samples.store.size, samples.store.fingerprint):
        with pytest.raises(DataError, match=r"000001 of .* cannot be read \(.* was replaced .*\): build the set again"):
            ask(samples, 1)
    for broken, message in ((whole[:-20], "is truncated in example 2"), (whole[:5], "ends at byte 5")):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=rf"a file of tfds:own_broken cannot be read \(.*{message}\): build the set again"):
            find_split(data, "train")
    path.unlink()
    with pytest.raises(DataError, match=r"a file of tfds:own_broken cannot be read \(.*No such file"):
        find_split(data, "train")


def test_a_value_outside_the_table_is_named(tmp_path):
    rows = list(examples(0, 2))
    rows[1]["segmentation_mask"][5, 5] = 77
    build(tmp_path, "own_values", {"image": image(3), "segmentation_mask": image(1)}, train=rows)
    samples = find_split(DataConfig(source="tfds:own_values", root=str(tmp_path)), "train")
    with pytest.raises(DataError, match=r"/00000\d#segmentation_mask holds the value 77 \(1 pixels\), which labels of kind"):
        list(eval_batches(samples, PLAIN, 1))


def test_a_data_dir_goes_with_a_name(tmp_path):
    with pytest.raises(ConfigError, match=r"`--data-dir` \(='x'\) goes with tfds:NAME"):
        command(str(tmp_path), str(tmp_path / "records"), data_dir="x")


def test_the_package_is_imported_only_where_it_is_used():
    for path in pathlib.Path(ours.__file__).parents[1].rglob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            assert "tensorflow_datasets" not in ast.dump(node) or isinstance(node, ast.FunctionDef | ast.Expr), path
