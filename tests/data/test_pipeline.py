import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf
from conftest import read_pixels
from PIL import Image

from deeplab_jax.config import DataConfig
from deeplab_jax.data import pipeline
from deeplab_jax.data.evaluation import eval_batches
from deeplab_jax.data.find import find_samples
from deeplab_jax.data.pipeline import train_batches
from deeplab_jax.errors import DataError
from deeplab_jax.labels import CITYSCAPES, LabelSet

DATA = DataConfig(batch_size=4, crop_size=(32, 48))
PLAIN = LabelSet("plain", ("a", "b", "c"), ((1, 0, 0), (0, 1, 0), (0, 0, 1)))


def batches(samples, *, labels=CITYSCAPES, data=DATA, start_step=0, steps=9, **hosts):
    return list(train_batches(samples, labels, data, (1, 2, 3), seed=5, start_step=start_step, steps=steps, **hosts))


def are_equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def train_set(street_scenes):
    return find_samples(str(street_scenes), "train")


def test_a_batch_has_the_documented_entries(train_set):
    batch = batches(train_set, steps=1)[0]
    assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
        "image": ("uint8", (4, 32, 48, 3)),
        "label": ("uint8", (4, 32, 48)),
        "valid": ("bool", (4,)),
        "index": ("int64", (4,)),
        "fingerprint": ("uint8", (4, 8)),
    }
    assert batch["valid"].all()
    assert set(np.unique(batch["label"])) <= {*range(19), 255}


def test_starting_at_a_later_step_gives_the_batches_of_an_uninterrupted_run(train_set):
    run = batches(train_set)
    assert len(run) == 9
    assert all(are_equal(a, b) for a, b in zip(batches(train_set, start_step=6), run[6:], strict=True))
    assert are_equal(batches(train_set)[3], run[3])
    assert not any(are_equal(a, b) for a, b in itertools.combinations(run, 2))


def test_hosts_split_the_global_batch_without_changing_it(train_set):
    global_batches = batches(train_set, start_step=1, steps=4)
    halves = [batches(train_set, start_step=1, steps=4, process_index=i, process_count=2) for i in (0, 1)]
    for batch, first, second in zip(global_batches, *halves, strict=True):
        assert are_equal(batch, {k: np.concatenate([first[k], second[k]]) for k in batch})


def test_autotuning_is_off():
    # With autotuning, a 40 s compilation delayed the end of the iteration by another 40 s.
    dataset = pipeline.read_batches(tf.data.Dataset.range(4), lambda i: i, 0, 2)
    assert dataset.options().autotune.enabled is False


def test_the_number_of_threads_does_not_change_the_batches(train_set):
    data = DataConfig(batch_size=4, crop_size=(32, 48), threads=3)
    assert all(are_equal(a, b) for a, b in zip(batches(train_set, data=data), batches(train_set), strict=True))


def test_every_epoch_is_a_different_permutation(train_set):
    order = np.concatenate([b["index"] for b in batches(train_set, steps=9)]).reshape(6, 6)
    assert all(sorted(epoch) == list(range(6)) for epoch in order.tolist())
    # There is a 1 in 48 chance that two of the six epochs have the same order, so one repeat is allowed.
    assert len({tuple(epoch) for epoch in order.tolist()}) >= 5


def test_a_very_late_step_and_a_list_of_one_sample_work(tmp_path):
    samples = write_pair(tmp_path, np.zeros((8, 8)))
    data = DataConfig(batch_size=2, crop_size=(4, 4))
    (batch,) = batches(samples, labels=PLAIN, data=data, start_step=10**9, steps=10**9 + 1)
    assert batch["index"].tolist() == [0, 0]


@pytest.mark.parametrize("kind", ["labelIds", "color"])
def test_both_label_kinds_give_the_same_train_ids(street_scenes, kind):
    samples = find_samples(str(street_scenes), "val")
    ids = np.concatenate([b["label"] for b in eval_batches(samples, CITYSCAPES, 1)])
    raw = np.stack([read_pixels(street_scenes / name) for name in samples.labels])
    np.testing.assert_array_equal(ids, CITYSCAPES.id_table()[raw])
    colored = find_samples(str(street_scenes), "val", "labelIds")
    names = tuple(name.replace("labelIds", kind) for name in colored.labels)
    other = dataclasses.replace(samples, labels=names, kind=kind)
    same_ids = np.concatenate([b["label"] for b in eval_batches(other, CITYSCAPES, 1)])
    # The polegroup id (18) is ignored, but polegroup has the same colour as pole (train id 5).
    np.testing.assert_array_equal(np.where(raw == 18, 5 if kind == "color" else 255, ids), same_ids)


def test_nchw_images_are_transposed(train_set):
    nchw = next(train_batches(train_set, CITYSCAPES, DATA, (1, 2, 3), seed=5, start_step=0, steps=1, layout="NCHW"))
    np.testing.assert_array_equal(nchw["image"].transpose(0, 2, 3, 1), batches(train_set, steps=1)[0]["image"])


def write_pair(root, label, mode="L", image_size=(8, 8)):
    """Write a data set with one image and one label, and return its samples."""
    root.mkdir(exist_ok=True)
    Image.new("RGB", image_size).save(root / "i.png")
    picture = label if isinstance(label, Image.Image) else Image.fromarray(np.asarray(label).astype(np.uint8), mode)
    picture.save(root / "l.png")
    (root / "list").mkdir(exist_ok=True)
    (root / "list" / "train.lst").write_text("i.png\tl.png\n")
    return find_samples(str(root), "train", "labelIds")


def test_a_palette_label_is_read_as_palette_indices(tmp_path):
    picture = Image.new("P", (8, 8), 2)
    picture.putpalette([9, 9, 9, 8, 8, 8, 7, 7, 7])
    (batch,) = eval_batches(write_pair(tmp_path, picture), PLAIN, 1)
    assert (batch["label"] == 2).all()


def test_grey_and_transparent_images_become_rgb(tmp_path):
    samples = write_pair(tmp_path, np.zeros((8, 8)))
    for picture in (Image.new("L", (8, 8), 7), Image.new("RGBA", (8, 8), (7, 7, 7, 0))):
        picture.save(tmp_path / "i.png")
        (batch,) = eval_batches(samples, PLAIN, 1)
        assert batch["image"].shape == (1, 8, 8, 3)
        assert (batch["image"] == 7).all()


def test_train_id_labels_are_read_unchanged(tmp_path):
    samples = write_pair(tmp_path, np.array([[0, 18], [255, 7]]).repeat(4, 0).repeat(4, 1))
    samples = dataclasses.replace(samples, kind="labelTrainIds")
    (batch,) = eval_batches(samples, CITYSCAPES, 1)
    assert batch["label"][0, ::4, ::4].tolist() == [[0, 18], [255, 7]]


BAD_LABELS = {
    "unknown id": (np.full((8, 8), 77), "L", r"l\.png holds the value 77 \(64 pixels\)"),
    "wrong size": (np.zeros((4, 6)), "L", r"i\.png and its label l\.png differ in size \(8x8 and 6x4 pixels\)"),
    "colours instead of ids": (np.eye(3)[[[0, 1] * 4] * 8], "RGB", r"l\.png is not an id image, because it has colours"),
    "16 bits": (Image.new("I;16", (8, 8), 256), "", r"l\.png holds the id 256\. Ids must be from 0 to 255"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
@pytest.mark.parametrize("training", [True, False])
def test_a_bad_label_is_named(tmp_path, case, training):
    label, mode, message = BAD_LABELS[case]
    samples = write_pair(tmp_path, label, mode)
    data = DataConfig(batch_size=2, crop_size=(2, 2))
    with pytest.raises(DataError, match=message) as caught:
        batches(samples, labels=PLAIN, data=data, steps=1) if training else list(eval_batches(samples, PLAIN, 1))
    assert "\n" not in str(caught.value)


# In a quality-90 JPEG file, the byte at the position of the PNG colour type happens to mean "palette".
@pytest.mark.parametrize(("kind", "mode", "options"), [("JPEG", "L", {"quality": 90}), ("JPEG", "RGB", {})])
def test_a_label_with_lossy_compression_is_rejected(tmp_path, kind, mode, options):
    samples = write_pair(tmp_path, np.zeros((8, 8)))
    Image.new(mode, (8, 8)).save(tmp_path / "l.png", kind, **options)
    if mode == "RGB":
        samples = dataclasses.replace(samples, kind="color")
    with pytest.raises(DataError, match=rf"l\.png is a {kind} file\. Lossy compression changes label values"):
        list(eval_batches(samples, PLAIN, 1))


@pytest.mark.parametrize("name", ["i.png", "l.png"])
def test_a_truncated_file_is_named(tmp_path, name):
    samples = write_pair(tmp_path, np.random.default_rng(0).integers(0, 3, (8, 8)))
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:60])
    with pytest.raises(DataError, match=rf"{name} cannot be read"):
        batches(samples, labels=PLAIN, data=DataConfig(batch_size=1, crop_size=(2, 2)), steps=1)


def test_an_unknown_colour_is_named(tmp_path):
    samples = write_pair(tmp_path, np.full((8, 8, 3), 4), "RGB")
    samples = dataclasses.replace(samples, kind="color")
    with pytest.raises(DataError, match=r"the value \(4, 4, 4\)"):
        list(eval_batches(samples, PLAIN, 1))


@pytest.mark.parametrize("name", ["i.png", "l.png"])
def test_a_truncated_palette_file_is_named(tmp_path, name):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 3, (8, 8)).astype(np.uint8), "P")
    samples = write_pair(tmp_path, picture)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-40])
    with pytest.raises(DataError, match=rf"{name} cannot be read"):
        batches(samples, labels=PLAIN, data=DataConfig(batch_size=1, crop_size=(2, 2)), steps=1)


def read_fingerprints(samples):
    return [list(samples.store.fingerprint(samples, i)) for i in range(len(samples))]


def test_fingerprints_in_batches_match_the_files(train_set, street_scenes):
    expected = np.array(read_fingerprints(train_set), np.uint8)
    assert len(np.unique(expected, axis=0)) == 6
    for batch in batches(train_set, steps=3):
        np.testing.assert_array_equal(batch["fingerprint"], expected[batch["index"]])
    for split in ("val", "test"):
        samples = find_samples(str(street_scenes), split, need_labels=False)
        (batch,) = eval_batches(samples, CITYSCAPES, 5)
        assert batch["valid"].tolist() == [i < len(samples) for i in range(5)]
        # Padding rows repeat the batch's first image.
        assert batch["index"].tolist() == [*range(len(samples)), *[0] * (5 - len(samples))]
        assert batch["fingerprint"].tolist() == [read_fingerprints(samples)[i] for i in batch["index"]]


@pytest.mark.parametrize("name", ["i.png", "l.png"])
@pytest.mark.parametrize("training", [True, False])
def test_a_fingerprint_changes_with_a_byte_that_does_not_affect_pixels(tmp_path, name, training):
    samples = write_pair(tmp_path, np.zeros((8, 8)))
    data = DataConfig(batch_size=1, crop_size=(2, 2))

    def only_batch():
        (batch,) = batches(samples, labels=PLAIN, data=data, steps=1) if training else eval_batches(samples, PLAIN, 1)
        return batch

    before = only_batch()
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b"\0")
    after = only_batch()
    assert after["fingerprint"].tolist() == read_fingerprints(samples) != before["fingerprint"].tolist()
    assert are_equal(after | {"fingerprint": before["fingerprint"]}, before)
