import io

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageDraw, ImageFilter

from deeplab_jax.data.image_files import ImageFiles
from deeplab_jax.data.samples import Samples
from deeplab_jax.data.survey import survey_masks
from deeplab_jax.data.suspicion import find_questions, find_suspicions, sample_suspicions
from deeplab_jax.labels import CITYSCAPES, LabelSet

CELLS = LabelSet("cells", ("a", "b", "c", "d"), ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)))
THREE = LabelSet("three", ("a", "b", "c"), ((1, 0, 0), (0, 1, 0), (0, 0, 1)))


def draw(seed, values=(0, 1, 2), size=(160, 120)):
    """Draw a mask with round and angular objects."""
    rng = np.random.default_rng(seed)
    picture = Image.new("L", size, values[0])
    pen = ImageDraw.Draw(picture)
    for i in range(12):
        (x, y), (w, h) = rng.integers(0, size), rng.integers(10, 60, 2)
        (pen.ellipse if i % 2 else pen.rectangle)((x, y, x + w, y + h), fill=values[1 + i % (len(values) - 1)])
    return picture


def soften(picture):
    width, height = picture.size
    return picture.resize((2 * width, 2 * height), Image.BILINEAR).filter(ImageFilter.GaussianBlur(0.7)).resize((width, height))


def compress(picture):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return Image.open(file)


def with_palette(picture, colors):
    picture = Image.fromarray(np.asarray(picture), "P")
    picture.putpalette([part for color in colors for part in color])
    return picture


@pytest.fixture
def survey(tmp_path):
    """Save masks, and return their survey and the split."""

    def survey(*masks, kind="labelIds"):
        for i, mask in enumerate(masks):
            mask.save(tmp_path / f"{i}.png")
            Image.new("RGB", mask.size).save(tmp_path / f"i{i}.png")
        rows = range(len(masks))
        names = tuple(f"i{i}.png" for i in rows), tuple(f"{i}.png" for i in rows)
        samples = Samples(str(tmp_path), *names, kind, "", ImageFiles())
        return survey_masks([samples]), samples

    return survey


def check(result, labels, kind="labelIds"):
    found, samples = result
    suspicions = find_suspicions(found, labels, kind)
    assert sample_suspicions(samples, labels)[0] == suspicions  # there are fewer masks than a sample has
    return suspicions


@pytest.mark.parametrize("values", [(0, 1, 2), (0, 255), (3, 9, 40, 41), (0, 1)])
def test_clean_masks_are_not_suspicious(survey, values):
    found, _ = survey(*(draw(i, values) for i in range(3)))
    assert find_suspicions(found, None, "labelIds") == []


def test_train_ids_and_label_ids_of_cityscapes_are_told_apart(survey):
    street = survey(*(draw(i, (7, 8, 11, 21, 23, 26, 1)) for i in range(3)))
    assert check(street, CITYSCAPES) == []


@pytest.mark.parametrize("change", [soften, compress, lambda m: m.resize((200, 150), Image.BILINEAR)])
@pytest.mark.parametrize("values", [(0, 255), (0, 4, 9)])
def test_blended_masks_are_found(survey, change, values):
    found, _ = survey(*(change(draw(i, values)) for i in range(3)))
    (text,) = find_suspicions(found, None, "labelIds")
    assert text.startswith("The masks are blended: at ")
    assert ("repaired with a threshold" in text) == (values == (0, 255))


def draw_cells(seed, thin=(1,)):
    """Draw round cells, whose membranes of 1 to 2 pixels have the values in `thin`, from the outside to the inside."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:128, :128]
    mask = np.zeros((128, 128), np.uint8)
    for _ in range(8):
        (cy, cx), radius = rng.integers(15, 113, 2), rng.integers(8, 14)
        for inside, value in enumerate((*thin, len(thin) + 1)):
            mask[np.hypot(y - cy, x - cx) < radius + 1.5 * (len(thin) - inside)] = value
    return Image.fromarray(mask)


def test_one_or_two_thin_classes_are_asked_about(survey):
    for thin, shown in (((1,), "1"), ((1, 2), "1 and 2")):
        result = survey(*(draw_cells(i, thin) for i in range(4)))
        assert find_suspicions(result[0], None, "labelIds") == []
        (question,) = find_questions(result[0], None, "labelIds")
        assert f"of the edges, thin lines of the value {shown} lie between" in question
        assert "\n" not in question
        assert sample_suspicions(result[1], CELLS) == ([], [question])
    assert find_questions(survey(*(draw(i) for i in range(3)))[0], None, "labelIds") == []
    assert find_suspicions(survey(*(draw_cells(i, (1, 2, 3)) for i in range(4)))[0], None, "labelIds")


def test_masks_of_0_and_1_among_masks_of_0_and_255_are_asked_about(survey):
    two = LabelSet("two", ("a", "b"), ((0, 0, 0), (0, 1, 0)))
    masks = [draw(0, (0, 1)), draw(1, (0, 255)), draw(2, (0, 255)), draw(3, (0, 0))]
    found, _ = survey(*masks)
    (question,) = find_questions(found, None, "labelIds")
    assert "255 occurs only in masks of 0 and 255 (2, such as 1.png)" in question
    assert "1 only in masks of 0 and 1 (1, such as 0.png)" in question
    assert find_questions(found, two, "labelIds") == [question]
    assert not find_suspicions(found, two, "labelIds")
    with_both, _ = survey(*masks, draw(4, (0, 1, 255)))
    assert not find_questions(with_both, None, "labelIds")
    assert not find_questions(survey(draw(0, (0, 1, 2)), draw(1, (0, 255)))[0], None, "labelIds")


GREYS = [(0, 0, 0), (38, 38, 38), (75, 75, 75)]


@pytest.mark.parametrize(
    "others",
    [
        [draw(2, (0, 50, 100)), draw(3, (0, 50, 255))],  # multiplied for viewing
        [draw(2, (0, 38, 75)), draw(3, (0, 75, 113))],  # where other files became palettes of greys, to be smaller
    ],
)
def test_values_of_masks_that_were_saved_in_two_ways_are_asked_about(survey, others):
    small = [with_palette(draw(0, (0, 1, 2)), GREYS), draw(1, (0, 1))]
    found, samples = survey(*small, *others)
    (question,) = find_questions(found, None, "labelIds")
    large = sorted({*found.occurrences} - {0, 1, 2, 255})
    assert f"1, 2 (2, such as 0.png) and others {', '.join(map(str, large))} (2, such as 2.png), but none holds" in question
    assert "Save all masks in the same way" in question
    assert sample_suspicions(samples, None) == ([], [question])
    # A mask with values of both kinds shows that these are different classes.
    assert not find_questions(survey(*small, *others, draw(4, (0, 1, large[0])))[0], None, "labelIds")


@pytest.mark.parametrize("values", [(0, 3, 4), (0, 9)])
def test_classes_that_never_occur_together_are_not_asked_about(survey, values):
    assert not find_questions(survey(draw(0, (0, 1, 2)), draw(1, values))[0], None, "labelIds")


def draw_objects(*ids):
    mask = np.zeros((24, 16 * len(ids)), np.uint8)
    for i, value in enumerate(ids):
        mask[8:16, 16 * i + 4 : 16 * i + 12] = value
    return Image.fromarray(mask)


def test_numbers_of_objects_are_asked_about(survey):
    masks = [draw_objects(*range(1, n + 1)) for n in (3, 1, 6, 4, 2, 6)]
    found, samples = survey(*masks, draw_objects(0, 255))
    (question,) = find_questions(found, None, "labelIds")
    assert "count up from 1, to a different number in many masks (up to 6)" in question
    assert sample_suspicions(samples, None) == ([], [question])
    assert not find_questions(survey(*masks, draw_objects(1, 3))[0], None, "labelIds")  # a class that does not occur
    assert not find_questions(survey(*masks[:4])[0], None, "labelIds")


def test_tiff_masks_in_which_0_is_white_are_asked_about(tmp_path):
    is_object = np.zeros((8, 9), bool)
    is_object[:2] = True
    tifffile.imwrite(tmp_path / "0.tif", is_object)
    tifffile.imwrite(tmp_path / "1.tif", is_object.astype(np.uint8))
    names = ("0.tif", "1.tif")
    result = survey_masks([Samples(str(tmp_path), names, names, "labelIds", "", ImageFiles())])
    assert result.occurrences[1].pixels == (6 + 2) * 9  # in the first file, the objects are 0
    (question,) = find_questions(result, None, "labelIds")
    assert question.startswith("In some TIFF masks (1, such as 0.tif), 0 is stored as white, so their values are inverted")


@pytest.mark.parametrize(("alpha", "is_asked"), [(255, False), (0, True)])
def test_colours_below_transparent_pixels_are_asked_about(survey, alpha, is_asked):
    red, blue = (Image.new("RGBA", (9, 9), color) for color in ((255, 0, 0, 255), (0, 0, 255, alpha)))
    found, samples = survey(red, blue, kind="color")
    questions = find_questions(found, None, "color")
    assert [text.partition(")")[0] for text in questions] == ["Some masks have transparent pixels (1, such as 1.png"] * is_asked
    assert sample_suspicions(samples, None) == ([], questions)


def test_colours_that_are_a_class_and_ignored_are_asked_about(survey):
    result = survey(with_palette(draw(0), [(0, 0, 1), (0, 0, 2), (0, 0, 3)]).convert("RGB"), kind="color")
    labels = LabelSet("mine", ("a", "b"), ((0, 0, 1), (0, 0, 2)), ignored_colors=((0, 0, 3), (0, 0, 2), (9, 9, 9)))
    (question,) = find_questions(result[0], labels, "color")
    assert question.startswith("The label set mine gives (0, 0, 2) to the class b, but ignored_colors has it, too.")
    assert sample_suspicions(result[1], labels) == ([], [question])
    cars, roads = (Image.new("RGB", (9, 9), CITYSCAPES.colors[CITYSCAPES.names.index(name)]) for name in ("car", "road"))
    assert find_questions(survey(cars, roads, kind="color")[0], CITYSCAPES, "color") == []


def test_blended_colours_are_found(survey):
    found, _ = survey(
        *(soften(with_palette(draw(i), [(0, 0, 0), (255, 0, 0), (0, 90, 9)]).convert("RGB")) for i in range(3)), kind="color"
    )
    (text,) = find_suspicions(found, None, "color")
    assert text.startswith("The masks are blended")


def test_palettes_that_differ_are_found(survey):
    one, two = [(0, 0, 0), (9, 9, 9), (5, 5, 5)], [(9, 9, 9), (0, 0, 0), (5, 5, 5)]
    found, _ = survey(with_palette(draw(0), one), with_palette(draw(1), two))
    (text,) = find_suspicions(found, None, "labelIds")
    assert "In 0.png, the colour of id 0 is (0, 0, 0), but in 1.png it is (9, 9, 9)." in text
    assert "--label-kind color" in text
    found, _ = survey(with_palette(draw(0), one), with_palette(draw(1), two), kind="color")
    assert find_suspicions(found, None, "color") == []
    assert find_suspicions(survey(with_palette(draw(0), one), with_palette(draw(1), one + two))[0], None, "labelIds") == []


def test_grey_masks_among_colours_are_found(survey):
    colors = with_palette(draw(0), [(0, 0, 0), (255, 0, 0), (0, 90, 9)]).convert("RGB")
    found, _ = survey(colors, draw(1), kind="color")
    (text,) = find_suspicions(found, None, "color")
    assert "colours (1 of mode RGB, such as 0.png), and others are grey (1 of mode L, such as 1.png)" in text


def test_train_ids_read_as_label_ids_are_found(survey):
    (text,) = check(survey(*(draw(i, (0, 1, 8, 11)) for i in range(3))), CITYSCAPES)  # only the smallest ids have no class
    assert "like train ids" in text
    result = survey(*(draw(i, (0, 1, 2, 8, 10, 13)) for i in range(3)))
    (text,) = check(result, CITYSCAPES)
    assert sample_suspicions(result[1], CITYSCAPES) == ([text], [])
    assert "hold only values from 0 to 13, like train ids" in text
    assert "data.label_kind=labelTrainIds" in text


@pytest.mark.parametrize("values", [(0, 1, 2), (0, 2, 1, 255)])
def test_classes_from_1_to_n_whose_last_is_absent_are_asked_about(survey, values):
    one_to_three = LabelSet("mine", ("a", "b", "c"), THREE.colors, ids=(1, 2, 3), ignored_ids=(0, 255))
    result = survey(*(draw(i, values) for i in range(3)))
    assert result[0].occurrences[0].pixels > 0.3 * result[0].pixels
    assert check(result, one_to_three) == []
    suspicions, (question,) = sample_suspicions(result[1], one_to_three)
    assert suspicions == []
    assert "the label set mine ignores, and the largest value is 2." in question
    assert "where 0 is a, set data.label_kind=labelTrainIds" in question
    assert sample_suspicions(survey(*(draw(i, (0, 1, 3)) for i in range(3)))[1], one_to_three) == ([], [])


def test_a_palette_with_the_colours_of_other_classes_is_found(survey):
    result = survey(with_palette(draw(0), [(1, 0, 0), (0, 0, 1), (0, 1, 0)]))
    (text,) = check(result, THREE)
    assert "gives 2 ids the colours of other classes: id 1 is b in the label set three, but has the colour of c" in text
    assert check(survey(with_palette(draw(0), THREE.colors)), THREE) == []


def test_masks_with_one_class_or_none_are_found(survey):
    (text,) = check(survey(draw(0, (0, 255))), THREE)
    assert "All labelled pixels belong to the class a: the masks hold 0, 255." in text
    assert "If 255 is a class, remove it from ignored_ids (the default is 255)." in text
    found, _ = survey(draw(0, (1, 1)))
    assert find_suspicions(found, THREE, "labelIds") == []  # a few masks of a large set can show one class
    assert "belong to the class b" in find_suspicions(found, THREE, "labelIds", is_training_set=True)[0]
    (text,) = check(survey(draw(0, (255, 254))), THREE)
    assert text.startswith("No pixel of the masks has a class: they hold 254, 255")
    assert "Training" not in text  # it can be about the masks of an evaluation
