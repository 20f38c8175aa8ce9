import pathlib

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.errors import DataError
from deeplab_jax.evaluation.pictures import name_results, require_images

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 7), np.uint8)
HWC = IMAGES.transpose(0, 2, 3, 1)


class TensorWithGradient:
    """Fails like a PyTorch tensor that requires a gradient."""

    shape = (2, 3, 5, 7)

    def __array__(self, *args, **kwargs):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")


@pytest.mark.parametrize("images", [IMAGES, list(IMAGES), HWC.transpose(0, 3, 1, 2), IMAGES[:, ::-1][:, ::-1], tuple(IMAGES)])
def test_arrays_and_lists_of_images_of_one_size_are_accepted(images):
    np.testing.assert_array_equal(require_images(images, 3), IMAGES)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([IMAGES[0], IMAGES[1][:, :4]], r"\(=2 images of different shapes\) cannot be used\. Call once for each size\."),
        ([Image.fromarray(HWC[0]), Image.fromarray(HWC[1][:4])], r"\(=.*\) is not "),
        (
            [Image.fromarray(image) for image in HWC],
            r"channels are last, so use np\.asarray\(images\)\.transpose\(0, 3, 1, 2\)\.",
        ),
        (
            TensorWithGradient(),
            r"\(=TensorWithGradient\) is not an array \(Can't call numpy\(\) on Tensor .*\)\.",
        ),
        (HWC, r"\(=uint8 \[2, 5, 7, 3\]\) .* Its channels are last, so use images\.transpose\(0, 3, 1, 2\)\."),
        (HWC[0], r"Give a single image as images\.transpose\(2, 0, 1\)\[None\]\."),
        (IMAGES[0], r"Give a single image as images\[None\]\."),
        (Image.fromarray(HWC[0]), r"Give a single image as np\.asarray\(images\)\.transpose\(2, 0, 1\)\[None\]\."),
        ((IMAGES / 255).astype("f"), r"\(=float32 \[2, 3, 5, 7\]\) .* Do not normalise or scale the values"),
        (IMAGES.astype(np.int64), r"\(=int64 \[2, 3, 5, 7\]\)"),
        (IMAGES > 100, r"\(=bool \[2, 3, 5, 7\]\)"),
        (IMAGES[:, :1], r"\(=uint8 \[2, 1, 5, 7\]\)"),
        (IMAGES[:, 0], r"\(=uint8 \[2, 5, 7\]\)"),
        (IMAGES[:0], r"\(=uint8 \[0, 3, 5, 7\]\)"),
        ([], r"\(=float64 \[0\]\) cannot be used\. Give RGB"),
        ("a.png", r"Read the files first, or use `deeplab-jax predict`\."),
        (["a.png", "b.png"], r"Read the files first"),
        (pathlib.Path("a.png"), r"Read the files first"),
        (None, r"\(=object \[\]\) cannot be used\. Give RGB"),
    ],
)
def test_other_values_are_refused_on_one_line(images, message):
    with pytest.raises(DataError, match=rf"^`images` .*{message}") as caught:
        require_images(images, 3)
    assert str(caught.value).endswith("Give RGB images as uint8 [n, 3, h, w].")
    assert "\n" not in str(caught.value)


def test_results_have_different_names():
    images = ["a.jpg", "a.png", "a.jpg.tif", "sub/a.jpg", "b.c.png"]
    assert name_results(images) == ["a.jpg", "a.png", "a.jpg.tif", "sub/a", "b.c"]
    assert name_results(["a.jpg", "a.png", "a.jpg.tif", "a.jpg.tif.bmp"]) == ["a.jpg", "a.png", "a.jpg.tif", "a.jpg.tif.bmp"]
