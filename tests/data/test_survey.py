import dataclasses

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data.image_files import ImageFiles
from deeplab_jax.data.masks import format_value
from deeplab_jax.data.samples import Samples, make_value_table
from deeplab_jax.data.survey import propose_labels, survey_masks
from deeplab_jax.errors import DataError
from deeplab_jax.labels import CAMVID32, CITYSCAPES, CITYSCAPES_CATEGORIES, LABEL_SETS, MAPILLARY, VOC


@pytest.fixture
def masks(tmp_path):
    """Return a function that writes arrays or Pillow images as label files and returns them as a split."""

    def write(*arrays, kind="labelIds", suffix="png"):
        names = tuple(f"{i}.{suffix}" for i in range(len(arrays)))
        for name, array in zip(names, arrays, strict=True):
            picture = array if isinstance(array, Image.Image) else Image.fromarray(np.array(array, np.uint8))
            picture.save(tmp_path / name)
        return Samples(str(tmp_path), names, names, kind, "", ImageFiles())

    return write


def propose(samples, expected=None):
    labels, notes = propose_labels("mine", survey_masks([samples]), samples.kind, expected, LABEL_SETS)
    return labels, "; ".join(notes)


def test_ids_are_counted_and_the_file_with_the_most_pixels_is_the_example(masks):
    calls = []
    survey = survey_masks([masks([[1, 1, 7]], [[7, 7, 255]])], lambda: calls.append(1))
    assert [(v, f.pixels, f.files, f.example) for v, f in survey.values.items()] == [
        (1, 2, 1, "0.png"),
        (7, 3, 2, "1.png"),
        (255, 1, 1, "1.png"),
    ]
    assert (survey.files, survey.problems, len(calls)) == (2, [], 2)
    labels, notes = propose_labels("mine", survey, "labelIds", None, LABEL_SETS)
    assert (labels.names, labels.ids, labels.ignored_ids) == (("class 1", "class 7"), (1, 7), (255,))
    assert "255 is ignored" in notes[0]


def test_colours_are_counted(masks):
    red, black, alpha = (255, 0, 0), (0, 0, 0), Image.new("RGBA", (2, 1), (255, 0, 0, 9))
    survey = survey_masks([masks([[red, black, red]], alpha, kind="color")])
    assert {format_value(v, True): f.pixels for v, f in survey.values.items()} == {"0,0,0": 1, "255,0,0": 4}
    labels, notes = propose_labels("mine", survey, "color", None, LABEL_SETS)
    assert labels.colors == (black, red)
    assert labels.ignored_colors == ()
    assert "black is also a class" in notes[1]


def test_zero_is_a_class_and_this_is_noted(masks):
    labels, notes = propose(masks([[0, 1, 2]]))
    assert labels.class_ids == (0, 1, 2)
    assert "0 is also a class" in notes
    assert (0, 0, 0) not in labels.colors  # black is the colour of ignored pixels


def test_a_binary_mask_has_two_classes(masks):
    labels, notes = propose(masks([[0, 255, 0]]))
    assert (labels.class_ids, labels.ignored_ids) == ((0, 255), ())
    assert "0 and 255 are two classes" in notes


@pytest.mark.parametrize("ids", [(0, 127, 255), (0, 128, 255), (0, 85, 170, 255), (0, 64, 128, 191, 255)])
def test_ids_that_are_spread_evenly_from_0_to_255_are_all_classes(masks, ids):
    labels, notes = propose(masks([ids]))
    assert (labels.class_ids, labels.ignored_ids) == (ids, ())
    assert "every value is a class, also 255, because the values are evenly spaced" in notes
    assert "assumed to mean unlabelled" not in notes


@pytest.mark.parametrize("ids", [(0, 100, 255), (1, 128, 255), (0, 127, 254, 255)])
def test_255_is_ignored_among_other_ids(masks, ids):
    labels, _ = propose(masks([ids]))
    assert (labels.class_ids, labels.ignored_ids) == (ids[:-1], (255,))


@pytest.mark.parametrize(("others", "is_questioned"), [(2, True), (3, False)])
def test_255_is_questioned_if_it_covers_more_than_all_ids_but_0(masks, others, is_questioned):
    # Masks of 0 and 255 with a few wrong pixels: the object would be ignored, and the wrong pixels would be the classes.
    _, notes = propose(masks([[0] * 20 + [255] * 3 + [254] * others]))
    assert ("255 covers 12% of the pixels, and is assumed to mean unlabelled" in notes) == is_questioned


@pytest.mark.parametrize("values", [[[5, 5]], [[5, 255]]])
def test_a_single_value_is_an_error(masks, values):
    with pytest.raises(DataError, match="The only value in the label files is 5,"):
        propose(masks(values))


def palette(array, colors):
    picture = Image.fromarray(np.array(array, np.uint8)).convert("P")
    picture.putdata(np.array(array).ravel().tolist())
    picture.putpalette([part for color in colors for part in color])
    return picture


def test_palette_indices_are_ids_and_palette_colours_are_used(masks):
    labels, _ = propose(masks(palette([[0, 2]], [(9, 9, 9), (1, 1, 1), (8, 7, 6)])))
    assert labels.ids == (0, 2)
    assert labels.colors == ((9, 9, 9), (8, 7, 6))


def test_label_sets_are_recognized_by_folders_or_colours_but_not_by_ids_only(masks):
    assert propose(masks([[0, *CITYSCAPES.ids[:10]]]), CITYSCAPES)[0] is CITYSCAPES
    # Cityscapes folders with fewer than half of its classes, or with unknown ids, are assumed to use a different label set.
    assert propose(masks([[0, *CITYSCAPES.ids[:9]]]), CITYSCAPES)[0].names[1] == "class 7"
    assert propose(masks([[77, *CITYSCAPES.ids]]), CITYSCAPES)[0].ids[-1] == 77
    assert propose(masks([list(CITYSCAPES.colors[:12])], kind="color"))[0] is CITYSCAPES
    assert propose(masks([list(CITYSCAPES.colors[:2])], kind="color"))[0].names == ("class 0", "class 1")
    assert propose(masks(palette([range(21)], VOC.colors)))[0] is VOC
    assert propose(masks(palette([range(20)], VOC.colors)))[0].names[7] == "class 7"
    labels, notes = propose(masks([range(12)]))
    assert labels.names[11] == "class 11"
    assert "configs/custom_lite0.py:camvid" in notes


def test_classes_of_train_ids_are_numbered_without_gaps(masks):
    # A class per value, with the value as its id, could not be read: the value 4 has no position among three classes.
    labels, notes = propose(masks([[0, 1, 4, 255]], kind="labelTrainIds"))
    assert labels.names == ("class 0", "class 1", "class 2", "class 3", "class 4")
    assert (labels.class_ids, labels.ignored_ids) == ((0, 1, 2, 3, 4), (255,))
    assert "there are also classes for 2, 3, which do not occur" in notes
    assert "ignored_ids" not in propose(masks([[0] * 10 + [1, *[255] * 30]], kind="labelTrainIds"))[1]
    assert set(make_value_table("labelTrainIds", labels)[[0, 1, 4, 255]].tolist()) == {0, 1, 4, 255}


def test_label_sets_are_recognized_by_folders_with_train_ids(masks):
    assert propose(masks([range(19)], kind="labelTrainIds"), CITYSCAPES)[0] is CITYSCAPES
    assert propose(masks([[*range(10), 255]], kind="labelTrainIds"), CITYSCAPES)[0] is CITYSCAPES
    assert propose(masks([range(9)], kind="labelTrainIds"), CITYSCAPES)[0].num_classes == 9
    assert propose(masks([range(20)], kind="labelTrainIds"), CITYSCAPES)[0].num_classes == 20
    assert propose(masks(palette([range(19)], CITYSCAPES.colors), kind="labelTrainIds"))[0] is CITYSCAPES


def test_merged_label_sets_are_not_mistaken_for_the_ones_that_they_merge(masks):
    # Ten of the 19 classes are recognized as Cityscapes. Nine are not, although they belong to all seven categories.
    nine = [CITYSCAPES.colors[i] for i in (0, 1, 2, 5, 8, 10, 11, 13, 14)]
    assert propose(masks([[*nine, CITYSCAPES.colors[15]]], kind="color"))[0] is CITYSCAPES
    assert propose(masks([nine], kind="color"))[0].num_classes == 9
    assert propose(masks([list(CAMVID32.colors)], kind="color"))[0] is CAMVID32
    assert propose(masks(palette([range(66)], (*MAPILLARY.colors, (0, 0, 0)))))[0] is MAPILLARY
    assert propose(masks(palette([range(1, 66)], ((9, 9, 9), *MAPILLARY.colors[1:], (0, 0, 0)))))[0].num_classes == 65
    assert propose(masks([[7, 8, 25, 33, 30]]), CITYSCAPES_CATEGORIES)[0].names[0] == "class 7"
    assert propose(masks([[*CITYSCAPES.ids[:10], 30]]), CITYSCAPES_CATEGORIES)[0] is CITYSCAPES_CATEGORIES


def test_grey_masks_saved_as_rgb_are_noted(masks):
    _, notes = propose(masks([[(1, 1, 1), (2, 2, 2)]], kind="color"))
    assert "ids saved as RGB" in notes


def test_more_than_255_colours_are_an_error_that_lists_the_most_frequent(masks):
    many = [[(i // 200, i % 200, 0) for i in range(300)] + [(0, 0, 9)] * 50]
    message = r"more than 255 distinct colours.*resized.*JPEG.*most frequent colours are: 0,0,9 \(50 pixels\)"
    with pytest.raises(DataError, match=message):
        survey_masks([masks(many, kind="color")])


def test_masks_in_the_transparency_are_named_as_such(masks):
    alpha = Image.fromarray(np.uint8([[[0, 0, 0, 0], [0, 0, 0, 255]]]))
    message = "0.png has transparent pixels, which are ignored. If the transparency is the mask, save it as a grey PNG"
    with pytest.raises(DataError, match=f"The only value in the label files is 0,0,0.*{message}"):
        propose(masks(alpha, kind="color"))
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 4), np.uint8))
    with pytest.raises(DataError, match=f"more than 255 distinct colours.*if the files are photos.*{message}"):
        survey_masks([masks(photo, kind="color")])


def test_unreadable_files_are_named(masks, tmp_path):
    samples = masks([[1, 2]], [[(1, 2, 3)]], np.uint8([[3]]), Image.new("I;16", (2, 1), 256), Image.new("LA", (2, 1)))
    (tmp_path / "2.png").write_bytes(b"not a picture")
    survey = survey_masks([samples])
    assert list(survey.values) == [1, 2]
    assert survey.files == 1
    for name, part in (
        ("1.png", "has colours"),
        ("2.png", "cannot be read"),
        ("3.png", "the id 256"),
        ("4.png", "transparent"),
    ):
        assert any(name in line and part in line for line in survey.problems)
    with pytest.raises(DataError, match=r"is a JPEG file\. Lossy .*set values below 128 to 0"):
        survey_masks([masks([[1, 2]], suffix="jpg")])


def test_a_data_set_without_mask_files_is_an_error(masks):
    with pytest.raises(DataError, match="holds no mask files"):
        survey_masks([dataclasses.replace(masks([[1, 2]]), store=object())])
