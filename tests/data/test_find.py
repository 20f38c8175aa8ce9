import pytest
from PIL import Image

from deeplab_jax.config import DataConfig
from deeplab_jax.data.find import find_split
from deeplab_jax.errors import DataError


def test_a_folder_of_files_is_read_as_files(street_scenes):
    samples = find_split(DataConfig(root=str(street_scenes)), "train")
    assert len(samples) == 6
    assert samples.store is None


def test_a_preparation_that_was_cut_short_is_told_from_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match="it holds nothing"):
        find_split(DataConfig(root=str(tmp_path)), "train")
    (tmp_path / "train-00000-1a2b3c4d.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds records that are not complete: run `data prepare` to its end"):
        find_split(DataConfig(root=str(tmp_path)), "train")


@pytest.mark.parametrize("names", [("img-00001.json", "img-00001.bin"), ("records.json", "manifest.json")])
def test_a_data_set_with_files_of_such_names_is_read_as_files(tmp_path, names):
    (tmp_path / "list").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    Image.new("L", (4, 4)).save(tmp_path / "la.png")
    (tmp_path / "list" / "train.lst").write_text("a.png\tla.png\n")
    for name in names:
        (tmp_path / name).write_text("{}")
    assert find_split(DataConfig(root=str(tmp_path)), "train").images == ("a.png",)
    with pytest.raises(DataError, match="no samples of split 'val'"):
        find_split(DataConfig(root=str(tmp_path)), "val")


@pytest.mark.parametrize("root", ["", "nowhere"])
def test_no_folder_is_one_line(root):
    with pytest.raises(DataError, match=rf"`data\.root` \(='{root}'\)"):
        find_split(DataConfig(root=root), "train")
