import contextlib
import errno
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import deeplab
from PIL import Image
from rich.console import Console

from deeplab_jax.config import DataConfig
from deeplab_jax.data import image_files
from deeplab_jax.data import prepare as preparing
from deeplab_jax.data import samples as reading
from deeplab_jax.data.find import find_split
from deeplab_jax.data.prepare import prepare
from deeplab_jax.data.records import read_manifest
from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.files import replacing

NUM = 7


@pytest.fixture(autouse=True)
def three_samples_a_shard(monkeypatch):
    monkeypatch.setattr(preparing, "SHARD_SAMPLES", 3)


def write_list(root, split="train", order=range(NUM)):
    (root / "list").mkdir(exist_ok=True)
    (root / "list" / f"{split}.lst").write_text("".join(f"{k}.png\tl{k}.png\n" for k in order))


def draw(root, k, seed=0):
    rng = np.random.default_rng([seed, k])
    Image.fromarray(rng.integers(0, 256, (8, 12, 3), np.uint8)).save(root / f"{k}.png")
    Image.fromarray(rng.integers(0, 3, (8, 12), np.uint8)).save(root / f"l{k}.png")


@pytest.fixture
def root(tmp_path):
    """Seven samples, and a validation split of two of them."""
    root = tmp_path / "set"
    root.mkdir()
    for k in range(NUM):
        draw(root, k)
    write_list(root)
    write_list(root, "val", (5, 6))
    return root


@pytest.fixture
def out(tmp_path):
    return tmp_path / "records"


def run(root, out, splits=("train",), threads=0, label_kind="auto"):
    """What is printed."""
    console = Console(file=io.StringIO(), width=200)
    prepare(DataConfig(root=str(root), threads=threads, label_kind=label_kind), str(out), splits, console)
    return console.file.getvalue()


def shards(out):
    """Contents and identity of each file but the manifest."""
    return {path.name: (path.read_bytes(), path.stat().st_ino) for path in out.iterdir() if path.name != "records.json"}


def named(out):
    """Names of the shards and of the files beside them, sorted, without what is particular to a content."""
    return sorted(re.sub(r"-[0-9a-f]{8}\.bin", ".bin", name) for name in shards(out))


def assert_holds(out, root, split="train"):
    held, files = (find_split(DataConfig(root=str(each)), split) for each in (out, root))
    assert held.images == files.images
    for i in range(len(files)):
        for a, b in zip(reading.read_sample(held, i), reading.read_sample(files, i), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.fixture
def decoded(monkeypatch):
    """Positions of the samples that are decoded from here on."""
    seen = []
    decode = preparing._decode

    def noted(samples, rows, threads):
        for i, sample in zip(rows, decode(samples, rows, threads), strict=True):
            seen.append(i)
            yield sample

    monkeypatch.setattr(preparing, "_decode", noted)
    return seen


def test_shards_and_manifest_are_all_there_is(root, out):
    said = run(root, out, ("train", "val"))
    assert "train: 7 samples from" in said
    names = [
        f"{name}.{suffix}" for name in ("train-00000", "train-00001", "train-00002", "val-00000") for suffix in ("bin", "json")
    ]
    assert sorted(path.name for path in out.iterdir()) == sorted(["records.json", *shards(out)])
    assert named(out) == names
    (path,) = out.glob("train-00000-*.bin")
    assert path.stat().st_size == 3 * 8 * 12 * 4
    assert path.name == f"train-00000-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.bin"
    assert_holds(out, root)
    assert_holds(out, root, "val")


def test_a_second_run_reads_no_file_and_changes_nothing(root, out, decoded, monkeypatch):
    run(root, out)
    before = shards(out), (out / "records.json").stat().st_ino
    assert len(decoded) == NUM
    monkeypatch.setattr(image_files, "_contents", None)  # it goes by size and time
    assert f"{out} holds them already" in run(root, out)
    assert (shards(out), (out / "records.json").stat().st_ino) == before
    assert len(decoded) == NUM


def test_threads_change_no_byte(root, tmp_path):
    for threads in (1, 5):
        run(root, tmp_path / str(threads), threads=threads)
    one, five = (shards(tmp_path / str(threads)) for threads in (1, 5))
    assert {name: data for name, (data, _) in one.items()} == {name: data for name, (data, _) in five.items()}


class Killed(BaseException):
    """What no handler catches."""


def kill_at(monkeypatch, shard):
    """Ends the run in the middle of a shard."""
    record = preparing._record

    def killed(samples, i, *rest):
        if i == shard * 3:
            raise Killed
        return record(samples, i, *rest)

    monkeypatch.setattr(preparing, "_record", killed)


@pytest.fixture
def dead():
    """Id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_another_process_is_writing_stays(root, out):
    out.mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        names = (".train-00000.{}.bin.{}.new", ".train-00000.json.{}.new", "train-00000.{}.bin", ".records.json.{}.new")
        names = [name.format(other.pid, other.pid) for name in names]
        for name in names:
            (out / name).write_bytes(b"begun")
        run(root, out)
        assert all((out / name).exists() for name in names)
        other.communicate(b"\n")
    run(root, out)
    assert not any((out / name).exists() for name in names)


def test_splits_that_another_process_completes_meanwhile_stay(root, out, monkeypatch):
    kept = preparing._reuse_shard

    def late(folder, part, *rest):
        if part.name == "train-00000":
            monkeypatch.setattr(preparing, "_reuse_shard", kept)
            run(root, out, ("val",))
        return kept(folder, part, *rest)

    monkeypatch.setattr(preparing, "_reuse_shard", late)
    with monkeypatch.context() as patch:
        kill_at(patch, 2)
        with pytest.raises(Killed):
            run(root, out)
    assert_holds(out, root, "val")
    run(root, out)
    assert sorted(read_manifest(str(out)).splits) == ["train", "val"]


def test_shards_are_checked_in_parallel_and_counted(root, out, monkeypatch):
    run(root, out)
    together, digest = threading.Barrier(3, timeout=20), preparing._sha256

    def waiting(path):
        together.wait()
        return digest(path)

    monkeypatch.setattr(preparing, "_sha256", waiting)
    assert "3/3" in run(root, out, threads=3)


@pytest.mark.parametrize("shard", [0, 2])
def test_a_run_that_was_killed_goes_on_where_it_ended(root, out, monkeypatch, decoded, dead, shard):
    with monkeypatch.context() as patch:
        kill_at(patch, shard)
        with pytest.raises(Killed):
            run(root, out)
    kept = shards(out)
    assert len(kept) == 2 * shard  # no temporary file
    with pytest.raises(DataError, match=r"holds records that are not complete|no samples of split"):
        find_split(DataConfig(root=str(out)), "train")
    decoded.clear()
    # What a process leaves that is ended by the system.
    for name in (".train-00002.json.{}.new", ".train-00002.{}.bin.{}.new", "train-00002.{}.bin", ".records.json.{}.new"):
        (out / name.format(dead, dead)).write_bytes(b"begun")
    run(root, out)
    assert decoded == list(range(3 * shard, NUM))
    assert shards(out).items() >= kept.items()
    assert named(out) == [f"train-0000{n}.{suffix}" for n in range(3) for suffix in ("bin", "json")]
    assert_holds(out, root)


def test_a_run_that_is_cut_short_leaves_other_splits_whole_and_no_half_valid_one(root, out, monkeypatch):
    run(root, out, ("train", "val"))
    draw(root, 0, seed=1)
    with monkeypatch.context() as patch:
        kill_at(patch, 0)
        with pytest.raises(Killed):
            run(root, out)
    assert_holds(out, root, "val")
    with pytest.raises(DataError, match=r"have no split 'train' but val: prepare it with --splits train"):
        find_split(DataConfig(root=str(out)), "train")
    run(root, out)
    assert_holds(out, root)
    assert_holds(out, root, "val")


def test_a_changed_sample_redoes_its_shard_alone(root, out, decoded):
    run(root, out)
    before = shards(out)
    decoded.clear()
    draw(root, 4, seed=1)
    run(root, out)
    assert decoded == [3, 4, 5]
    after = shards(out)
    assert len(after) == len(before)
    gone = {name for name in before if after.get(name) != before[name]}
    assert {name[:11] for name in gone} == {"train-00001"}
    assert len(gone) == 2
    assert_holds(out, root)


def test_a_longer_and_a_shorter_list(root, out, decoded):
    write_list(root, order=range(4))
    run(root, out)
    decoded.clear()
    write_list(root)
    run(root, out)
    assert decoded == [3, 4, 5, 6]
    assert_holds(out, root)
    decoded.clear()
    write_list(root, order=range(3))
    run(root, out)
    assert decoded == []
    assert named(out) == ["train-00000.bin", "train-00000.json"]
    assert_holds(out, root)


def test_another_kind_is_another_set(root, out, decoded):
    run(root, out)
    decoded.clear()
    run(root, out, label_kind="labelTrainIds")
    assert len(decoded) == NUM
    assert find_split(DataConfig(root=str(out)), "train").kind == "labelTrainIds"


def test_a_damaged_shard_is_mended(root, out, decoded):
    run(root, out)
    paths = sorted(out.glob("*.bin"))
    whole = [path.read_bytes() for path in paths]
    paths[0].write_bytes(whole[0][:100] + bytes([whole[0][100] ^ 1]) + whole[0][101:])
    paths[1].write_bytes(whole[1][:-1])
    paths[2].unlink()
    decoded.clear()
    run(root, out)
    assert decoded == list(range(NUM))
    assert [path.read_bytes() for path in paths] == whole
    decoded.clear()
    (out / "train-00001.json").write_text('{"shard": []}')
    run(root, out)
    assert decoded == [3, 4, 5]


def test_splits_prepared_one_after_the_other_stay(root, out):
    run(root, out)
    run(root, out, ("val",))
    assert list(read_manifest(str(out)).splits) == ["train", "val"]
    run(root, out, ("train+val", "train"))
    assert sorted(read_manifest(str(out)).splits) == ["train", "val"]
    for split in ("train", "val"):
        assert_holds(out, root, split)


def test_a_set_that_was_moved_is_decoded_no_second_time(root, out, tmp_path, decoded):
    run(root, out, ("train", "val"))
    moved = root.rename(tmp_path / "moved")
    with pytest.raises(
        ConfigError, match=r"holds records of .*set in val: prepare all its splits again, or name another folder"
    ):
        run(moved, out)
    assert read_manifest(str(out)).source == str(root)
    decoded.clear()
    run(moved, out, ("train", "val"))
    assert decoded == []
    assert read_manifest(str(out)).source == str(moved)
    # What lies there under the same names, times and sizes may be another picture.
    other = shutil.copytree(moved, tmp_path / "other")
    status = (other / "1.png").stat()
    draw(other, 1, seed=2)
    assert (other / "1.png").stat().st_size == status.st_size
    os.utime(other / "1.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    run(other, out, ("train", "val"))
    assert decoded == [0, 1, 2]


def test_what_cannot_be_a_folder_of_records_is_refused(root, out, tmp_path):
    run(root, out)
    with pytest.raises(DataError, match=r"`root` \(='.*records'\) holds prepared records"):
        run(out, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    with pytest.raises(ConfigError, match=r"`--out` \(='.*set'\) holds .*, which is no record"):
        run(root, root)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.json").write_text("mine")
    with pytest.raises(ConfigError, match=r"`--out` \(='.*mine'\) holds notes\.json, which is no record"):
        run(root, tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.json").read_text() == "mine"
    with pytest.raises(ConfigError, match=r"`--out` \(='.*notes\.json'\) cannot be used \("):
        run(root, tmp_path / "mine" / "notes.json")


def test_a_folder_within_the_set_is_fine(root, decoded):
    run(root, root / "records")
    run(root, root / "records")
    assert len(decoded) == NUM
    assert_holds(root / "records", root)


def test_a_root_relative_to_here_is_found_from_elsewhere(root, out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("set", "records")
    assert read_manifest(str(out)).source == str(root)
    monkeypatch.chdir("/")
    draw(root, 2, seed=1)
    with pytest.raises(DataError, match="are stale"):
        find_split(DataConfig(root=str(out)), "train")


def test_a_broken_file_is_named_and_what_was_written_stays(root, out, decoded):
    whole = (root / "4.png").read_bytes()
    (root / "4.png").write_bytes(whole[:-30])
    with pytest.raises(DataError, match=r"set/4\.png cannot be read") as caught:
        run(root, out)
    assert "\n" not in str(caught.value)
    assert named(out) == ["train-00000.bin", "train-00000.json"]
    (root / "4.png").write_bytes(whole)
    decoded.clear()
    run(root, out)
    assert decoded == [3, 4, 5, 6]
    assert_holds(out, root)


def test_too_little_room_is_told_before_anything_is_touched(root, out, monkeypatch):
    run(root, out, ("train", "val"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    draw(root, 0, seed=1)
    run(root, out)  # takes the place of what is there
    assert_holds(out, root)
    shutil.rmtree(out)
    with pytest.raises(
        ConfigError, match=r"`--out` \(='.*'\) has 1e-07 GB free, and the records take about 3\.46e-06: make room"
    ):
        run(root, out, ("train", "val"))
    assert list(out.iterdir()) == []


def test_a_disk_that_fills_up_is_one_line_and_the_next_run_goes_on(root, out, monkeypatch, decoded):
    class Full:
        room = 5 * 8 * 12 * 4

        def __init__(self, file):
            self.file = file

        def write(self, data):
            Full.room -= len(data)
            if Full.room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.file.write(data)

    @contextlib.contextmanager
    def filling(path):
        with replacing(path) as file:
            yield Full(file) if path.suffix == ".bin" else file

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "replacing", filling)
        with pytest.raises(ConfigError, match=r"train-00001\.\d+\.bin cannot be written \(No space left on device\)"):
            run(root, out)
    assert named(out) == ["train-00000.bin", "train-00000.json"]
    assert not (out / "records.json").exists()
    decoded.clear()
    run(root, out)
    assert decoded == [3, 4, 5, 6]
    assert_holds(out, root)


def test_a_file_that_changes_while_it_is_read_is_looked_at_again(root, out, monkeypatch):
    record = preparing._record

    def touch(samples, i, *rest):
        if i == 2:
            draw(root, 2, seed=1)
        return record(samples, i, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "_record", touch)
        run(root, out)
    with pytest.raises(DataError, match=r"are stale \(1 of 7 samples changed"):
        find_split(DataConfig(root=str(out)), "train")
    run(root, out)
    assert_holds(out, root)


def test_a_split_without_labels_takes_the_images_alone(root, out):
    (root / "list" / "test.lst").write_text("".join(f"{k}.png\n" for k in range(2)))
    run(root, out, ("train", "test"))
    assert next(out.glob("test-00000-*.bin")).stat().st_size == 2 * 8 * 12 * 3
    (root / "list" / "mine.lst").write_text("0.png\n")
    with pytest.raises(DataError, match="names images without labels"):
        run(root, out, ("mine",))


def test_the_command(root, out, monkeypatch, capsys):
    code, said = deeplab(monkeypatch, capsys, "data", "prepare", root, "--out", out)
    assert code == 0
    assert "train: 7 samples from" in said
    assert_holds(out, root, "val")
    code, said = deeplab(monkeypatch, capsys, "data", "prepare", root, "--out", out, "--splits", "nope")
    assert code == 2
    assert said.startswith("error: no samples of split 'nope'")
    code, said = deeplab(monkeypatch, capsys, "data", "prepare", root, "--out", out, "--data-dir", "/x")
    assert code == 2
    assert said == f"error: `--data-dir` (='/x') goes with tfds:NAME, not with a folder (='{root}')\n"
