import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from test_find import write_list

from deeplab_jax.config import DataConfig
from deeplab_jax.data.inspection import check, open_splits, read_examples
from deeplab_jax.data.inspection_report import as_json
from deeplab_jax.labels import LabelSet
from deeplab_jax.pages import check as check_page

LABELS = LabelSet("abc", ("a", "b", "<c>"), ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
SIZE = (100, 80)  # width, height


def random_image(seed, mode="RGB"):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)).convert(mode)


def mask(*values, size=SIZE):
    array = np.full((size[1], size[0]), values[0], np.uint8)
    for row, value in enumerate(values[1:]):
        array[row] = value
    return Image.fromarray(array)


def soft_disc(low=0, high=255):
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    share = np.clip(20 - np.hypot(x - 50, y - 40) + 0.5, 0, 1)  # of a pixel that the disc covers
    return Image.fromarray(np.round(low + (high - low) * share).astype(np.uint8))


@pytest.fixture
def report(tmp_path):
    """Return a function that writes lists of (image, label) pairs as splits and returns their inspection report."""

    def write(**splits):
        for split, pairs in splits.items():
            lines = []
            for i, (image, label) in enumerate(pairs):
                suffix = "jpg" if image.mode == "CMYK" else "png"
                image.save(tmp_path / f"{split}{i}.{suffix}")
                label.save(tmp_path / f"{split}{i}_label.png")
                lines.append(f"{split}{i}.{suffix} {split}{i}_label.png\n")
            write_list(tmp_path, "".join(lines), split)
        return check_again(*splits)

    def check_again(*splits):
        sets, problems = open_splits(DataConfig(root=str(tmp_path)), splits)
        return check(sets, LABELS, problems)

    write.check_again = check_again
    return write


def find_problems(report, sort, part=""):
    return [p for p in report.problems if p.sort == sort and part in p.text]


def test_a_valid_data_set_is_counted_and_has_no_problems(report):
    result = report(
        train=[(random_image(0), mask(0, 1, 255)), (random_image(1), mask(2))], val=[(random_image(2), mask(0, 1, 2))]
    )
    assert not result.problems
    assert not result.fails
    train = result.tallies["train"]
    assert train.pixels.tolist() == [78 * 100, 100, 8000]
    assert train.images.tolist() == [1, 1, 1]
    assert train.ignored == 100
    assert train.sizes == {SIZE: 2}
    assert (train.image_modes, train.label_modes) == ({"RGB": 2}, {"L": 2})


def test_values_outside_the_label_set_are_reported_with_file_and_pixels(report):
    result = report(train=[(random_image(0), mask(0, 1, 2)), (random_image(1), mask(0, 7, 7, 9))])
    (problem,) = find_problems(result, "values outside the label set")
    assert "train1_label.png holds values outside the label set abc: 7 (200 pixels), 9 (100 pixels)." in problem.text
    assert result.fails
    assert result.tallies["train"].unknown == 300


def test_many_undefined_values_are_questioned(report):
    result = report(train=[(random_image(0), mask(0, 1, 2)), (random_image(1), mask(*range(20)))])
    (problem,) = find_problems(result, "values outside the label set", "and 12 more. So many values rarely are classes.")
    assert problem.text.endswith("If they are classes, add the values to the label set (to ignored_ids if they have no class).")


def test_a_soft_mask_is_not_advised_to_be_added_to_the_label_set(report):
    result = report(train=[(random_image(0), mask(0, 1, 2)), (random_image(1), soft_disc())])
    (problem,) = find_problems(result, "values outside the label set", "The mask is blended")
    assert "add the values" not in problem.text


@pytest.mark.parametrize(
    ("label", "part"),
    [
        (mask(0, size=(80, 100)), "differ in size (100x80 and 80x100 pixels)"),
        (Image.new("I;16", SIZE, 300), "holds the id 300. Ids must be from 0 to 255: renumber them, with 255 for no class."),
        (
            Image.new("RGB", SIZE, (1, 2, 3)),
            "is not an id image, because it has colours. If its colours are the labels, ",
        ),
    ],
    ids=["rotated", "16-bit", "colours"],
)
def test_labels_that_training_cannot_use_are_errors(report, label, part):
    result = report(train=[(random_image(0), mask(0, 1, 2)), (random_image(1), label)])
    (problem,) = find_problems(result, "samples that cannot be used")
    assert part in problem.text
    assert result.fails
    assert sum(result.tallies["train"].sizes.values()) == 1


def test_truncated_files_are_errors(report, tmp_path):
    report(train=[(random_image(0), mask(0, 1, 2)), (random_image(1), mask(0)), (random_image(2), mask(0))])
    for name in ("train1.png", "train2_label.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-60])
    result = report.check_again("train")
    assert len(find_problems(result, "samples that cannot be used", "cannot be read")) == 2
    assert result.fails


def test_an_image_with_an_unreadable_size_is_an_error(report, monkeypatch):
    report(train=[(random_image(0), mask(0, 1, 2))])
    monkeypatch.setattr("deeplab_jax.data.decode.MEMORY_SHARE", 1e-12)
    result = report.check_again("train")
    assert len(find_problems(result, "samples that cannot be used", "train0.png has 100x80 pixels, which need")) == 1
    assert result.fails


def test_a_training_split_with_one_class_is_an_error_and_a_validation_split_is_not(report):
    result = report(train=[(random_image(0), mask(0, 1, 2))], val=[(random_image(1), mask(0))])
    assert not find_problems(result, "suspicious masks")
    result = report(train=[(random_image(0), mask(0))])
    (problem,) = find_problems(result, "suspicious masks")
    assert "All labelled pixels belong to the class a" in problem.text
    assert result.fails


def test_a_jpeg_mask_is_reported_as_a_jpeg_file(report, tmp_path):
    report(train=[(random_image(0), mask(0, 1, 2)), (random_image(1), mask(0))])
    random_image(1, "L").save(tmp_path / "train1_label.png", "JPEG", quality=90)
    (problem,) = [p for p in report.check_again("train").problems if p.fails]
    assert "train1_label.png is a JPEG file. Lossy compression changes label values" in problem.text


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1"])
def test_images_in_unusual_modes_are_noted_but_do_not_stop_training(report, mode):
    result = report(train=[(random_image(0, mode), mask(0, 1, 2))])
    assert not result.fails
    assert [p.sort for p in result.problems] == [f"images of mode {mode}"]


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_transparent_pixels_are_noted_and_an_opaque_alpha_channel_is_not(report, mode):
    image = random_image(0, mode)
    if mode == "P":
        image.info["transparency"] = image.getpixel((0, 0))
    assert [p.sort for p in report(train=[(random_image(0, mode), mask(0, 1, 2))]).problems if "transparent" in p.sort] == []
    if mode != "P":
        image.putpixel((0, 0), (*image.getpixel((0, 0))[:-1], 254))
    result = report(train=[(image, mask(0, 1, 2))])
    (problem,) = find_problems(result, "images with transparent pixels", "train0.png has transparent pixels")
    assert not problem.fails


def test_further_frames_are_noted(report, tmp_path):
    report(train=[(random_image(0), mask(0, 1, 2))])
    random_image(0).save(tmp_path / "train0.png", save_all=True, append_images=[random_image(1)])
    assert find_problems(
        report.check_again("train"), "images with several frames", "train0.png has 2 frames, of which only the first is used"
    )


def test_a_16_bit_image_is_noted(report):
    image = Image.fromarray(np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE[1], SIZE[0]))
    result = report(train=[(image, mask(0, 1, 2))])
    assert not result.fails
    assert len(find_problems(result, "images of 16 bits", "16 bits per value")) == 1


def test_a_palette_label_is_read_as_palette_indices(report):
    result = report(train=[(random_image(0), mask(0, 1, 2).convert("P"))])
    assert result.tallies["train"].label_modes == {"P": 1}
    assert not result.fails


def test_duplicate_images_are_noted(report):
    result = report(
        train=[(random_image(0), mask(0, 1, 2)), (random_image(0), mask(0))], val=[(random_image(0), mask(0, 1, 2))]
    )
    within = find_problems(result, "duplicate images in a split", "train1.png is the same image as train0.png")
    across = find_problems(result, "duplicate images in two splits", "val0.png in val is the same image as train0.png in train")
    assert (len(within), len(across)) == (1, 1)
    assert not result.fails


def test_ignored_labels_and_missing_classes_are_noted(report, tmp_path):
    result = report(train=[(random_image(0), mask(255)), (random_image(1), mask(0, 2))], val=[(random_image(2), mask(0, 1))])
    assert len(find_problems(result, "labels that are fully ignored", "train0.png")) == 1
    # Without the class b, the value 2 would have no class.
    assert find_problems(result, "classes without pixels")[0].text.endswith(" to: b. Add images of these classes.")
    with_ids = check(open_splits(DataConfig(root=str(tmp_path)), ["train"])[0], dataclasses.replace(LABELS, ids=(0, 1, 2)))
    assert find_problems(with_ids, "classes without pixels", "Add images of these classes, or remove them from the label set.")
    assert len(find_problems(result, "classes without pixels", "No pixel in val belongs to: <c>. ")) == 1
    assert not result.fails


def test_unusual_sizes_and_exif_orientations_are_noted(report, tmp_path):
    sizes = [(500, 100), (60, 70)]
    rotated = random_image(2)
    exif = rotated.getexif()
    exif[274] = 6
    result = report(train=[(Image.new("RGB", s, (i, 0, 0)), mask(0, 1, 2, size=s)) for i, s in enumerate(sizes)])
    assert len(find_problems(result, "very elongated images", "500x100")) == 1
    assert len(find_problems(result, "very small images", "60x70")) == 1
    rotated.save(tmp_path / "train0.png", exif=exif)
    mask(0, 1, 2).save(tmp_path / "train0_label.png")
    assert len(find_problems(report.check_again("train"), "images with an EXIF orientation", "EXIF orientation 6")) == 1


def test_lists_that_leave_the_root_and_missing_splits_are_errors(report, tmp_path):
    report(train=[(random_image(0), mask(0, 1, 2))])
    write_list(tmp_path, "../a.png b.png\n", "val")
    result = report.check_again("train", "val", "more")
    assert [p.split for p in find_problems(result, "splits that cannot be used")] == ["val", "more"]
    assert find_problems(result, "splits that cannot be used", "is outside the root folder")
    assert result.fails
    assert list(result.tallies) == ["train"]


@pytest.mark.parametrize("split", ["train", "val"])
def test_only_training_pixels_give_advice_on_training(report, split):
    values = as_json(report(**{split: [(random_image(0), mask(0, 1))]}), LABELS)
    assert list(values["class_weights"]) == list(values["rare_classes"]) == ["train"] * (split == "train")


def test_a_data_set_without_labelled_pixels_gives_no_class_weights(report):
    result = report(train=[(random_image(0), mask(255))])
    assert "weight" not in check_page.render_page("", as_json(result, LABELS), LABELS, [])
    assert as_json(result, LABELS)["class_weights"] == {}
    assert as_json(result, LABELS)["rare_classes"] == {"train": []}


def test_the_page_and_the_json_are_complete_and_need_no_network(report, tmp_path):
    result = report(train=[(random_image(0), mask(0, 1, 2, 255)), (random_image(1), mask(9))], val=[(random_image(2), mask(0))])
    sets, _ = open_splits(DataConfig(root=str(tmp_path)), ("train", "val"))
    shown = list(check_page.draw_examples(read_examples(sets, LABELS, count=2), LABELS))
    assert [caption for caption, *_ in shown] == ["train: train0.png", "train: train1.png", "val: val0.png"]
    page = check_page.render_page("<root> & more", as_json(result, LABELS), LABELS, shown)
    assert "&lt;root&gt; &amp; more" in page
    assert "&lt;c&gt;" in page
    assert "<c>" not in page
    assert "Training would fail or learn wrong classes. Problems to fix: 1." in page
    assert page.count("data:image/jpeg;base64,") == 6
    assert not [word for word in ("http:", "https:", "<script", "<link") if word in page]
    values = json.loads(json.dumps(as_json(result, LABELS)))
    assert values["training_would_fail"]
    assert values["splits"]["train"]["class_pixels"]["b"] == 100
    assert len(values["class_weights"]["train"]) == 3
    assert len(values["problems"]) == len(result.problems)
