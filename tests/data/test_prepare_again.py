"""Test that a repeated `data prepare` writes only what is missing or has changed."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import threading

import preparation
import pytest
from preparation import NUM_SAMPLES, Killed, assert_holds, draw, kill_at, list_names, read_files, run, write_list

from deeplab_jax.config import DataConfig
from deeplab_jax.data import image_files
from deeplab_jax.data import prepare as prepare_module
from deeplab_jax.data.find import find_split
from deeplab_jax.data.records import read_manifest
from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.files import write_atomically

# fixtures
use_three_samples_per_shard = preparation.use_three_samples_per_shard
root = preparation.root
out = preparation.out
decoded = preparation.decoded


def test_a_second_run_reads_no_image_and_changes_nothing(root, out, decoded, monkeypatch):
    run(root, out)
    before = read_files(out), (out / "records.json").stat().st_ino
    assert len(decoded) == NUM_SAMPLES
    monkeypatch.setattr(image_files, "_read_bytes", None)  # any attempt to read file contents fails
    assert f"{out} is already up to date" in run(root, out)
    assert (read_files(out), (out / "records.json").stat().st_ino) == before
    assert len(decoded) == NUM_SAMPLES


@pytest.fixture
def dead_process_id():
    """Return the id of a process that has exited."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_existing_shards_are_checked_in_parallel_and_counted(root, out, monkeypatch):
    run(root, out)
    barrier, sha256 = threading.Barrier(3, timeout=20), prepare_module._sha256

    def wait_for_all(path):
        barrier.wait()
        return sha256(path)

    monkeypatch.setattr(prepare_module, "_sha256", wait_for_all)
    assert "3/3" in run(root, out, threads=3)


@pytest.mark.parametrize("shard", [0, 2])
def test_a_killed_run_continues_with_the_first_missing_shard(root, out, monkeypatch, decoded, dead_process_id, shard):
    with monkeypatch.context() as patch:
        kill_at(patch, shard)
        with pytest.raises(Killed):
            run(root, out)
    kept = read_files(out)
    assert len(kept) == 2 * shard  # each complete shard and its sidecar file, and no temporary files
    with pytest.raises(DataError, match=r"holds incomplete records|no samples of split"):
        find_split(DataConfig(root=str(out)), "train")
    decoded.clear()
    # A process killed by the operating system leaves these files behind.
    for name in (".train-00002.json.{}.new", ".train-00002.{}.bin.{}.new", "train-00002.{}.bin", ".records.json.{}.new"):
        (out / name.format(dead_process_id, dead_process_id)).write_bytes(b"unfinished")
    run(root, out)
    assert decoded == list(range(3 * shard, NUM_SAMPLES))
    assert read_files(out).items() >= kept.items()
    assert list_names(out) == [f"train-0000{n}.{suffix}" for n in range(3) for suffix in ("bin", "json")]
    assert_holds(out, root)


def test_an_interrupted_run_keeps_other_splits_and_removes_its_own_from_the_manifest(root, out, monkeypatch):
    run(root, out, ("train", "val"))
    draw(root, 0, seed=1)
    with monkeypatch.context() as patch:
        kill_at(patch, 0)
        with pytest.raises(Killed):
            run(root, out)
    assert_holds(out, root, "val")
    with pytest.raises(DataError, match=r"have no split 'train', only val\. Run .* with `--splits train`"):
        find_split(DataConfig(root=str(out)), "train")
    run(root, out)
    assert_holds(out, root)
    assert_holds(out, root, "val")


def test_only_the_shard_of_a_changed_sample_is_written_again(root, out, decoded):
    run(root, out)
    before = read_files(out)
    decoded.clear()
    draw(root, 4, seed=1)
    run(root, out)
    assert decoded == [3, 4, 5]
    after = read_files(out)
    assert len(after) == len(before)
    changed = {name for name in before if after.get(name) != before[name]}
    assert {name[:11] for name in changed} == {"train-00001"}
    assert len(changed) == 2
    assert_holds(out, root)


def test_records_follow_a_list_that_grows_and_shrinks(root, out, decoded):
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
    assert list_names(out) == ["train-00000.bin", "train-00000.json"]
    assert_holds(out, root)


def test_a_different_label_kind_prepares_all_samples_again(root, out, decoded):
    run(root, out)
    decoded.clear()
    run(root, out, label_kind="labelTrainIds")
    assert len(decoded) == NUM_SAMPLES
    assert find_split(DataConfig(root=str(out)), "train").kind == "labelTrainIds"


def test_damaged_shards_are_written_again(root, out, decoded):
    run(root, out)
    paths = sorted(out.glob("*.bin"))
    contents = [path.read_bytes() for path in paths]
    paths[0].write_bytes(contents[0][:100] + bytes([contents[0][100] ^ 1]) + contents[0][101:])
    paths[1].write_bytes(contents[1][:-1])
    paths[2].unlink()
    decoded.clear()
    run(root, out)
    assert decoded == list(range(NUM_SAMPLES))
    assert [path.read_bytes() for path in paths] == contents
    decoded.clear()
    (out / "train-00001.json").write_text('{"shard": []}')
    run(root, out)
    assert decoded == [3, 4, 5]


def test_splits_can_be_prepared_one_after_the_other(root, out):
    run(root, out)
    run(root, out, ("val",))
    assert list(read_manifest(str(out)).splits) == ["train", "val"]
    run(root, out, ("train+val", "train"))
    assert sorted(read_manifest(str(out)).splits) == ["train", "val"]
    for split in ("train", "val"):
        assert_holds(out, root, split)


def test_a_data_set_that_was_moved_is_not_decoded_again(root, out, tmp_path, decoded):
    run(root, out, ("train", "val"))
    moved = root.rename(tmp_path / "moved")
    with pytest.raises(
        ConfigError, match=r"already holds records for val from a different source \(.*set\)\. Add these splits to --splits"
    ):
        run(moved, out)
    assert read_manifest(str(out)).source == str(root)
    decoded.clear()
    run(moved, out, ("train", "val"))
    assert decoded == []
    assert read_manifest(str(out)).source == str(moved)
    # In a different folder, a file with the same name, size and modification time could be a different image.
    other = shutil.copytree(moved, tmp_path / "other")
    status = (other / "1.png").stat()
    draw(other, 1, seed=2)
    assert (other / "1.png").stat().st_size == status.st_size
    os.utime(other / "1.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    run(other, out, ("train", "val"))
    assert decoded == [0, 1, 2]


def test_the_next_run_continues_after_the_disk_was_full(root, out, monkeypatch, decoded):
    class FullDisk:
        free = 5 * 8 * 12 * 4

        def __init__(self, file):
            self.file = file

        def write(self, data):
            FullDisk.free -= len(data)
            if FullDisk.free < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.file.write(data)

    @contextlib.contextmanager
    def replace_on_full_disk(path):
        with write_atomically(path) as file:
            yield FullDisk(file) if path.suffix == ".bin" else file

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "write_atomically", replace_on_full_disk)
        with pytest.raises(ConfigError, match=r"Cannot write .*train-00001\.\d+\.bin: No space left on device"):
            run(root, out)
    assert list_names(out) == ["train-00000.bin", "train-00000.json"]
    assert not (out / "records.json").exists()
    decoded.clear()
    run(root, out)
    assert decoded == [3, 4, 5, 6]
    assert_holds(out, root)


def test_a_file_that_changes_while_it_is_read_is_stale(root, out, monkeypatch):
    make_record = prepare_module._make_record

    def change_sample_2(samples, i, *rest):
        if i == 2:
            draw(root, 2, seed=1)
        return make_record(samples, i, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_make_record", change_sample_2)
        run(root, out)
    with pytest.raises(DataError, match=r"are stale\. 1 of 7 samples in .* have changed"):
        find_split(DataConfig(root=str(out)), "train")
    run(root, out)
    assert_holds(out, root)
