import json
import math

import numpy as np
import pytest
from PIL import Image
from test_find import write_list

from deeplab_jax.config import DataConfig
from deeplab_jax.data.inspection import as_json, check, class_weights, open_splits, read_examples
from deeplab_jax.labels import LabelSet
from deeplab_jax.pages import check as check_page

LABELS = LabelSet("abc", ("a", "b", "<c>"), ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
SIZE = (100, 80)  # width, height


def photo(seed, mode="RGB"):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)).convert(mode)


def mask(*values, size=SIZE):
    array = np.full((size[1], size[0]), values[0], np.uint8)
    for row, value in enumerate(values[1:]):
        array[row] = value
    return Image.fromarray(array)


@pytest.fixture
def report(tmp_path):
    """A function from splits, each a list of (image, label), to the report on them."""

    def write(**splits):
        for split, pairs in splits.items():
            lines = []
            for i, (image, label) in enumerate(pairs):
                suffix = "jpg" if image.mode == "CMYK" else "png"
                image.save(tmp_path / f"{split}{i}.{suffix}")
                label.save(tmp_path / f"{split}{i}_label.png")
                lines.append(f"{split}{i}.{suffix} {split}{i}_label.png\n")
            write_list(tmp_path, "".join(lines), split)
        return again(*splits)

    def again(*splits):
        sets, problems = open_splits(DataConfig(root=str(tmp_path)), splits)
        return check(sets, LABELS, problems)

    write.again = again
    return write


def found(report, sort, part=""):
    return [p for p in report.problems if p.sort == sort and part in p.text]


def test_a_sound_set_is_counted(report):
    result = report(train=[(photo(0), mask(0, 1, 255)), (photo(1), mask(2))], val=[(photo(2), mask(0, 1, 2))])
    assert not result.problems
    assert not result.fails
    train = result.tallies["train"]
    assert train.pixels.tolist() == [78 * 100, 100, 8000]
    assert train.images.tolist() == [1, 1, 1]
    assert train.ignored == 100
    assert train.sizes == {SIZE: 2}
    assert (train.image_modes, train.label_modes) == ({"RGB": 2}, {"L": 2})


def test_values_outside_the_label_set_are_named_with_file_and_pixels(report):
    result = report(train=[(photo(0), mask(0, 1, 2)), (photo(1), mask(0, 7, 7, 9))])
    (problem,) = found(result, "values outside the label set")
    assert "train1_label.png holds 7 (200 pixels), 9 (100 pixels)" in problem.text
    assert result.fails
    assert result.tallies["train"].unknown == 300


def test_a_mask_that_was_resized_with_blending_is_told(report):
    result = report(train=[(photo(0), mask(0, 1, 2)), (photo(1), mask(*range(20)))])
    assert len(found(result, "values outside the label set", "and 12 more, in no entry of the label set abc: was it")) == 1


@pytest.mark.parametrize(
    ("label", "part"),
    [
        (mask(0, size=(80, 100)), "differ in size (100x80 and 80x100 pixels)"),
        (Image.new("I;16", SIZE), "mode I;16): save it as 8-bit grey PNG"),
        (Image.new("RGB", SIZE), "mode RGB): for colours set data.label_kind=color"),
    ],
    ids=["turned", "16-bit", "colours"],
)
def test_labels_that_training_cannot_use(report, label, part):
    result = report(train=[(photo(0), mask(0, 1, 2)), (photo(1), label)])
    (problem,) = found(result, "cannot be used")
    assert part in problem.text
    assert result.fails
    assert sum(result.tallies["train"].sizes.values()) == 1


def test_truncated_files(report, tmp_path):
    report(train=[(photo(0), mask(0, 1, 2)), (photo(1), mask(0)), (photo(2), mask(0))])
    for name in ("train1.png", "train2_label.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-60])
    result = report.again("train")
    assert len(found(result, "cannot be used", "cannot be read")) == 2
    assert result.fails


def test_an_image_of_which_evaluation_cannot_tell_the_size(report, monkeypatch):
    report(train=[(photo(0), mask(0, 1, 2))])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    result = report.again("train")
    assert len(found(result, "cannot be used", "train0.png cannot be read as an image")) == 1
    assert result.fails


def test_a_jpeg_mask_is_called_one_whatever_its_values(report, tmp_path):
    report(train=[(photo(0), mask(0, 1, 2)), (photo(1), mask(0))])
    photo(1, "L").save(tmp_path / "train1_label.png", "JPEG", quality=90)
    (problem,) = [p for p in report.again("train").problems if p.fails]
    assert "train1_label.png is a JPEG file: labels must be PNG" in problem.text


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_images_of_other_modes_can_be_trained_with_and_are_noted(report, mode):
    result = report(train=[(photo(0, mode), mask(0, 1, 2))])
    assert not result.fails
    assert [p.sort for p in result.problems] == [f"images of mode {mode}"]


def test_a_16_bit_image_is_noted(report):
    image = Image.fromarray(np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE[1], SIZE[0]))
    result = report(train=[(image, mask(0, 1, 2))])
    assert not result.fails
    assert len(found(result, "images of mode I;16", "16 bits a value")) == 1


def test_a_palette_label_is_read_by_its_indices(report):
    result = report(train=[(photo(0), mask(0, 1, 2).convert("P"))])
    assert result.tallies["train"].label_modes == {"P": 1}
    assert not result.fails


def test_the_same_picture_twice(report):
    result = report(train=[(photo(0), mask(0, 1, 2)), (photo(0), mask(0))], val=[(photo(0), mask(0, 1, 2))])
    assert len(found(result, "the same picture twice in a split", "train1.png is the same picture as train0.png")) == 1
    assert (
        len(found(result, "the same picture in two splits", "val0.png of val is the same picture as train0.png of train")) == 1
    )
    assert not result.fails


def test_ignored_labels_and_classes_that_are_not_there(report):
    result = report(train=[(photo(0), mask(255)), (photo(1), mask(0, 2))], val=[(photo(2), mask(0, 1))])
    assert len(found(result, "labels that are all ignored", "train0.png")) == 1
    assert len(found(result, "classes never seen", "train has no pixel of b: ")) == 1
    assert len(found(result, "classes never seen", "val has no pixel of <c>: ")) == 1
    assert not result.fails


def test_odd_sizes_and_pictures_that_viewers_turn(report, tmp_path):
    sizes = [(500, 100), (60, 70)]
    turned = photo(2)
    exif = turned.getexif()
    exif[274] = 6
    result = report(train=[(Image.new("RGB", s, (i, 0, 0)), mask(0, 1, 2, size=s)) for i, s in enumerate(sizes)])
    assert len(found(result, "very long images", "500x100")) == 1
    assert len(found(result, "very small images", "60x70")) == 1
    turned.save(tmp_path / "train0.png", exif=exif)
    mask(0, 1, 2).save(tmp_path / "train0_label.png")
    assert len(found(report.again("train"), "images that a viewer turns", "EXIF orientation 6")) == 1


def test_lists_that_leave_the_root_and_splits_that_are_not_there(report, tmp_path):
    report(train=[(photo(0), mask(0, 1, 2))])
    write_list(tmp_path, "../a.png b.png\n", "val")
    result = report.again("train", "val", "more")
    assert [p.split for p in found(result, "lists and folders")] == ["val", "more"]
    assert found(result, "lists and folders", "leaves the root")
    assert result.fails
    assert list(result.tallies) == ["train"]


def test_weights_are_enets_with_a_mean_of_one_over_pixels():
    pixels = np.array([900, 100, 0])
    weights = class_weights(pixels)
    enet = [1 / math.log(1.02 + share) for share in (0.9, 0.1, 0)]
    assert weights == pytest.approx([w / (0.9 * enet[0] + 0.1 * enet[1]) for w in enet], abs=5e-4)
    assert np.dot(pixels / 1000, weights) == pytest.approx(1, abs=1e-3)
    assert class_weights(np.array([0, 0])) == ()


def test_without_a_labelled_pixel_no_weights_are_proposed(report):
    result = report(train=[(photo(0), mask(255))])
    assert "weight" not in check_page.page("", as_json(result, LABELS), LABELS, [])
    assert as_json(result, LABELS)["class_weights"] == {}


def test_the_page_and_the_json_hold_everything_and_load_nothing(report, tmp_path):
    result = report(train=[(photo(0), mask(0, 1, 2, 255)), (photo(1), mask(9))], val=[(photo(2), mask(0))])
    sets, _ = open_splits(DataConfig(root=str(tmp_path)), ("train", "val"))
    shown = list(check_page.draw_examples(read_examples(sets, LABELS, count=2), LABELS))
    assert [caption for caption, _ in shown] == ["train: train0.png", "train: train1.png", "val: val0.png"]
    page = check_page.page("<root> & more", as_json(result, LABELS), LABELS, shown)
    assert "&lt;root&gt; &amp; more" in page
    assert "&lt;c&gt;" in page
    assert "<c>" not in page
    assert "Training would fail: 1 " in page
    assert page.count("data:image/jpeg;base64,") == 6
    assert not [word for word in ("http:", "https:", "<script", "<link") if word in page]
    values = json.loads(json.dumps(as_json(result, LABELS)))
    assert values["training_would_fail"]
    assert values["splits"]["train"]["class_pixels"]["b"] == 100
    assert len(values["class_weights"]["train"]) == 3
    assert len(values["problems"]) == len(result.problems)
