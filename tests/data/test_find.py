import pytest

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
    (tmp_path / "train-00000.json").write_text("{}")
    with pytest.raises(DataError, match=r"holds records that are not complete: run `data prepare` to its end"):
        find_split(DataConfig(root=str(tmp_path)), "train")


@pytest.mark.parametrize("root", ["", "nowhere"])
def test_no_folder_is_one_line(root):
    with pytest.raises(DataError, match=rf"`data\.root` \(='{root}'\)"):
        find_split(DataConfig(root=root), "train")
