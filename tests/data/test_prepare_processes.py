"""Test several processes that prepare records in one folder."""

import subprocess
import sys

import preparation
import pytest
from preparation import Killed, assert_holds, draw, kill_at, run, swap_palettes

from deeplab_jax.config import DataConfig
from deeplab_jax.data import prepare as prepare_module
from deeplab_jax.data.find import find_split
from deeplab_jax.data.records import read_manifest
from deeplab_jax.errors import DataError
from deeplab_jax.runtime.work_shard import WorkShard

# fixtures
use_three_samples_per_shard = preparation.use_three_samples_per_shard
root = preparation.root
out = preparation.out


def test_temporary_files_of_a_running_process_are_kept(root, out):
    out.mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        names = (".train-00000.{}.bin.{}.new", ".train-00000.json.{}.new", "train-00000.{}.bin", ".records.json.{}.new")
        names = [name.format(other.pid, other.pid) for name in names]
        for name in names:
            (out / name).write_bytes(b"unfinished")
        run(root, out)
        assert all((out / name).exists() for name in names)
        other.communicate(b"\n")
    run(root, out)
    assert not any((out / name).exists() for name in names)


def test_a_split_that_another_process_completes_in_the_meantime_is_kept(root, out, monkeypatch):
    reuse_shard = prepare_module._reuse_shard

    def prepare_val_first(folder, planned, *rest):
        if planned.name == "train-00000":
            monkeypatch.setattr(prepare_module, "_reuse_shard", reuse_shard)
            run(root, out, ("val",))
        return reuse_shard(folder, planned, *rest)

    monkeypatch.setattr(prepare_module, "_reuse_shard", prepare_val_first)
    with monkeypatch.context() as patch:
        kill_at(patch, 2)
        with pytest.raises(Killed):
            run(root, out)
    assert_holds(out, root, "val")
    run(root, out)
    assert sorted(read_manifest(str(out)).splits) == ["train", "val"]


def read_all(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Seven training and two validation samples are four record shards.
@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_several_processes_write_the_files_that_one_process_writes(root, out, order, tmp_path):
    run(root, tmp_path / "alone", ("train", "val"))
    lines = [run(root, out, ("train", "val"), share=WorkShard(number, 3)).splitlines()[-1] for number in order]
    assert read_all(out) == read_all(tmp_path / "alone")
    assert f"Shard {order[2]} of 3 is not done yet. The last one to end writes {out}/records.json." == lines[1]
    assert "not done" not in lines[2]


def test_without_one_of_the_processes_there_are_no_records(root, out):
    run(root, out, share=WorkShard(2, 2))
    with pytest.raises(DataError):
        find_split(DataConfig(root=str(out)), "train")
    assert "not done" not in run(root, out)  # one process can write what is missing
    assert_holds(out, root)


def test_a_shard_of_an_earlier_version_of_the_data_is_missing(root, out):
    for number in (1, 2):
        run(root, out, share=WorkShard(number, 2))
    draw(root, 1, seed=1)  # in the first record shard
    draw(root, 4, seed=1)  # in the second one
    assert "Shard 1 of 2 is not done yet." in run(root, out, share=WorkShard(2, 2))
    assert not (out / "records.json").exists()
    run(root, out, share=WorkShard(1, 2))
    assert_holds(out, root)
    assert f"Shard 1 of 2 of {out} is already up to date" in run(root, out, share=WorkShard(1, 2))


def test_the_unfinished_files_of_other_processes_are_kept(root, out):
    out.mkdir()
    for name in ("train-00000.999999.bin", "train-00001.999999.bin", "records.json.999999.new"):
        (out / name).touch()
    run(root, out, share=WorkShard(1, 2))
    assert not (out / "train-00000.999999.bin").exists()
    assert (out / "train-00001.999999.bin").exists()
    assert (out / "records.json.999999.new").exists()


def test_the_last_of_several_processes_refuses_suspicious_masks(root, out):
    swap_palettes(root, (6,))  # in the last shard
    run(root, out, share=WorkShard(1, 2))
    with pytest.raises(DataError, match="The palettes of the masks differ"):
        run(root, out, share=WorkShard(2, 2))
