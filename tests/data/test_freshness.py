import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from deeplab_jax.config import DataConfig
from deeplab_jax.data import find as finding
from deeplab_jax.data.find import find_split
from deeplab_jax.data.image_files import ImageFiles
from deeplab_jax.data.prepare import prepare
from deeplab_jax.data.records import read_stamp
from deeplab_jax.data.samples import Samples
from deeplab_jax.errors import DataError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of three samples and their records."""
    folder = tmp_path_factory.mktemp("made")
    root = folder / "a set"
    (root / "list").mkdir(parents=True)
    for k in range(3):
        Image.new("RGB", (4, 4), (k, k, k)).save(root / f"{k}.png")
        Image.new("L", (4, 4), k).save(root / f"l{k}.png")
    (root / "list" / "train.lst").write_text("".join(f"{k}.png\tl{k}.png\n" for k in range(3)))
    prepare(DataConfig(root=str(root)), str(folder / "records"), ("train",), Console(file=io.StringIO()))
    return folder


@pytest.fixture
def root(made, tmp_path):
    return shutil.copytree(made / "a set", tmp_path / "a set")  # times of change as well


@pytest.fixture
def out(made, root, tmp_path):
    out = shutil.copytree(made / "records", tmp_path / "records")
    (out / "records.json").write_text((out / "records.json").read_text().replace(str(made), str(tmp_path)))
    return out


def find(out):
    return find_split(DataConfig(root=str(out)), "train")


def assert_stale(out, root, why):
    with pytest.raises(DataError, match=why) as caught:
        find(out)
    message = str(caught.value)
    assert message.startswith(f"the records in {out} are stale (")
    assert message.endswith(
        f"): run `deeplab-jax data prepare '{root}' --out {out} --splits train` again, which does what is needed"
    )
    assert "\n" not in message


@pytest.mark.parametrize("name", ["1.png", "l1.png"])
def test_another_byte_is_stale_though_the_size_is_the_same(out, root, name):
    data = (root / name).read_bytes()
    (root / name).write_bytes(data[:-1] + b"\0")
    assert_stale(out, root, r"\(1 of 3 samples changed in .*a set, 1\.png among them\)")


def test_a_file_that_was_touched_is_not(out, root):
    os.utime(root / "1.png", (1, 1))
    assert len(find(out)) == 3


def test_unchanged_files_are_not_read(out, root, monkeypatch):
    monkeypatch.setattr(ImageFiles, "fingerprint", None)
    assert len(find(out)) == 3


@pytest.mark.parametrize("lines", ["0.png\tl0.png\n", "1.png\tl1.png\n0.png\tl0.png\n2.png\tl2.png\n", "0.png\tl1.png\n"])
def test_another_list_is_stale(out, root, lines):
    (root / "list" / "train.lst").write_text(lines)
    assert_stale(out, root, rf"train\.lst has {lines.count('l')} samples, not the 3 prepared, or others\)")


def test_a_list_or_file_that_is_gone_is_stale(out, root):
    (root / "l1.png").unlink()
    assert_stale(out, root, r"1 of 6 files that .* names are missing below .*: l1\.png")
    (root / "list" / "train.lst").unlink()
    assert_stale(out, root, r"no samples of split 'train' below")


def test_a_link_that_leads_nowhere_is_one_line(out, root):
    (root / "1.png").unlink()
    (root / "1.png").symlink_to("nowhere")
    assert_stale(out, root, r"a set/1\.png cannot be read \(No such file or directory\)")


def test_where_the_source_is_not_at_hand_the_records_stand_alone(out, root):
    shutil.rmtree(root)
    assert len(find(out)) == 3
    root.mkdir()  # where nothing is mounted
    finding._find_prepared.cache_clear()
    assert len(find(out)) == 3


@pytest.mark.parametrize("source", ["gs://bucket/set", "tfds:voc"])
def test_what_lies_elsewhere_is_not_asked(source):
    assert not finding._is_at_hand(source)
    assert read_stamp(Samples("gs://bucket/set", ("a",), (), "labelIds", "", ImageFiles()), 0) == ()


def test_the_source_of_another_user_is_not_at_hand(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    assert not finding._is_at_hand(str(tmp_path))


def test_records_are_looked_at_once_a_process_while_they_stay(out, root):
    assert find(out) is find(out)
    before = find(out)
    Image.fromarray(np.full((4, 4, 3), 9, np.uint8)).save(root / "1.png")
    prepare(DataConfig(root=str(root)), str(out), ("train",), Console(file=io.StringIO()))
    assert find(out) is not before
