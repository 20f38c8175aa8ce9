import os

import pytest
from etils import epath
from PIL import Image

from deeplab_jax.config import DataConfig
from deeplab_jax.data.find import find_samples, find_split
from deeplab_jax.data.folders import list_files, list_folders, list_names, select
from deeplab_jax.errors import DataError

DENIED = PermissionError(13, "Permission denied")


@pytest.fixture
def forbid(monkeypatch):
    """Return a function that makes a folder unreadable, also for root."""

    def forbid(folder, error=DENIED):
        def refuse(function):
            def call(path):
                if os.fspath(path) == os.fspath(folder):
                    raise type(error)(*error.args, os.fspath(path))
                return function(path)

            return call

        for name in ("scandir", "listdir"):
            monkeypatch.setattr(os, name, refuse(getattr(os, name)))

    return forbid


def test_files_are_sorted_by_folder_and_listed_without_examining_them(tmp_path, monkeypatch):
    for name in ("b.jpg", "a/z.PNG", "a-b/y.png", "a.png", "Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    examined = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: examined.append(str(path)) or stat(path, **options))
    names = list_files(tmp_path)
    # By the parts of the path: "a/z" comes before "a-b/y", although "-" is before "/" in ASCII.
    assert names == ["Thumbs.db", "a/z.PNG", "a-b/y.png", "a.png", "b.jpg"]
    assert not [path for path in examined if path.lower().endswith((".png", ".jpg"))]
    assert select(names, (".png",)) == ["a/z.PNG", "a-b/y.png", "a.png"]


def test_a_missing_folder_is_empty(tmp_path):
    missing = epath.Path(tmp_path / "missing")
    assert list_files(missing) == list_folders(missing) == list_names(missing) == []


def test_only_visible_folders_are_listed(tmp_path):
    for name in ("b", "a", ".git", "lost+found"):
        (tmp_path / name).mkdir()
    (tmp_path / "c").touch()
    assert list_folders(epath.Path(tmp_path)) == ["a", "b"]


def test_every_link_to_a_folder_is_followed_because_its_names_can_have_other_masks(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "x.png").touch()
    (tmp_path / "near").mkdir()
    for name in ("z", "b", "a"):
        (tmp_path / "near" / name).symlink_to(tmp_path / "far")
    assert list_files(tmp_path / "near") == ["a/x.png", "b/x.png", "z/x.png"]


def test_links_that_form_loops_end(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").touch()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    files = list_files(tmp_path)
    assert files == ["a/to_b/x.png", "a/x.png", "b/to_a/x.png", "b/x.png"]


@pytest.mark.parametrize("error", [DENIED, OSError(5, "Input/output error")])
def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, forbid, error):
    (tmp_path / "aachen").mkdir()
    (tmp_path / "bochum").mkdir()
    (tmp_path / "aachen" / "x.png").touch()
    forbid(tmp_path / "bochum", error)
    for function, folder in ((list_files, tmp_path), (list_folders, tmp_path / "bochum"), (list_names, tmp_path / "bochum")):
        with pytest.raises(DataError, match=rf"The folder .*/bochum cannot be listed \({error.strerror}\)\. Make it readable"):
            function(epath.Path(folder))
    assert list_folders(epath.Path(tmp_path)) == ["aachen", "bochum"]


@pytest.mark.parametrize("folder", ["leftImg8bit/train/x", "leftImg8bit", "gtFine/train/x", "list"])
def test_every_folder_of_a_split_must_be_readable(tmp_path, forbid, folder):
    for name in ("leftImg8bit/train/x/a_leftImg8bit.png", "gtFine/train/x/a_gtFine_labelIds.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    (tmp_path / "list").mkdir()
    assert len(find_split(DataConfig(root=str(tmp_path)), "train")) == 1
    forbid(tmp_path / folder)
    with pytest.raises(DataError, match=r"The folder .* cannot be listed \(Permission denied\)"):
        find_split(DataConfig(root=str(tmp_path)), "train")


def test_folders_around_the_root_that_cannot_be_listed_are_not_suggested(tmp_path, forbid):
    (tmp_path / "set" / "photos").mkdir(parents=True)
    forbid(tmp_path)
    with pytest.raises(DataError, match=r"Found no samples of split 'train' below .*/set, which holds photos/"):
        find_samples(str(tmp_path / "set"), "train")
    forbid(tmp_path / "set" / "photos")
    with pytest.raises(DataError, match="which holds photos/"):
        find_samples(str(tmp_path / "set"), "train")


def test_the_notes_that_windows_adds_to_downloads_are_not_files_of_the_data_set(tmp_path):
    for name in ("a.png", "a.png:Zone.Identifier"):
        (tmp_path / name).touch()
    assert list_files(tmp_path) == ["a.png"]
