import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from deeplab_jax.data import ranges
from deeplab_jax.data.ranges import open_ranges, read_range, stat_file


@pytest.fixture
def path(tmp_path):
    (tmp_path / "f").write_bytes(bytes(range(256)) * 40)
    return tmp_path / "f"


def test_many_threads_read_the_requested_ranges(tmp_path):
    rng = np.random.default_rng(0)
    files = []
    for k in range(300):  # more files than the cache can keep open
        (tmp_path / str(k)).write_bytes(rng.bytes(50))
        files.append(stat_file(str(tmp_path / str(k))))
    contents = [(tmp_path / str(k)).read_bytes() for k in range(300)]
    requests = [(k, start) for k in range(300) for start in (0, 7, 30)] * 2

    def is_correct(request):
        k, start = request
        return read_range(files[k], start, 20) == contents[k][start : start + 20]

    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(is_correct, requests))
    if before:
        assert len(os.listdir("/proc/self/fd")) - before <= ranges._open.cache_info().maxsize
    ranges._open.cache_clear()
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before


def test_reading_past_the_end_of_a_file_is_an_error(path):
    file = stat_file(str(path))
    assert file.size == 10240
    assert read_range(file, 10200, 40) == bytes(range(216, 256))
    assert read_range(file, 10240, 0) == b""
    with pytest.raises(OSError, match=r"f ends at byte 10240"):
        read_range(file, 10200, 41)


def test_a_replaced_file_gives_its_old_contents_while_open_and_an_error_afterwards(path):
    old = stat_file(str(path))
    assert read_range(old, 1, 2) == b"\1\2"
    path.with_name("g").write_bytes(b"x" * 10240)
    path.with_name("g").rename(path)
    assert read_range(old, 3, 2) == b"\3\4"
    assert read_range(stat_file(str(path)), 3, 2) == b"xx"
    ranges._open.cache_clear()
    with pytest.raises(OSError, match="f was replaced while it was in use"):
        read_range(old, 3, 2)


def test_a_deleted_file_is_an_error(path):
    file = stat_file(str(path))
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_range(file, 0, 1)
    with pytest.raises(FileNotFoundError):
        stat_file(str(path))


def test_ranges_are_read_correctly_without_pread(path, monkeypatch):
    monkeypatch.delattr(os, "pread")
    file = stat_file(str(path))
    assert file.size == 10240
    assert read_range(file, 5, 3) == b"\5\6\7"
    with pytest.raises(OSError, match="f ends at byte 10240"):
        read_range(file, 10239, 3)


def test_many_ranges_are_read_correctly_without_pread(path, monkeypatch):
    monkeypatch.delattr(os, "pread")
    with open_ranges(stat_file(str(path))) as read:
        assert [read(start, 2) for start in (0, 700, 5)] == [b"\0\1", bytes([188, 189]), b"\5\6"]
        with pytest.raises(OSError, match="f ends at byte 10240"):
            read(10239, 3)
