import io

import numpy as np
import pytest
import tifffile
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
    assert text.startswith("becomes black or white in 67% of its values, because data.value_range (=(0,9)) clips those")


def test_an_image_without_contrast_is_noted():
    (text,) = find_clipping(np.uint8([[3, 4, 5]])[..., None], (0.0, 255.0)).values()  # such as fractions
    assert text.startswith("has at most 3 of 256 levels of grey with data.value_range (=(0,255)). Use the lowest")
    assert find_clipping(np.uint8([[3, 10]])[..., None], (0.0, 255.0)) == {}


@pytest.mark.parametrize(("dtype", "value_range", "is_noted"), [("u2", (), True), ("u2", (0, 9), False), ("u1", (), False)])
def test_16_bits_of_many_bands_are_noted(dtype, value_range, is_noted):
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((4, 5, 6), dtype), photometric="minisblack", planarconfig="contig")
    file.seek(0)
    assert list(find_omissions(file, 6, value_range)) == ["images of 16 bits"] * is_noted


def test_the_check_notes_images_that_a_value_range_makes_black(tmp_path):
    for folder, values in (("input", VALUES * 16), ("target", VALUES % 2)):
        (tmp_path / folder / "train").mkdir(parents=True)
        Image.fromarray(values.astype(np.uint16)).save(tmp_path / folder / "train" / "a.png")
    sets, _ = open_splits(DataConfig(root=str(tmp_path), channels=1, value_range=(7000, 9000)), ["train"])
    texts = [problem.text for problem in check(sets, TWO).problems if "value_range" in problem.sort]
    assert [text.partition(" with")[0] for text in texts] == [
        f"{tmp_path}/input/train/a.png has at most 1 of 256 levels of grey"
    ]
