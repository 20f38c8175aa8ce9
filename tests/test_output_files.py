import os
import re

import pytest
from etils import epath

from deeplab_jax.errors import ConfigError
from deeplab_jax.files import require_file, require_folder, require_page, write_atomically


@pytest.mark.parametrize("name", ["a" * 251 + ".png", "图" * 83 + ".png"], ids=["ascii", "three bytes each"])
def test_the_longest_names_can_be_written(tmp_path, name):
    with write_atomically(epath.Path(tmp_path) / name) as file:
        file.write(b"x")
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"x"


def test_a_link_to_a_disk_that_is_not_mounted_is_named(tmp_path):
    (tmp_path / "runs").symlink_to("/missing/disk")
    link = re.escape(str(tmp_path / "runs"))
    message = rf"^`--out` \(='{link}.*'\) cannot be used, because {link} is a link to /missing/disk, which does not exist"
    for name in ("runs", "runs/r50"):
        with pytest.raises(ConfigError, match=message):
            require_folder(str(tmp_path / name), "--out", "runs/r50")
    with pytest.raises(ConfigError, match=message):
        require_file(str(tmp_path / "runs" / "report.html"), "--out")
    require_file(str(tmp_path / "runs"), "--out")  # a file replaces the link


def test_a_folder_that_is_not_writable_is_refused_before_the_work(tmp_path, monkeypatch):
    require_file(str(tmp_path / "new" / "report.html"), "--out")
    monkeypatch.setattr(os, "access", lambda folder, mode: os.fspath(folder) != os.fspath(tmp_path))
    with pytest.raises(ConfigError, match=r"^`--out` \(='.*report\.html'\) would be inside .*, which is not writable\."):
        require_file(str(tmp_path / "new" / "report.html"), "--out")


def test_a_page_has_the_name_of_a_page(tmp_path):
    for name in ("report.html", "report.HTM"):
        require_page(str(tmp_path / name), "--out")
    for name in ("report.pdf", "report"):
        with pytest.raises(ConfigError, match=rf"^`--out` \(='.*/{name}'\) does not end in \.html"):
            require_page(str(tmp_path / name), "--out")
    with pytest.raises(ConfigError, match="is a folder"):
        require_page(str(tmp_path), "--out")
