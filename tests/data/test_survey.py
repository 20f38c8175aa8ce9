import dataclasses
import threading

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data.image_files import ImageFiles
from deeplab_jax.data.samples import Samples
from deeplab_jax.data.survey import count_runs, in_parallel, propose_labels, show_value, survey_masks
from deeplab_jax.errors import DataError
from deeplab_jax.labels import CITYSCAPES, LABEL_SETS, VOC


@pytest.fixture
def masks(tmp_path):
    """A function from arrays or pictures to a split with them as labels."""

    def write(*arrays, kind="labelIds", suffix="png"):
        names = tuple(f"{i}.{suffix}" for i in range(len(arrays)))
        for name, array in zip(names, arrays, strict=True):
            picture = array if isinstance(array, Image.Image) else Image.fromarray(np.array(array, np.uint8))
            picture.save(tmp_path / name)
        return Samples(str(tmp_path), names, names, kind, "", ImageFiles())

    return write


def proposed(samples, expected=None):
    labels, said = propose_labels("mine", survey_masks([samples]), expected, LABEL_SETS)
    return labels, "; ".join(said)


def test_ids_are_counted_with_the_file_that_has_most(masks):
    seen = []
    found = survey_masks([masks([[1, 1, 7]], [[7, 7, 255]])], lambda: seen.append(1))
    assert [(v, f.pixels, f.files, f.example) for v, f in found.values.items()] == [
        (1, 2, 1, "0.png"),
        (7, 3, 2, "1.png"),
        (255, 1, 1, "1.png"),
    ]
    assert (found.files, found.problems, len(seen)) == (2, (), 2)
    labels, said = propose_labels("mine", found, None, LABEL_SETS)
    assert (labels.names, labels.ids, labels.ignored_ids) == (("class 1", "class 7"), (1, 7), (255,))
    assert "255 is ignored" in said[0]


def test_colours_are_counted(masks):
    red, black, alpha = (255, 0, 0), (0, 0, 0), Image.new("RGBA", (2, 1), (255, 0, 0, 9))
    found = survey_masks([masks([[red, black, red]], alpha, kind="color")])
    assert {show_value(v, True): f.pixels for v, f in found.values.items()} == {"0,0,0": 1, "255,0,0": 4}
    labels, said = propose_labels("mine", found, None, LABEL_SETS)
    assert labels.colors == (black, red)
    assert labels.ignored_colors == ()
    assert "black is a class as well" in said[1]


def test_zero_is_a_class_and_that_is_said(masks):
    labels, said = proposed(masks([[0, 1, 2]]))
    assert labels.class_ids == (0, 1, 2)
    assert "0 is a class as well" in said
    assert (0, 0, 0) not in labels.colors  # which is what ignored pixels look like


def test_a_binary_mask_has_two_classes(masks):
    labels, said = proposed(masks([[0, 255, 0]]))
    assert (labels.class_ids, labels.ignored_ids) == ((0, 255), ())
    assert "255 too" in said


@pytest.mark.parametrize("values", [[[5, 5]], [[5, 255]]])
def test_one_value_is_no_set(masks, values):
    with pytest.raises(DataError, match="5 and"):
        proposed(masks(values))


def palette(array, colors):
    picture = Image.fromarray(np.array(array, np.uint8)).convert("P")
    picture.putdata(np.array(array).ravel().tolist())
    picture.putpalette([part for color in colors for part in color])
    return picture


def test_a_palette_gives_the_colours_and_indices_are_ids(masks):
    labels, _ = proposed(masks(palette([[0, 2]], [(9, 9, 9), (1, 1, 1), (8, 7, 6)])))
    assert labels.ids == (0, 2)
    assert labels.colors == ((9, 9, 9), (8, 7, 6))


def test_known_sets_are_recognized_by_folders_or_by_colours_never_by_ids_alone(masks):
    assert proposed(masks([[0, *CITYSCAPES.ids[:10]]]), CITYSCAPES)[0] is CITYSCAPES
    assert proposed(masks([[0, *CITYSCAPES.ids[:9]]]), CITYSCAPES)[0].names[1] == "class 7"  # another set in such folders
    assert proposed(masks([[77, *CITYSCAPES.ids]]), CITYSCAPES)[0].ids[-1] == 77
    assert proposed(masks([list(CITYSCAPES.colors[:12])], kind="color"))[0] is CITYSCAPES
    assert proposed(masks([list(CITYSCAPES.colors[:2])], kind="color"))[0].names == ("class 0", "class 1")
    assert proposed(masks(palette([range(21)], VOC.colors)))[0] is VOC
    assert proposed(masks(palette([range(20)], VOC.colors)))[0].names[7] == "class 7"
    labels, said = proposed(masks([range(12)]))
    assert labels.names[11] == "class 11"
    assert "configs/custom.py:camvid" in said


def test_grey_masks_saved_as_rgb_are_told(masks):
    _, said = proposed(masks([[(1, 1, 1), (2, 2, 2)]], kind="color"))
    assert "ids saved as RGB" in said


def test_more_than_255_colours_are_refused_with_the_most_frequent(masks):
    many = [[(i // 200, i % 200, 0) for i in range(300)] + [(0, 0, 9)] * 50]
    with pytest.raises(DataError, match=r"more than 255 distinct colours.*resized.*JPEG.*Most frequent: 0,0,9 \(50 pixels\)"):
        survey_masks([masks(many, kind="color")])


def test_files_that_training_would_not_read_are_named(masks, tmp_path):
    samples = masks([[1, 2]], [[(1, 2, 3)]], np.uint8([[3]]), Image.new("I;16", (2, 1)), Image.new("1", (2, 1)))
    (tmp_path / "2.png").write_bytes(b"no picture")
    found = survey_masks([samples])
    assert list(found.values) == [1, 2]
    assert found.files == 1
    for name, part in (("1.png", "mode RGB"), ("2.png", "cannot be read"), ("3.png", "mode I;16"), ("4.png", "mode 1")):
        assert any(name in line and part in line for line in found.problems)
    with pytest.raises(DataError, match="is a BMP file: labels must be PNG"):
        survey_masks([masks([[1, 2]], suffix="bmp")])


def test_a_set_without_mask_files_is_told(masks):
    with pytest.raises(DataError, match="holds no mask files"):
        survey_masks([dataclasses.replace(masks([[1, 2]]), store=object())])


def test_no_more_is_in_work_than_there_are_threads():
    barrier = threading.Barrier(3)

    def threads(_):
        barrier.wait(30)  # three are at work at once
        return threading.get_ident()

    assert len(set(in_parallel(threads, range(30), 3))) == 3
    assert list(in_parallel(str, range(5), 0)) == list("01234")


def test_what_was_not_begun_is_dropped_with_the_first_error():
    begun = []

    def work(i):
        begun.append(i)
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        list(in_parallel(work, range(100_000), 1))
    assert len(begun) < 100_000


def test_runs_add_up_to_what_sorting_pixels_gives():
    values = np.random.default_rng(0).integers(0, 4, 1000).astype(np.int32) * 70000
    assert count_runs(values) == dict(zip(*(a.tolist() for a in np.unique(values, return_counts=True)), strict=True))
    assert count_runs(np.array([5], np.uint8)) == {5: 1}
