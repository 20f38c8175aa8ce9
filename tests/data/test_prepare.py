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
from conftest import run_cli
from PIL import Image
from rich.console import Console

from deeplab_jax.config import DataConfig
from deeplab_jax.data import image_files
from deeplab_jax.data import prepare as prepare_module
from deeplab_jax.data.find import find_split
from deeplab_jax.data.prepare import prepare
from deeplab_jax.data.records import read_manifest
from deeplab_jax.data.samples import read_sample
from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.files import write_atomically
from deeplab_jax.runtime.work_shard import EVERYTHING, WorkShard

NUM_SAMPLES = 7


@pytest.fixture(autouse=True)
def use_three_samples_per_shard(monkeypatch):
    monkeypatch.setattr(prepare_module, "SHARD_SAMPLES", 3)


def write_list(root, split="train", order=range(NUM_SAMPLES)):
    (root / "list").mkdir(exist_ok=True)
    (root / "list" / f"{split}.lst").write_text("".join(f"{k}.png\tl{k}.png\n" for k in order))


def draw(root, k, seed=0):
    rng = np.random.default_rng([seed, k])
    Image.fromarray(rng.integers(0, 256, (8, 12, 3), np.uint8)).save(root / f"{k}.png")
    Image.fromarray(rng.integers(0, 3, (8, 12), np.uint8)).save(root / f"l{k}.png")


@pytest.fixture
def root(tmp_path):
    """Return a data set with seven training samples, two of which also form the validation split."""
    root = tmp_path / "set"
    root.mkdir()
    for k in range(NUM_SAMPLES):
        draw(root, k)
    write_list(root)
    write_list(root, "val", (5, 6))
    return root


@pytest.fixture
def out(tmp_path):
    return tmp_path / "records"


def run(root, out, splits=("train",), threads=0, label_kind="auto", share=EVERYTHING):
    """Prepare records and return the printed text."""
    console = Console(file=io.StringIO(), width=200)
    prepare(DataConfig(root=str(root), threads=threads, label_kind=label_kind), str(out), splits, console, share)
    return console.file.getvalue()


def read_files(out):
    """Return a dict mapping each file name, except the manifest, to (contents, inode)."""
    return {path.name: (path.read_bytes(), path.stat().st_ino) for path in out.iterdir() if path.name != "records.json"}


def list_names(out):
    """Return the sorted shard and sidecar file names, without the checksum digits."""
    return sorted(re.sub(r"-[0-9a-f]{8}\.bin", ".bin", name) for name in read_files(out))


def assert_holds(out, root, split="train"):
    records, files = (find_split(DataConfig(root=str(folder)), split) for folder in (out, root))
    assert records.images == files.images
    for i in range(len(files)):
        for a, b in zip(read_sample(records, i), read_sample(files, i), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.fixture
def decoded(monkeypatch):
    """Return a list to which the position of every decoded sample is appended."""
    positions = []
    decode = prepare_module._decode

    def record_positions(samples, rows, threads):
        for i, sample in zip(rows, decode(samples, rows, threads), strict=True):
            positions.append(i)
            yield sample

    monkeypatch.setattr(prepare_module, "_decode", record_positions)
    return positions


def test_the_folder_holds_only_shards_sidecar_files_and_the_manifest(root, out):
    output = run(root, out, ("train", "val"))
    assert "train: 7 samples from" in output
    names = [
        f"{name}.{suffix}" for name in ("train-00000", "train-00001", "train-00002", "val-00000") for suffix in ("bin", "json")
    ]
    assert sorted(path.name for path in out.iterdir()) == sorted(["records.json", *read_files(out)])
    assert list_names(out) == names
    (path,) = out.glob("train-00000-*.bin")
    assert path.stat().st_size == 3 * 8 * 12 * 4
    assert path.name == f"train-00000-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.bin"
    assert_holds(out, root)
    assert_holds(out, root, "val")


def test_a_second_run_reads_no_image_and_changes_nothing(root, out, decoded, monkeypatch):
    run(root, out)
    before = read_files(out), (out / "records.json").stat().st_ino
    assert len(decoded) == NUM_SAMPLES
    monkeypatch.setattr(image_files, "_read_bytes", None)  # any attempt to read file contents fails
    assert f"{out} is already up to date" in run(root, out)
    assert (read_files(out), (out / "records.json").stat().st_ino) == before
    assert len(decoded) == NUM_SAMPLES


def test_the_number_of_threads_does_not_change_the_files(root, tmp_path):
    for threads in (1, 5):
        run(root, tmp_path / str(threads), threads=threads)
    one, five = (read_files(tmp_path / str(threads)) for threads in (1, 5))
    assert {name: data for name, (data, _) in one.items()} == {name: data for name, (data, _) in five.items()}


class Killed(BaseException):
    """An exception that no handler catches, which simulates a killed process."""


def kill_at(monkeypatch, shard):
    """Abort the run at the first sample in a shard."""
    make_record = prepare_module._make_record

    def make_record_or_die(samples, i, *rest):
        if i == shard * 3:
            raise Killed
        return make_record(samples, i, *rest)

    monkeypatch.setattr(prepare_module, "_make_record", make_record_or_die)


@pytest.fixture
def dead_process_id():
    """Return the id of a process that has exited."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


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


def test_a_root_or_an_output_folder_that_cannot_be_used_is_an_error(root, out, tmp_path):
    run(root, out)
    with pytest.raises(DataError, match=r"`root` \(='.*records'\) already holds prepared records"):
        run(out, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    with pytest.raises(ConfigError, match=r"`--out` \(='.*set'\) holds .*, which is not part of prepared records"):
        run(root, root)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.json").write_text("mine")
    with pytest.raises(ConfigError, match=r"`--out` \(='.*mine'\) holds notes\.json, which is not part of prepared records"):
        run(root, tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.json").read_text() == "mine"
    with pytest.raises(ConfigError, match=r"`--out` \(='.*notes\.json'\) cannot be used \("):
        run(root, tmp_path / "mine" / "notes.json")


def test_the_output_folder_may_be_inside_the_data_set(root, decoded):
    run(root, root / "records")
    run(root, root / "records")
    assert len(decoded) == NUM_SAMPLES
    assert_holds(root / "records", root)


def test_a_relative_root_is_stored_as_an_absolute_path(root, out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("set", "records")
    assert read_manifest(str(out)).source == str(root)
    monkeypatch.chdir("/")
    draw(root, 2, seed=1)
    with pytest.raises(DataError, match="are stale"):
        find_split(DataConfig(root=str(out)), "train")


def test_the_error_for_a_broken_file_names_it_and_complete_shards_are_kept(root, out, decoded):
    contents = (root / "4.png").read_bytes()
    (root / "4.png").write_bytes(contents[:-30])
    with pytest.raises(DataError, match=r"set/4\.png cannot be read") as caught:
        run(root, out)
    assert "\n" not in str(caught.value)
    assert list_names(out) == ["train-00000.bin", "train-00000.json"]
    (root / "4.png").write_bytes(contents)
    decoded.clear()
    run(root, out)
    assert decoded == [3, 4, 5, 6]
    assert_holds(out, root)


def test_too_little_disk_space_is_an_error_before_anything_is_written(root, out, monkeypatch):
    run(root, out, ("train", "val"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    draw(root, 0, seed=1)
    run(root, out)  # the new shard replaces one of the same size
    assert_holds(out, root)
    shutil.rmtree(out)
    with pytest.raises(
        ConfigError, match=r"`--out` \(='.*'\) has 1e-07 GB of free space, but the records need about 3\.46e-06 GB\. Free"
    ):
        run(root, out, ("train", "val"))
    assert list(out.iterdir()) == []


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


def test_records_of_a_split_without_labels_hold_only_the_images(root, out):
    (root / "list" / "test.lst").write_text("".join(f"{k}.png\n" for k in range(2)))
    run(root, out, ("train", "test"))
    assert next(out.glob("test-00000-*.bin")).stat().st_size == 2 * 8 * 12 * 3
    (root / "list" / "mine.lst").write_text("0.png\n")
    with pytest.raises(DataError, match="names only images"):
        run(root, out, ("mine",))


def test_the_prepare_command(root, out, monkeypatch, capsys):
    code, output = run_cli(monkeypatch, capsys, "data", "prepare", root, "--out", out)
    assert code == 0
    assert "train: 7 samples from" in output
    assert_holds(out, root, "val")
    code, output = run_cli(monkeypatch, capsys, "data", "prepare", root, "--out", out, "--splits", "nope")
    assert code == 2
    assert output.startswith("error: Found no samples of split 'nope'")
    code, output = run_cli(monkeypatch, capsys, "data", "prepare", root, "--out", out, "--data-dir", "/x")
    assert code == 2
    assert output == f"error: `--data-dir` (='/x') only works with tfds:NAME, but ROOT is '{root}'. Leave it out.\n"


@pytest.mark.parametrize("values", [[[3]], [[3, 3], [3, 3]], [[5, 5, 0], [0, 7, 5]], [[2**24 - 1, 0]]])
def test_distinct_values_are_found(values):
    array = np.array(values, np.int32)
    assert prepare_module.find_distinct(array) == tuple(np.unique(array).tolist())


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


def swap_palettes(root, rows=(5,)):
    """Give the masks a palette, in which the masks in `rows` have the colours of two ids swapped."""
    colors = np.uint8([[0, 0, 0], [128, 0, 0], [0, 128, 0]])
    for k in range(NUM_SAMPLES):
        picture = Image.fromarray(np.asarray(Image.open(root / f"l{k}.png")), "P")
        picture.putpalette(colors[[0, 2, 1] if k in rows else [0, 1, 2]].tobytes())
        picture.save(root / f"l{k}.png")


def test_notes_about_the_files_are_printed(root, out):
    exif = Image.Exif()
    exif[274] = 3
    Image.new("RGB", (12, 8)).save(root / "0.png", exif=exif)
    shutil.rmtree(root / "list")
    for k in range(NUM_SAMPLES):
        for folder, name in (("input", f"{k}.png"), ("target", f"l{k}.png")):
            (root / folder / "train").mkdir(parents=True, exist_ok=True)
            (root / name).rename(root / folder / "train" / f"{k}.png")
    (root / "input" / "train" / "9.heic").touch()
    output = run(root, out).replace("\n", " ")
    assert "note: 1 file was left out, because the format cannot be read, such as input/train/9.heic" in output
    assert "note: input/train/0.png has the EXIF orientation 3" in output
    assert "9.heic" in run(root, out)  # also of records that are up to date


@pytest.mark.parametrize("splits", [("train",), ("val", "train")])
def test_suspicious_masks_are_refused_until_they_are_read_as_colours(root, out, splits):
    swap_palettes(root)
    for _ in range(2):  # the second run reuses all shards
        with pytest.raises(DataError, match=r"^The records of .* cannot be used\. The palettes of the masks differ\. In l"):
            run(root, out, splits)
        assert not (out / "records.json").exists()
    run(root, out, splits, label_kind="color")
    assert find_split(DataConfig(root=str(out)), "train").kind == "color"


def test_a_warning_about_suspicious_masks_comes_before_the_records_are_written(root, out, monkeypatch):
    swap_palettes(root)
    console = Console(file=io.StringIO(), width=1000)
    monkeypatch.setattr(prepare_module, "_write_shards", lambda *_: sys.exit())
    with pytest.raises(SystemExit):
        prepare(DataConfig(root=str(root)), str(out), ["train"], console)
    assert "WARNING: The palettes of the masks differ." in console.file.getvalue()


def test_palettes_of_two_splits_are_compared(root, out):
    write_list(root, "train", range(5))
    swap_palettes(root, (5, 6))
    run(root, out, ("train",))
    run(root, out, ("val",))
    with pytest.raises(DataError, match=r"of train, val cannot be used\. The palettes of the masks differ"):
        run(root, out, ("train", "val"))


def test_the_last_of_several_processes_refuses_suspicious_masks(root, out):
    swap_palettes(root, (6,))  # in the last shard
    run(root, out, share=WorkShard(1, 2))
    with pytest.raises(DataError, match="The palettes of the masks differ"):
        run(root, out, share=WorkShard(2, 2))
