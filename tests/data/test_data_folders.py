import os

from etils import epath

from deeplab_jax.data.folders import list_files, list_folders, list_names, select


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
