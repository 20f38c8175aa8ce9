"""Test what `data prepare` writes and refuses."""

import hashlib
import io
import pwd
import shutil
import sys
from types import SimpleNamespace

import preparation
import pytest
from conftest import run_cli
from PIL import Image
from preparation import NUM_SAMPLES, assert_holds, draw, list_names, read_files, run, swap_palettes, write_list
from rich.console import Console

from deeplab_jax.config import DataConfig
from deeplab_jax.data import prepare as prepare_module
from deeplab_jax.data.find import find_split
from deeplab_jax.data.prepare import prepare
from deeplab_jax.data.records import read_manifest
from deeplab_jax.errors import ConfigError, DataError

# fixtures
use_three_samples_per_shard = preparation.use_three_samples_per_shard
root = preparation.root
out = preparation.out
decoded = preparation.decoded


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


def test_the_number_of_threads_does_not_change_the_files(root, tmp_path):
    for threads in (1, 5):
        run(root, tmp_path / str(threads), threads=threads)
    one, five = (read_files(tmp_path / str(threads)) for threads in (1, 5))
    assert {name: data for name, (data, _) in one.items()} == {name: data for name, (data, _) in five.items()}


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


def test_records_are_prepared_again_where_the_user_has_no_name(root, out, monkeypatch):
    """As in a container that runs with a user id of the host."""
    run(root, out)
    draw(root, 0, seed=1)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
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
