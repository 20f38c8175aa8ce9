import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from deeplab_jax.config import DataConfig
from deeplab_jax.data import find as find_module
from deeplab_jax.data.find import find_split
from deeplab_jax.data.freshness import read_stamp
from deeplab_jax.data.image_files import ImageFiles
from deeplab_jax.data.prepare import prepare
from deeplab_jax.data.samples import Samples
from deeplab_jax.errors import DataError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Return a folder with a three-sample data set and its prepared records."""
    folder = tmp_path_factory.mktemp("prepared")
    root = folder / "a set"
    (root / "list").mkdir(parents=True)
    for k in range(3):
        Image.new("RGB", (4, 4), (k, k, k)).save(root / f"{k}.png")
        Image.new("L", (4, 4), k).save(root / f"l{k}.png")
    (root / "list" / "train.lst").write_text("".join(f"{k}.png\tl{k}.png\n" for k in range(3)))
    prepare(DataConfig(root=str(root)), str(folder / "records"), ("train",), Console(file=io.StringIO()))
    return folder


@pytest.fixture
def root(prepared, tmp_path):
    return shutil.copytree(prepared / "a set", tmp_path / "a set")  # also copies the modification times


@pytest.fixture
def out(prepared, root, tmp_path):
    out = shutil.copytree(prepared / "records", tmp_path / "records")
    (out / "records.json").write_text((out / "records.json").read_text().replace(str(prepared), str(tmp_path)))
    return out


def find(out):
    return find_split(DataConfig(root=str(out)), "train")


def assert_stale(out, root, reason):
    with pytest.raises(DataError, match=reason) as caught:
        find(out)
    message = str(caught.value)
    assert message.startswith(f"The records in {out} are stale. ")
    command = f"deeplab-jax data prepare '{root}' --out {out} --splits train"
    assert message.endswith(f" Run `{command}` again. It rewrites only the shards that are missing, damaged or out of date.")
    assert "\n" not in message


@pytest.mark.parametrize("name", ["1.png", "l1.png"])
def test_records_are_stale_after_a_byte_changes_but_not_the_file_size(out, root, name):
    data = (root / name).read_bytes()
    (root / name).write_bytes(data[:-1] + b"\0")
    assert_stale(out, root, r"1 of 3 samples in .*a set have changed, such as 1\.png\.")


def test_records_are_not_stale_after_a_file_is_touched(out, root):
    os.utime(root / "1.png", (1, 1))
    assert len(find(out)) == 3


def test_unchanged_files_are_not_read(out, root, monkeypatch):
    monkeypatch.setattr(ImageFiles, "fingerprint", None)
    assert len(find(out)) == 3


@pytest.mark.parametrize("lines", ["0.png\tl0.png\n", "1.png\tl1.png\n0.png\tl0.png\n2.png\tl2.png\n", "0.png\tl1.png\n"])
def test_records_are_stale_after_the_list_changes(out, root, lines):
    (root / "list" / "train.lst").write_text(lines)
    assert_stale(out, root, rf"has changed \(records: 3 samples, .*train\.lst: {lines.count('l')} samples\)\.")


def test_records_of_joined_splits_are_stale_after_a_sample_moves_to_the_next_split(tmp_path):
    root, out = tmp_path / "set", tmp_path / "records"
    (root / "list").mkdir(parents=True)
    for i in range(4):
        Image.new("L", (2, 2)).save(root / f"{i}.png")

    def write_lists(**rows):
        for split, numbers in rows.items():
            (root / "list" / f"{split}.lst").write_text("".join(f"{i}.png\t{i}.png\n" for i in numbers))

    write_lists(train=[0, 1], pseudo=[2, 3])
    prepare(DataConfig(root=str(root)), str(out), ("train", "pseudo"), Console(file=io.StringIO()))
    data = DataConfig(root=str(out), train_split="train+pseudo", mix=(1, 1))
    assert find_split(data, data.train_split).part_sizes == (2, 2)
    write_lists(train=[0], pseudo=[1, 2, 3])
    find_module._find_prepared.cache_clear()
    with pytest.raises(DataError, match=r"changed \(records: 2 \+ 2 samples, .*: 1 \+ 3 samples\)"):
        find_split(data, data.train_split)


def test_records_are_stale_after_a_list_or_a_file_is_removed(out, root):
    (root / "l1.png").unlink()
    assert_stale(out, root, r"1 of 6 files from .*train\.lst are missing below .*: l1\.png\.")
    (root / "list" / "train.lst").unlink()
    assert_stale(out, root, r"no samples of split 'train' below")


def test_a_broken_symbolic_link_is_reported(out, root):
    (root / "1.png").unlink()
    (root / "1.png").symlink_to("nowhere")
    assert_stale(out, root, r"a set/1\.png cannot be read \(No such file or directory\)")


def test_records_can_be_used_without_their_source(out, root):
    shutil.rmtree(root)
    assert len(find(out)) == 3
    root.mkdir()  # like an unmounted mount point
    find_module._find_prepared.cache_clear()
    assert len(find(out)) == 3


@pytest.mark.parametrize("source", ["gs://bucket/set", "tfds:voc"])
def test_remote_sources_are_not_checked(source):
    assert not find_module._is_available(source)
    assert read_stamp(Samples("gs://bucket/set", ("a",), (), "labelIds", "", ImageFiles()), 0) == ()


def test_a_source_without_read_permission_counts_as_unavailable(tmp_path, monkeypatch):
    def deny(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", deny)
    assert not find_module._is_available(str(tmp_path))


def test_records_are_looked_up_once_per_process_until_they_change(out, root):
    assert find(out) is find(out)
    previous = find(out)
    Image.fromarray(np.full((4, 4, 3), 9, np.uint8)).save(root / "1.png")
    prepare(DataConfig(root=str(root)), str(out), ("train",), Console(file=io.StringIO()))
    assert find(out) is not previous
