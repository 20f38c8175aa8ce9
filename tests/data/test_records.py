"""Records stand for the files that they were made of: every batch is the same to the byte."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from deeplab_jax.config import DataConfig
from deeplab_jax.data import records
from deeplab_jax.data import samples as reading
from deeplab_jax.data.find import describe, find_split
from deeplab_jax.data.instances import why_no_instances
from deeplab_jax.data.pipeline import eval_batches, plan_evaluation, train_batches
from deeplab_jax.data.prepare import prepare
from deeplab_jax.data.samples import digest
from deeplab_jax.errors import DataError
from deeplab_jax.labels import CITYSCAPES, LabelSet

PLAIN = LabelSet("plain", ("a", "b", "c"), ((10, 0, 0), (0, 200, 0), (0, 0, 255)))
EVERYTHING = {
    "scale": (0.5, 2.0),
    "cat_max_ratio": 0.75,
    "class_balanced": 0.5,
    "rotation": 20.0,
    "cutout": 0.3,
    "photometric": True,
}


def prepared(root, out, splits=("train",), **data):
    """What is printed."""
    console = Console(file=io.StringIO(), width=200)
    prepare(DataConfig(root=str(root), **data), str(out), splits, console)
    return console.file.getvalue()


def draw(root, *, sizes, mode="L", suffix="png", splits=("train",)):
    """Images and labels of the values 0, 1, 2, as a list names them."""
    rng = np.random.default_rng(0)
    (root / "list").mkdir(parents=True)
    for split in splits:
        lines = []
        for k, (height, width) in enumerate(sizes):
            Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(root / f"{split}{k}.{suffix}")
            values = np.kron(rng.integers(0, 3, (height // 4, width // 4), np.uint8), np.ones((4, 4), np.uint8))
            if mode == "RGB":
                label = Image.fromarray(np.array(PLAIN.colors, np.uint8)[values])
            else:
                label = Image.frombytes(mode, (width, height), values.tobytes())
            if mode == "P":
                label.putpalette([9, 9, 9, 8, 8, 8, 7, 7, 7])
            label.save(root / f"{split}{k}_label.png")
            lines.append(f"{split}{k}.{suffix}\t{split}{k}_label.png\n")
        (root / "list" / f"{split}.lst").write_text("".join(lines))
    return root


SETS = {
    "palette and JPEG": {"sizes": [(24, 32)] * 3, "mode": "P", "suffix": "jpg"},
    "colours": {"sizes": [(24, 32)] * 5, "mode": "RGB"},
    "narrow, low, small and large ids": {"sizes": [(40, 12), (8, 60), (4, 4), (60, 100), (40, 12)]},
}


def train(samples, labels=PLAIN, crop_size=(16, 24), start_step=0, steps=4, hosts=None, on_skip=None, **data):
    data = DataConfig(batch_size=4, crop_size=crop_size, **data)
    options = (hosts or {}) | ({"on_skip": on_skip} if on_skip else {})
    return list(train_batches(samples, labels, data, (1, 2, 3), seed=5, start_step=start_step, steps=steps, **options))


def assert_same(actual, expected):
    assert len(actual) == len(expected) > 0
    for a, b in zip(actual, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name], name)


@pytest.mark.parametrize("name", SETS)
def test_batches_from_records_are_those_from_files(tmp_path, name):
    root, out = draw(tmp_path / "set", **SETS[name]), tmp_path / "records"
    prepared(root, out)
    files, held = (find_split(DataConfig(root=str(each)), "train") for each in (root, out))
    assert (held.images, held.labels, held.kind, digest(held)) == (files.images, files.labels, files.kind, digest(files))
    assert held.kind == ("color" if name == "colours" else "labelIds")
    if "palette" not in name:
        augmentation = EVERYTHING if "ids" in name else {}
        assert_same(train(held, **augmentation), train(files, **augmentation))
    assert_same(list(eval_batches(held, PLAIN, 2)), list(eval_batches(files, PLAIN, 2)))
    for i in range(len(files)):
        assert reading.fingerprint(held, i) == reading.fingerprint(files, i)
        for a, b in zip(reading.read_sample(held, i), reading.read_sample(files, i), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def scenes(street_scenes, tmp_path_factory):
    """Root and records of the drawn street scenes."""
    out = tmp_path_factory.mktemp("data") / "records"
    prepared(street_scenes, out, ("train", "val", "test"))
    return street_scenes, out


def both(scenes, split, **options):
    """(records, files)"""
    root, out = scenes
    return tuple(find_split(DataConfig(root=str(each)), split, **options) for each in (out, root))


def test_street_scenes_are_the_same_on_every_host_and_after_a_late_start(scenes):
    held, files = both(scenes, "train+val")
    assert len(held) == 9
    assert digest(held) == digest(files)
    options = {"labels": CITYSCAPES, "crop_size": (32, 64), "steps": 4}
    expected = train(files, **options)
    assert_same(train(held, start_step=2, **options), expected[2:])
    for i in (0, 1):
        rows = [{name: value[2 * i : 2 * i + 2] for name, value in batch.items()} for batch in expected]
        assert_same(train(held, hosts={"process_index": i, "process_count": 2}, **options), rows)


def test_a_split_without_labels_is_the_same(scenes):
    held, files = both(scenes, "test", need_labels=False)
    assert held.labels == ()
    assert_same(list(eval_batches(held, CITYSCAPES, 3)), list(eval_batches(files, CITYSCAPES, 3)))
    image, label = reading.read_sample(held, 1)
    assert label is None
    np.testing.assert_array_equal(image, reading.read_sample(files, 1)[0])
    with pytest.raises(DataError, match=r"the records in .* have no labels in split 'test'"):
        both(scenes, "test")
    asked = find_split(DataConfig(root=str(scenes[1]), label_kind="color"), "test", need_labels=False)
    assert digest(asked) == digest(find_split(DataConfig(root=str(scenes[0]), label_kind="color"), "test", need_labels=False))


def test_hosts_evaluate_the_same(scenes):
    held, files = both(scenes, "val")
    a, b = (list(eval_batches(each, CITYSCAPES, 2, process_index=1, process_count=2)) for each in (held, files))
    assert_same(a, b)
    assert plan_evaluation(held, 2) == plan_evaluation(files, 2)


def test_what_was_found_is_said(scenes):
    held, _ = both(scenes, "val")
    assert describe("val", held) == f"val: 3 samples from the records in {scenes[1]}, labels of kind labelIds"
    assert why_no_instances(held) == f"the records in {scenes[1]} hold no instanceIds files; those of the data set do"


@pytest.mark.parametrize(
    ("split", "options", "message"),
    [
        ("nope", {}, "have no split 'nope' but train, val, test: prepare it with --splits nope"),
        ("train+train", {}, r"leftImg8bit/train/.*\.png is in train and in train: name only one"),
        ("val+test", {"need_labels": False}, r"mixes labels \(labelIds in val and no labels in test\)"),
    ],
)
def test_splits_that_cannot_be_read_are_one_line(scenes, split, options, message):
    with pytest.raises(DataError, match=message):
        find_split(DataConfig(root=str(scenes[1])), split, **options)


def test_splits_of_two_kinds_are_not_joined(tmp_path):
    root, out = draw(tmp_path / "set", sizes=[(8, 8)], splits=("train", "val")), tmp_path / "records"
    prepared(root, out)
    prepared(root, out, ("val",), label_kind="labelTrainIds")
    with pytest.raises(DataError, match=r"mixes labels \(labelIds in train and labelTrainIds in val\)"):
        find_split(DataConfig(root=str(out)), "train+val")


def test_another_label_kind_than_the_records_is_refused(scenes):
    with pytest.raises(DataError, match=r"`data\.label_kind` \(='color'\) is not that of the records in .* \(labelIds\)"):
        find_split(DataConfig(root=str(scenes[1]), label_kind="color"), "train")


def harmed(tmp_path, mode, value):
    """Files and records of a set in which one pixel of sample 2 has a value that is in no table."""
    root = draw(tmp_path / "set", sizes=[(24, 32)] * 5, mode=mode)
    with Image.open(root / "train2_label.png") as picture:
        label = np.array(picture)
    label[23, 31] = value
    Image.fromarray(label).save(root / "train2_label.png")
    prepared(root, tmp_path / "records")
    return tuple(find_split(DataConfig(root=str(tmp_path / each)), "train") for each in ("set", "records"))


@pytest.mark.parametrize(("mode", "value"), [("L", 77), ("RGB", (4, 5, 6))])
def test_a_value_outside_the_table_is_named_as_from_files(tmp_path, mode, value):
    files, held = harmed(tmp_path, mode, value)
    said = []
    for samples in (files, held):
        with pytest.raises(DataError) as caught:
            list(eval_batches(samples, PLAIN, 1))
        said.append(str(caught.value).replace(samples.root, "ROOT"))
    assert said[0].startswith(f"ROOT/train2_label.png holds the value {value} (1 pixels), which labels of kind ")
    assert said[1] == said[0]


def test_a_value_outside_the_table_is_left_out_as_from_files(tmp_path):
    files, held = harmed(tmp_path, "L", 77)
    told = []
    skipped = [train(each, crop_size=(4, 4), steps=3, max_unreadable=1, on_skip=told.append) for each in (files, held)]
    assert_same(*skipped)
    assert len(told) == 2
    assert not np.concatenate([batch["valid"] for batch in skipped[0]]).all()


def test_a_mask_of_blended_colours_is_named_and_its_note_is_short(tmp_path):
    root = draw(tmp_path / "set", sizes=[(64, 64)], mode="RGB")
    colours = np.arange(64 * 64).astype(">u4").view(np.uint8).reshape(64, 64, 4)[..., 1:]
    Image.fromarray(colours).save(root / "train0_label.png")
    prepared(root, tmp_path / "records")
    held = find_split(DataConfig(root=str(tmp_path / "records")), "train")
    assert len(held.store.locations[0].record.values) == records.MOST_VALUES
    with pytest.raises(DataError, match=r"train0_label\.png holds the value \(0, 0, "):
        list(eval_batches(held, PLAIN, 1))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Records without their source."""
    folder = tmp_path_factory.mktemp("alone")
    prepared(draw(folder / "set", sizes=[(24, 32)] * 5), folder / "records")
    shutil.rmtree(folder / "set")
    return folder


@pytest.fixture
def small(alone, tmp_path):
    """A copy of them that a test may break."""
    return shutil.copytree(alone / "records", tmp_path / "records")


def shard(folder):
    """The only one."""
    (path,) = folder.glob("*.bin")
    return path


def test_records_need_their_source_no_more_and_may_be_moved(small, tmp_path):
    before = list(eval_batches(find_split(DataConfig(root=str(small)), "train"), PLAIN, 2))
    moved = small.rename(tmp_path / "moved")
    assert_same(list(eval_batches(find_split(DataConfig(root=str(moved)), "train"), PLAIN, 2)), before)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.unlink(), r"train-00000-\w{8}\.bin cannot be read \(.*No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"train-00000-\w{8}\.bin has 15359 bytes instead of 15360"),
    ],
)
def test_a_shard_that_is_gone_or_cut_short_is_one_line(alone, small, harm, message):
    harm(shard(small))
    with pytest.raises(DataError, match=message) as caught:
        find_split(DataConfig(root=str(small)), "train")
    assert f"run `deeplab-jax data prepare {alone / 'set'} --out {small} --splits train` again" in str(caught.value)


def test_a_copy_of_a_refreshed_folder_that_was_cut_short_is_not_read(tmp_path):
    root, out, copy = draw(tmp_path / "set", sizes=[(8, 8)] * 70), tmp_path / "records", tmp_path / "copy"
    prepared(root, out)
    shutil.copytree(out, copy)
    Image.new("RGB", (8, 8)).save(root / "train66.png")
    prepared(root, out)
    shutil.rmtree(root)
    for name in ("records.json", "train-00000.json", "train-00001.json"):
        shutil.copy(out / name, copy)
    with pytest.raises(DataError, match=r"train-00001-\w{8}\.bin cannot be read \(.*No such file"):
        find_split(DataConfig(root=str(copy)), "train")
    (new,) = set(out.glob("*.bin")) - {out / path.name for path in copy.glob("*.bin")}
    shutil.copy(new, copy)
    assert len(find_split(DataConfig(root=str(copy)), "train")) == 70


@pytest.mark.parametrize(
    ("kinds", "data_dir", "words"),
    [
        (("labelIds", "labelIds"), "", "S --out R --splits train test"),
        (("color", "color"), "", "S --out R --splits train test --label-kind color"),
        (("color", "labelIds"), "", "S --out R --splits train test"),
        (("labelIds", "labelIds"), "a dir", "S --out R --splits train test --data-dir 'a dir'"),
    ],
)
def test_the_command_that_is_advised_makes_the_same_records(kinds, data_dir, words):
    record = records.Record("a", "b", 1, 1, 1, (), "", ())
    splits = {
        name: records.Split(kind, (records.Shard("f", "", (record,)),))
        for name, kind in zip(("train", "test"), kinds, strict=True)
    }
    said = records.prepare_again(records.Manifest("S", data_dir, splits), "R")
    assert said == f"run `deeplab-jax data prepare {words}` again, which does what is needed"


@pytest.mark.parametrize("cut", [True, False])
def test_a_shard_that_changes_under_a_run_is_one_line_and_never_read_wrongly(small, cut):
    held = find_split(DataConfig(root=str(small)), "train")
    data = shard(small).read_bytes()
    (small / "new").write_bytes(data[:-1] if cut else data[::-1])
    (small / "new").rename(shard(small))
    with pytest.raises(DataError, match=r"train-00000-\w{8}\.bin cannot be read at train0\.png \(.* was replaced") as caught:
        list(eval_batches(held, PLAIN, 1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"format": 2}', '{"format": 2, "source": "", "splits": []}', "\udcff", '{"splits": {}}']
)
def test_a_garbled_manifest_is_one_line(small, text):
    (small / "records.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(
        DataError, match=r"records\.json is no list of prepared records that can be read \(.*\): prepare them again"
    ) as caught:
        find_split(DataConfig(root=str(small)), "train")
    assert "\n" not in str(caught.value)


def test_another_format_is_named(small):
    values = json.loads((small / "records.json").read_text())
    (small / "records.json").write_text(json.dumps(values | {"format": 7}))
    with pytest.raises(DataError, match=r"records\.json has format 7, this version reads 2: prepare the records again"):
        find_split(DataConfig(root=str(small)), "train")


def test_records_are_read_one_by_one_at_no_great_cost(small):
    held = find_split(DataConfig(root=str(small)), "train")
    assert held.store._sizes is held.store._sizes  # a list of thousands is not walked for each
    assert hash(held) == hash(held)
