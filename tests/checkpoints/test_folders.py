import hashlib
import os
import shutil
import subprocess

import pytest
from etils import epath

from deeplab_jax.checkpoints.folders import (
    CHECKSUMS,
    DamagedError,
    find_changed_files,
    has_checksums,
    require_empty,
    require_unchanged,
    write_checksums,
)
from deeplab_jax.errors import ConfigError

FILES = {"_METADATA": b"{}", "model/d/0123": bytes(3_000_000), "model/manifest": b"m", "empty": b""}


@pytest.fixture
def folder(tmp_path):
    step = tmp_path / "7"
    for name, content in FILES.items():
        (step / name).parent.mkdir(parents=True, exist_ok=True)
        (step / name).write_bytes(content)
    return epath.Path(step)


@pytest.fixture
def folder_with_checksums(folder):
    write_checksums(folder)
    return folder


def test_the_checksums_are_listed_in_the_order_of_the_files(folder_with_checksums):
    lines = [f"{hashlib.sha256(FILES[name]).hexdigest()}  {name}\n" for name in sorted(FILES)]
    assert (folder_with_checksums / CHECKSUMS).read_text() == "".join(lines)
    assert sorted(path.name for path in folder_with_checksums.iterdir()) == ["SHA256SUMS", "_METADATA", "empty", "model"]


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="coreutils are not installed")
def test_coreutils_accept_the_checksums(folder_with_checksums):
    def check():
        return subprocess.run(
            ["sha256sum", "-c", CHECKSUMS], cwd=folder_with_checksums, capture_output=True, text=True, check=False
        )

    assert check().stdout.splitlines() == [f"{name}: OK" for name in sorted(FILES)]
    (folder_with_checksums / "model" / "manifest").write_bytes(b"n")
    assert check().returncode == 1


def flip_bit(path, position):
    """Flip one bit. A negative `position` counts from the end of the file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_an_intact_folder_has_no_changed_files(folder):
    assert find_changed_files(folder) is None
    assert not has_checksums(folder)
    require_unchanged(folder, ["_METADATA", "model"])
    write_checksums(folder)
    assert has_checksums(folder)
    assert find_changed_files(folder) == []
    require_unchanged(folder, ["_METADATA", "model"])


def test_changed_missing_and_extra_files_are_listed(folder_with_checksums):
    (folder_with_checksums / "_METADATA").write_bytes(b"[]")
    (folder_with_checksums / "model" / "manifest").unlink()
    (folder_with_checksums / "model" / "d" / "4567").write_bytes(b"")
    (folder_with_checksums / "notes.txt").write_bytes(b"")
    assert find_changed_files(folder_with_checksums) == ["_METADATA", "model/d/4567", "model/manifest", "notes.txt"]
    assert find_changed_files(folder_with_checksums, ["_METADATA"]) == ["_METADATA"]
    assert find_changed_files(folder_with_checksums, ["model", "absent"]) == ["model/d/4567", "model/manifest"]
    assert find_changed_files(folder_with_checksums, ["empty"]) == []
    with pytest.raises(DamagedError, match="2 of its files do not match SHA256SUMS, for example model/d/4567"):
        require_unchanged(folder_with_checksums, ["model"])


@pytest.mark.parametrize("position", [0, 2_000_000, -1])
def test_a_single_flipped_bit_is_detected(folder_with_checksums, position):
    flip_bit(folder_with_checksums / "model" / "d" / "0123", position)
    assert find_changed_files(folder_with_checksums) == find_changed_files(folder_with_checksums, ["model"]) == ["model/d/0123"]
    assert find_changed_files(folder_with_checksums, ["_METADATA"]) == []


def test_a_flipped_bit_in_the_checksums_is_detected(folder):
    (folder / "model" / "d" / "0123").write_bytes(b"short, because it is read often")
    write_checksums(folder)
    text = (folder / CHECKSUMS).read_bytes()
    end = text.index(b"\n")  # the end of _METADATA's line
    for position in range(len(text)):
        flip_bit(folder / CHECKSUMS, position)
        assert find_changed_files(folder)
        # Only the unchecked file's line is allowed to be wrong.
        assert position < end or find_changed_files(folder, ["empty", "model"])
        (folder / CHECKSUMS).write_bytes(text)


@pytest.mark.parametrize("noise", [b"", b"\xff\x00", b"no checksum\n"])
def test_an_invalid_checksum_file_is_reported(folder_with_checksums, noise):
    (folder_with_checksums / CHECKSUMS).write_bytes(noise)
    assert find_changed_files(folder_with_checksums)[0] == CHECKSUMS
    assert find_changed_files(folder_with_checksums, ["empty"]) == [CHECKSUMS, "empty"]


@pytest.mark.parametrize("name", ["size=[512,1024]", "run*", "run?", "old\\run"])
def test_a_path_in_which_orbax_would_lose_the_arrays_is_refused(name, tmp_path, monkeypatch):
    """Orbax 0.12 saves to such a path without an error, but then the checkpoint cannot be restored."""
    message = r"^`out` \(='/.*'\) cannot hold checkpoints, .* Choose a path without it\.$"
    with pytest.raises(ConfigError, match=message):
        require_empty(str(tmp_path / name))
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(ConfigError, match=message):
        require_empty("imported")


@pytest.mark.parametrize("name", ["{a} 50% $x #1", "ü]", "a b#(1){2}%20:@+,=~'ä"])
def test_other_characters_are_accepted(name, tmp_path):
    require_empty(str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []  # the check itself writes nothing


def test_temporary_checksum_files_are_ignored(folder_with_checksums):
    (folder_with_checksums / f".{CHECKSUMS}.123.new").write_text("half")
    assert find_changed_files(folder_with_checksums) == []
    write_checksums(folder_with_checksums)
    assert "half" not in (folder_with_checksums / CHECKSUMS).read_text()
    assert len((folder_with_checksums / CHECKSUMS).read_text().splitlines()) == len(FILES)


def test_a_folder_that_cannot_be_listed_is_no_changed_file(folder_with_checksums, monkeypatch):
    scan = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("model"):
            raise PermissionError
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        find_changed_files(folder_with_checksums)
