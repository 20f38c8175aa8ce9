"""Tests for prepared records, which must yield exactly the same batches as the original files."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from deeplab_jax.config import DataConfig
from deeplab_jax.data import records
from deeplab_jax.data.evaluation import eval_batches, plan_evaluation
from deeplab_jax.data.find import describe, find_split
from deeplab_jax.data.instances import explain_missing_instances
from deeplab_jax.data.pipeline import train_batches
from deeplab_jax.data.prepare import prepare
from deeplab_jax.data.samples import digest, read_sample
from deeplab_jax.errors import DataError
from deeplab_jax.labels import CITYSCAPES, LabelSet

LABELS = LabelSet("plain", ("a", "b", "c"), ((10, 0, 0), (0, 200, 0), (0, 0, 255)))
EVERYTHING = {
    "scale": (0.5, 2.0),
    "cat_max_ratio": 0.75,
    "class_balanced": 0.5,
    "rotation": 20.0,
    "cutout": 0.3,
    "photometric": True,
}


def prepare_records(root, out, splits=("train",), **data):
    """Prepare records and return the printed text."""
    console = Console(file=io.StringIO(), width=200)
    prepare(DataConfig(root=str(root), **data), str(out), splits, console)
    return console.file.getvalue()


def write_data_set(root, *, sizes, mode="L", suffix="png", splits=("train",)):
    """Write random images, labels with values 0 to 2, and their lists to `root`, and return `root`."""
    rng = np.random.default_rng(0)
    (root / "list").mkdir(parents=True)
    for split in splits:
        lines = []
        for k, (height, width) in enumerate(sizes):
            Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(root / f"{split}{k}.{suffix}")
            values = np.kron(rng.integers(0, 3, (height // 4, width // 4), np.uint8), np.ones((4, 4), np.uint8))
            if mode == "RGB":
                label = Image.fromarray(np.array(LABELS.colors, np.uint8)[values])
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
    "ids in narrow, low, small and large images": {"sizes": [(40, 12), (8, 60), (4, 4), (60, 100), (40, 12)]},
}


def read_training_batches(samples, labels=LABELS, crop_size=(16, 24), start_step=0, steps=4, hosts=None, on_skip=None, **data):
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


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_batches_from_records_equal_batches_from_files(tmp_path, name):
    root, out = write_data_set(tmp_path / "set", **SETS[name]), tmp_path / "records"
    prepare_records(root, out)
    from_files, from_records = (find_split(DataConfig(root=str(folder)), "train") for folder in (root, out))
    assert (from_records.images, from_records.labels) == (from_files.images, from_files.labels)
    assert (from_records.kind, digest(from_records)) == (from_files.kind, digest(from_files))
    assert from_records.kind == ("color" if name == "colours" else "labelIds")
    if "palette" not in name:
        augmentation = EVERYTHING if "ids" in name else {}
        assert_same(read_training_batches(from_records, **augmentation), read_training_batches(from_files, **augmentation))
    assert_same(list(eval_batches(from_records, LABELS, 2)), list(eval_batches(from_files, LABELS, 2)))
    for i in range(len(from_files)):
        assert from_records.store.fingerprint(from_records, i) == from_files.store.fingerprint(from_files, i)
        for a, b in zip(read_sample(from_records, i), read_sample(from_files, i), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def scenes(street_scenes, tmp_path_factory):
    """Return the synthetic street scene folder and a folder with its records."""
    out = tmp_path_factory.mktemp("data") / "records"
    prepare_records(street_scenes, out, ("train", "val", "test"))
    return street_scenes, out


def find_both(scenes, split, **options):
    """Return the samples for one split, first from the records, then from the files."""
    root, out = scenes
    return tuple(find_split(DataConfig(root=str(folder)), split, **options) for folder in (out, root))


@pytest.mark.slow
def test_training_batches_agree_on_every_host_and_at_a_later_start_step(scenes):
    from_records, from_files = find_both(scenes, "train+val")
    assert from_records.part_sizes == from_files.part_sizes == (6, 3)
    assert digest(from_records) == digest(from_files)
    options = {"labels": CITYSCAPES, "crop_size": (32, 64), "steps": 4}
    expected = read_training_batches(from_files, **options)
    assert_same(read_training_batches(from_records, start_step=2, **options), expected[2:])
    for i in (0, 1):
        rows = [{name: value[2 * i : 2 * i + 2] for name, value in batch.items()} for batch in expected]
        assert_same(read_training_batches(from_records, hosts={"process_index": i, "process_count": 2}, **options), rows)


def test_batches_agree_for_a_split_without_labels(scenes):
    from_records, from_files = find_both(scenes, "test", need_labels=False)
    assert from_records.labels == ()
    assert_same(list(eval_batches(from_records, CITYSCAPES, 3)), list(eval_batches(from_files, CITYSCAPES, 3)))
    image, label = read_sample(from_records, 1)
    assert label is None
    np.testing.assert_array_equal(image, read_sample(from_files, 1)[0])
    with pytest.raises(DataError, match=r"The records in .* have no labels in split 'test'"):
        find_both(scenes, "test")
    samples = find_split(DataConfig(root=str(scenes[1]), label_kind="color"), "test", need_labels=False)
    assert digest(samples) == digest(find_split(DataConfig(root=str(scenes[0]), label_kind="color"), "test", need_labels=False))


def test_evaluation_batches_of_a_host_agree(scenes):
    from_records, from_files = find_both(scenes, "val")
    a, b = (
        list(eval_batches(samples, CITYSCAPES, 2, process_index=1, process_count=2)) for samples in (from_records, from_files)
    )
    assert_same(a, b)
    assert plan_evaluation(from_records, 2) == plan_evaluation(from_files, 2)


def test_the_summary_names_the_records(scenes):
    from_records, _ = find_both(scenes, "val")
    assert describe("val", from_records) == f"val: 3 samples from the records in {scenes[1]}, with labelIds labels"
    message = explain_missing_instances(from_records)
    assert f"instanceIds files are not available from the records in {scenes[1]}. " in message


@pytest.mark.parametrize(
    ("split", "options", "message"),
    [
        ("nope", {}, r"have no split 'nope', only train, val, test\. Run .* with `--splits nope`"),
        ("train+train", {}, r"leftImg8bit/train/.*\.png twice: it is in train and in train\. Use only one"),
        ("val+test", {"need_labels": False}, r"mixes labels \(labelIds in val and no labels in test\)"),
    ],
)
def test_splits_that_do_not_exist_or_cannot_be_joined_are_errors(scenes, split, options, message):
    with pytest.raises(DataError, match=message):
        find_split(DataConfig(root=str(scenes[1])), split, **options)


def test_splits_with_different_label_kinds_cannot_be_joined(tmp_path):
    root, out = write_data_set(tmp_path / "set", sizes=[(8, 8)], splits=("train", "val")), tmp_path / "records"
    prepare_records(root, out)
    prepare_records(root, out, ("val",), label_kind="labelTrainIds")
    with pytest.raises(DataError, match=r"mixes labels \(labelIds in train and labelTrainIds in val\)"):
        find_split(DataConfig(root=str(out)), "train+val")


def test_a_label_kind_that_differs_from_the_records_is_rejected(scenes):
    with pytest.raises(
        DataError, match=r"`data\.label_kind` \(='color'\) does not match the records in .*, which hold labelIds"
    ):
        find_split(DataConfig(root=str(scenes[1]), label_kind="color"), "train")


def find_with_unknown_value(tmp_path, mode, value):
    """Return the same samples from files and from records, with an unknown value in one label pixel of sample 2."""
    root = write_data_set(tmp_path / "set", sizes=[(24, 32)] * 5, mode=mode)
    with Image.open(root / "train2_label.png") as picture:
        label = np.array(picture)
    label[23, 31] = value
    Image.fromarray(label).save(root / "train2_label.png")
    prepare_records(root, tmp_path / "records")
    return tuple(find_split(DataConfig(root=str(tmp_path / name)), "train") for name in ("set", "records"))


@pytest.mark.parametrize(("mode", "value"), [("L", 77), ("RGB", (4, 5, 6))])
def test_the_error_for_an_unknown_value_is_the_same_as_with_files(tmp_path, mode, value):
    from_files, from_records = find_with_unknown_value(tmp_path, mode, value)
    messages = []
    for samples in (from_files, from_records):
        with pytest.raises(DataError) as caught:
            list(eval_batches(samples, LABELS, 1))
        messages.append(str(caught.value).replace(samples.root, "ROOT"))
    assert messages[0].startswith(f"ROOT/train2_label.png holds the value {value} (1 pixels), which the label set does not ")
    assert messages[1] == messages[0]


@pytest.mark.slow
def test_a_sample_with_an_unknown_value_is_skipped_as_with_files(tmp_path):
    from_files, from_records = find_with_unknown_value(tmp_path, "L", 77)
    errors = []
    options = {"crop_size": (4, 4), "steps": 3, "max_unreadable": 1, "on_skip": errors.append}
    batches = [read_training_batches(samples, **options) for samples in (from_files, from_records)]
    assert_same(*batches)
    assert len(errors) == 2
    assert not np.concatenate([batch["valid"] for batch in batches[0]]).all()


def test_a_record_lists_only_a_limited_number_of_label_values(tmp_path):
    root = write_data_set(tmp_path / "set", sizes=[(64, 192)], mode="RGB")
    colours = np.arange(64 * 64).astype(">u4").view(np.uint8).reshape(64, 64, 4)[..., 1:]
    # Lines that are 3 pixels wide are not taken for blended edges.
    Image.fromarray(colours.repeat(3, axis=1)).save(root / "train0_label.png")
    prepare_records(root, tmp_path / "records")
    from_records = find_split(DataConfig(root=str(tmp_path / "records")), "train")
    assert len(from_records.store.locations[0].record.values) == records.MOST_VALUES
    with pytest.raises(DataError, match=r"train0_label\.png holds the value \(0, 0, "):
        list(eval_batches(from_records, LABELS, 1))


@pytest.fixture(scope="module")
def records_without_source(tmp_path_factory):
    """Return a folder with records whose source has been removed."""
    folder = tmp_path_factory.mktemp("without_source")
    prepare_records(write_data_set(folder / "set", sizes=[(24, 32)] * 5), folder / "records")
    shutil.rmtree(folder / "set")
    return folder


@pytest.fixture
def records_copy(records_without_source, tmp_path):
    """Return a copy of the records that a test can damage."""
    return shutil.copytree(records_without_source / "records", tmp_path / "records")


def find_shard(folder):
    """Return the only shard in a folder."""
    (path,) = folder.glob("*.bin")
    return path


def test_records_can_be_moved_and_used_without_their_source(records_copy, tmp_path):
    before = list(eval_batches(find_split(DataConfig(root=str(records_copy)), "train"), LABELS, 2))
    moved = records_copy.rename(tmp_path / "moved")
    assert_same(list(eval_batches(find_split(DataConfig(root=str(moved)), "train"), LABELS, 2)), before)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"train-00000-\w{8}\.bin cannot be read \(.*No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"train-00000-\w{8}\.bin has 15359 bytes instead of 15360"),
    ],
)
def test_the_error_for_a_missing_or_truncated_shard_names_it_and_the_command(
    records_without_source, records_copy, damage, message
):
    damage(find_shard(records_copy))
    with pytest.raises(DataError, match=message) as caught:
        find_split(DataConfig(root=str(records_copy)), "train")
    command = f"deeplab-jax data prepare {records_without_source / 'set'} --out {records_copy} --splits train"
    assert f"Run `{command}` again" in str(caught.value)


def test_a_partial_copy_of_updated_records_is_an_error(tmp_path):
    root, out, copy = write_data_set(tmp_path / "set", sizes=[(8, 8)] * 70), tmp_path / "records", tmp_path / "copy"
    prepare_records(root, out)
    shutil.copytree(out, copy)
    Image.new("RGB", (8, 8)).save(root / "train66.png")
    prepare_records(root, out)
    shutil.rmtree(root)
    for name in ("records.json", "train-00000.json", "train-00001.json"):
        shutil.copy(out / name, copy)
    with pytest.raises(DataError, match=r"train-00001-\w{8}\.bin cannot be read \(.*No such file"):
        find_split(DataConfig(root=str(copy)), "train")
    (new,) = set(out.glob("*.bin")) - {out / path.name for path in copy.glob("*.bin")}
    shutil.copy(new, copy)
    assert len(find_split(DataConfig(root=str(copy)), "train")) == 70


@pytest.mark.parametrize(
    ("kinds", "data_dir", "arguments"),
    [
        (("labelIds", "labelIds"), "", "S --out R --splits train test"),
        (("color", "color"), "", "S --out R --splits train test --label-kind color"),
        (("color", "labelIds"), "", "S --out R --splits train test"),
        (("labelIds", "labelIds"), "a dir", "S --out R --splits train test --data-dir 'a dir'"),
    ],
)
def test_the_suggested_command_prepares_the_same_splits_with_the_same_options(kinds, data_dir, arguments):
    record = records.Record("a", "b", 1, 1, 1, (), "", ())
    splits = {
        name: records.Split(kind, (records.Shard("f", "", (record,)),))
        for name, kind in zip(("train", "test"), kinds, strict=True)
    }
    advice = records.advise_rerun(records.Manifest("S", data_dir, splits), "R")
    assert advice.startswith(f"Run `deeplab-jax data prepare {arguments}` again. ")


@pytest.mark.parametrize("is_truncated", [True, False])
def test_a_shard_that_is_replaced_during_a_run_is_an_error(records_copy, is_truncated):
    from_records = find_split(DataConfig(root=str(records_copy)), "train")
    data = find_shard(records_copy).read_bytes()
    (records_copy / "new").write_bytes(data[:-1] if is_truncated else data[::-1])
    (records_copy / "new").rename(find_shard(records_copy))
    with pytest.raises(
        DataError, match=r"train0\.png cannot be read from .*train-00000-\w{8}\.bin \(.* was replaced"
    ) as caught:
        list(eval_batches(from_records, LABELS, 1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"format": 2}', '{"format": 2, "source": "", "splits": []}', "\udcff", '{"splits": {}}']
)
def test_a_manifest_that_cannot_be_parsed_is_an_error(records_copy, text):
    (records_copy / "records.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(
        DataError, match=r"records\.json is not a valid records manifest \(.*\)\. Prepare the records again"
    ) as caught:
        find_split(DataConfig(root=str(records_copy)), "train")
    assert "\n" not in str(caught.value)


def test_a_manifest_in_a_different_format_is_an_error(records_copy):
    values = json.loads((records_copy / "records.json").read_text())
    (records_copy / "records.json").write_text(json.dumps(values | {"format": 7}))
    with pytest.raises(
        DataError, match=r"records\.json has format 7, but this version reads format 2\. Prepare the records again"
    ):
        find_split(DataConfig(root=str(records_copy)), "train")


def test_the_arrays_of_a_record_store_are_built_once(records_copy):
    from_records = find_split(DataConfig(root=str(records_copy)), "train")
    assert from_records.store._sizes is from_records.store._sizes  # cached, because a list can contain thousands of samples
    assert hash(from_records) == hash(from_records)
