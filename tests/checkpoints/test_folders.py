import hashlib
import shutil
import subprocess

import pytest
from etils import epath

from deeplab_jax.checkpoints.folders import (
    CHECKSUMS,
    DamagedError,
    find_changed_files,
    has_checksums,
    require_unchanged,
    write_checksums,
)

FILES = {"_METADATA": b"{}", "model/d/0123": bytes(3_000_000), "model/manifest": b"m", "empty": b""}


@pytest.fixture
def folder(tmp_path):
    step = tmp_path / "7"
    for name, content in FILES.items():
        (step / name).parent.mkdir(parents=True, exist_ok=True)
        (step / name).write_bytes(content)
    return epath.Path(step)


@pytest.fixture
def summed(folder):
    write_checksums(folder)
    return folder


def test_the_sums_are_those_of_the_files_in_order(summed):
    lines = [f"{hashlib.sha256(FILES[name]).hexdigest()}  {name}\n" for name in sorted(FILES)]
    assert (summed / CHECKSUMS).read_text() == "".join(lines)
    assert sorted(path.name for path in summed.iterdir()) == ["SHA256SUMS", "_METADATA", "empty", "model"]


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="coreutils are not installed")
def test_coreutils_agree(summed):
    def check():
        return subprocess.run(["sha256sum", "-c", CHECKSUMS], cwd=summed, capture_output=True, text=True, check=False)

    assert check().stdout.splitlines() == [f"{name}: OK" for name in sorted(FILES)]
    (summed / "model" / "manifest").write_bytes(b"n")
    assert check().returncode == 1


def flip(path, position):
    """Flips one bit; `position` counts from the end if it is negative."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_an_intact_folder_differs_from_one_without_checksums(folder):
    assert find_changed_files(folder) is None
    assert not has_checksums(folder)
    require_unchanged(folder, ["_METADATA", "model"])
    write_checksums(folder)
    assert has_checksums(folder)
    assert find_changed_files(folder) == []
    require_unchanged(folder, ["_METADATA", "model"])


def test_changed_missing_and_extra_files_are_named(summed):
    (summed / "_METADATA").write_bytes(b"[]")
    (summed / "model" / "manifest").unlink()
    (summed / "model" / "d" / "4567").write_bytes(b"")
    (summed / "notes.txt").write_bytes(b"")
    assert find_changed_files(summed) == ["_METADATA", "model/d/4567", "model/manifest", "notes.txt"]
    assert find_changed_files(summed, ["_METADATA"]) == ["_METADATA"]
    assert find_changed_files(summed, ["model", "absent"]) == ["model/d/4567", "model/manifest"]
    assert find_changed_files(summed, ["empty"]) == []
    with pytest.raises(DamagedError, match="2 of its files do not match SHA256SUMS, as model/d/4567"):
        require_unchanged(summed, ["model"])


@pytest.mark.parametrize("position", [0, 2_000_000, -1])
def test_one_bit_is_enough(summed, position):
    flip(summed / "model" / "d" / "0123", position)
    assert find_changed_files(summed) == find_changed_files(summed, ["model"]) == ["model/d/0123"]
    assert find_changed_files(summed, ["_METADATA"]) == []


def test_a_bit_of_the_checksums_themselves_is_noticed_wherever_it_matters(folder):
    (folder / "model" / "d" / "0123").write_bytes(b"short, to be read often")
    write_checksums(folder)
    text = (folder / CHECKSUMS).read_bytes()
    end = text.index(b"\n")  # of the line of _METADATA
    for position in range(len(text)):
        flip(folder / CHECKSUMS, position)
        assert find_changed_files(folder)
        # The line of a file that is not read is the one thing that may be wrong.
        assert position < end or find_changed_files(folder, ["empty", "model"])
        (folder / CHECKSUMS).write_bytes(text)


@pytest.mark.parametrize("noise", [b"", b"\xff\x00", b"no sum\n"])
def test_checksums_that_are_none_are_named(summed, noise):
    (summed / CHECKSUMS).write_bytes(noise)
    assert find_changed_files(summed)[0] == CHECKSUMS
    assert find_changed_files(summed, ["empty"]) == [CHECKSUMS, "empty"]


def test_half_written_checksums_are_no_file_of_the_folder(summed):
    (summed / f".{CHECKSUMS}.123.new").write_text("half")
    assert find_changed_files(summed) == []
    write_checksums(summed)
    assert "half" not in (summed / CHECKSUMS).read_text()
    assert len((summed / CHECKSUMS).read_text().splitlines()) == len(FILES)
