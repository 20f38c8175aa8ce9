import io

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.config import DataConfig
from deeplab_jax.data.inspection import check, open_splits
from deeplab_jax.data.omissions import find_clipping, find_omissions
from deeplab_jax.labels import LabelSet

VALUES = np.arange(256).reshape(16, 16)
TWO = LabelSet("two", ("a", "b"), ((1, 0, 0), (0, 1, 0)))


@pytest.mark.parametrize(
    ("dtype", "value_range", "text"),
    [
        (np.uint8, (0, 255), ""),
        (
            np.uint8,
            (0, 4095),
            r"values up to 255, but data.value_range (=(0,4095)) goes further, so the image becomes too dark",
        ),
        (np.uint8, (0, 1), "holds whole numbers, of which data.value_range (=(0,1)) keeps at most two"),
        (np.uint16, (0, 4095), ""),
        (np.float32, (0, 1), ""),
    ],
)
def test_a_value_range_for_other_files_is_noted(dtype, value_range, text):
    file = io.BytesIO()
    Image.fromarray(VALUES.astype(dtype)).save(file, "TIFF")
    file.seek(0)
    omissions = find_omissions(file, 1, value_range)
    assert list(omissions) == ["images that do not fit data.value_range"] * bool(text)
    assert text in "".join(omissions.values())


def test_an_image_is_clipped_if_most_of_its_values_become_black_or_white():
    half = np.uint8([[0, 255, 7, 8]])[..., None]
    assert find_clipping(half, (0.0, 9.0)) == {}
    assert find_clipping(np.uint8([[[0]]]), ()) == {}
    (text,) = find_clipping(np.uint8([[0, 255, 7]])[..., None], (0.0, 9.0)).values()
    assert text.startswith("becomes black or white in 67% of its values: data.value_range (=(0,9)) clips those outside.")


def test_the_check_notes_images_that_a_value_range_makes_black(tmp_path):
    for folder, values in (("input", VALUES * 16), ("target", VALUES % 2)):
        (tmp_path / folder / "train").mkdir(parents=True)
        Image.fromarray(values.astype(np.uint16)).save(tmp_path / folder / "train" / "a.png")
    sets, _ = open_splits(DataConfig(root=str(tmp_path), channels=1, value_range=(7000, 9000)), ["train"])
    texts = [problem.text for problem in check(sets, TWO).problems if "value_range" in problem.sort]
    assert [text.partition(" of its")[0] for text in texts] == [f"{tmp_path}/input/train/a.png becomes black or white in 100%"]
