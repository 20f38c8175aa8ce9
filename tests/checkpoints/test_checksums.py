import hashlib
import shutil
import subprocess

import pytest
from etils import epath

from deeplab_jax.checkpoints.checksums import SUMS, broken_seal, damaged_files, is_sealed, write_seal

FILES = {"_METADATA": b"{}", "model/d/0123": bytes(3_000_000), "model/manifest": b"m", "empty": b""}


@pytest.fixture
def folder(tmp_path):
    step = tmp_path / "7"
    for name, content in FILES.items():
        (step / name).parent.mkdir(parents=True, exist_ok=True)
        (step / name).write_bytes(content)
    return epath.Path(step)


@pytest.fixture
def sealed(folder):
    write_seal(folder)
    return folder


def test_the_sums_are_those_of_the_files_in_order(sealed):
    lines = [f"{hashlib.sha256(FILES[name]).hexdigest()}  {name}\n" for name in sorted(FILES)]
    assert (sealed / SUMS).read_text() == "".join(lines)
    assert sorted(path.name for path in sealed.iterdir()) == ["SHA256SUMS", "_METADATA", "empty", "model"]


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="coreutils are not installed")
def test_coreutils_agree(sealed):
    def check():
        return subprocess.run(["sha256sum", "-c", SUMS], cwd=sealed, capture_output=True, text=True, check=False)

    assert check().stdout.splitlines() == [f"{name}: OK" for name in sorted(FILES)]
    (sealed / "model" / "manifest").write_bytes(b"n")
    assert check().returncode == 1


def test_an_intact_folder_and_one_without_a_seal_are_told_apart(folder):
    assert broken_seal(folder) is None
    assert not is_sealed(folder)
    assert damaged_files(folder) == []
    write_seal(folder)
    assert is_sealed(folder)
    assert broken_seal(folder) == []


def test_changed_missing_and_extra_files_are_named(sealed):
    (sealed / "_METADATA").write_bytes(b"[]")
    (sealed / "model" / "manifest").unlink()
    (sealed / "model" / "d" / "4567").write_bytes(b"")
    assert broken_seal(sealed) == ["_METADATA", "model/d/4567", "model/manifest"]
    assert damaged_files(sealed) == ["_METADATA", "model/manifest"]


def test_one_bit_is_enough(sealed):
    path = sealed / "model" / "d" / "0123"
    content = bytearray(path.read_bytes())
    content[2_000_000] ^= 1
    path.write_bytes(content)
    assert broken_seal(sealed) == damaged_files(sealed) == ["model/d/0123"]


@pytest.mark.parametrize("noise", [b"", b"\xff\x00", b"no sum\n"])
def test_a_seal_that_is_damaged_itself_is_broken(sealed, noise):
    (sealed / SUMS).write_bytes(noise)
    assert SUMS in broken_seal(sealed)
    assert damaged_files(sealed) == [SUMS]


def test_a_seal_whose_writer_was_killed_is_no_file_of_the_folder(sealed):
    (sealed / f".{SUMS}.123.new").write_text("half")
    assert broken_seal(sealed) == []
    write_seal(sealed)
    assert "half" not in (sealed / SUMS).read_text()
    assert len((sealed / SUMS).read_text().splitlines()) == len(FILES)
