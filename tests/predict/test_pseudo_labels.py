import dataclasses

import numpy as np
import pytest
from conftest import read_pixels
from PIL import Image

from deeplab_jax.data.samples import make_value_table
from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.labels import CAMVID, CITYSCAPES, IGNORE, LABEL_SETS, LabelSet
from deeplab_jax.predict import pseudo_labels
from deeplab_jax.predict.inputs import Input, find_inputs, read_image, turn_as_stored
from deeplab_jax.predict.pseudo_labels import name_files, value_of_train_id

PLAIN = LabelSet("plain", ("a", "b"), ((1, 0, 0), (0, 1, 0)))
FULL = LabelSet("full", PLAIN.names, ((0, 0, 0), (0, 1, 0)), ignored_ids=())


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds", "color"])
@pytest.mark.parametrize("name", LABEL_SETS)
def test_the_reader_of_training_gets_the_train_ids_back(name, kind):
    labels = LABEL_SETS[name]
    train_ids = np.array([*range(labels.num_classes), IGNORE])
    values = value_of_train_id(labels, kind)[train_ids].astype(int)
    stored = values @ (65536, 256, 1) if kind == "color" else values
    np.testing.assert_array_equal(make_value_table(kind, labels)[stored], train_ids)


def test_unsure_pixels_are_255_if_the_label_set_ignores_it():
    assert value_of_train_id(CITYSCAPES, "labelIds")[IGNORE] == 255
    assert value_of_train_id(CAMVID, "labelIds")[IGNORE] == 11  # 255 is unknown in CamVid
    assert value_of_train_id(CAMVID, "labelTrainIds")[IGNORE] == 255


def test_a_label_set_without_ignored_values_is_refused():
    with pytest.raises(
        ConfigError, match=r"full ignores no value.*as labelIds\. Add one to ignored_ids in the data set's labels"
    ):
        value_of_train_id(FULL, "labelIds", FULL)
    with pytest.raises(ConfigError, match="ignored_colors"):
        value_of_train_id(FULL, "color")  # black, the default, is a class here


def test_a_value_that_is_ignored_since_the_training_is_used():
    edited = dataclasses.replace(FULL, ignored_ids=(7,), ignored_colors=((9, 9, 9),))
    assert value_of_train_id(FULL, "labelIds", edited)[[0, 1, IGNORE]].tolist() == [0, 1, 7]
    assert value_of_train_id(FULL, "color", edited)[[0, 1, IGNORE]].tolist() == [[0, 0, 0], [0, 1, 0], [9, 9, 9]]
    assert value_of_train_id(PLAIN, "labelIds", edited)[IGNORE] == 255  # the network's own value comes first


@pytest.mark.parametrize("orientation", range(1, 9))
def test_labels_of_a_turned_photo_fit_its_stored_pixels(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3)
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    upright = read_image(tmp_path / "a.png", 1)[..., 0]
    assert upright.shape == ((3, 2) if orientation > 4 else (2, 3))
    np.testing.assert_array_equal(turn_as_stored(upright, tmp_path / "a.png"), stored)


def test_labels_are_named_after_their_images(tmp_path):
    for name in ("more/a b.png", "more/c.png", "more/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    files = name_files(find_inputs([str(tmp_path)])[0], tmp_path, "pseudo", "labelIds")
    assert dict(files.values()) == {
        "more/a b.png": "pseudo/more/a b_labelIds.png",
        "more/c.png": "pseudo/more/c.png_labelIds.png",
        "more/c.jpg": "pseudo/more/c.jpg_labelIds.png",
    }
    with pytest.raises(DataError, match=r"is not below .*other. Move or link the images into the data set folder"):
        name_files(list(files), tmp_path / "other", "pseudo", "labelIds")


@pytest.mark.parametrize("name", ["a\tb.png", "a\nb.png", "#a.png", " a.png", "a\\b.png", "a\udcff.png"])
def test_a_name_that_a_list_cannot_hold_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="cannot be written to a list"):
        name_files([Input(tmp_path / name, "a")], tmp_path, "pseudo", "labelIds")


def test_only_unchanged_files_of_this_command_are_replaced(tmp_path):
    pixels = np.full((4, 6), 3, np.uint8)
    (tmp_path / "a.png").write_bytes(pseudo_labels._encode_label(pixels))
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.png"), pixels)
    pseudo_labels.require_replaceable(tmp_path, ["a.png", "missing.png"])
    with Image.open(tmp_path / "a.png") as picture:
        picture.load()
        picture.putpixel((0, 0), 4)
        # Some editors keep the text in a file.
        picture.save(tmp_path / "corrected.png", pnginfo=_copy_text(picture))
    Image.fromarray(pixels).save(tmp_path / "other.png")
    (tmp_path / "broken.png").write_text("not an image")
    for name in ("corrected.png", "other.png", "broken.png"):
        with pytest.raises(DataError, match=rf"{name} was not written by .*, or was edited since, so it is not overwritten"):
            pseudo_labels.require_replaceable(tmp_path, ["a.png", name])


def _copy_text(picture):
    from PIL import PngImagePlugin

    marks = PngImagePlugin.PngInfo()
    for key, text in picture.text.items():
        marks.add_text(key, text)
    return marks


def test_an_edited_list_is_recognized(tmp_path):
    none = np.zeros(2, np.int64)
    written = [pseudo_labels.PseudoLabel(name, f"{name}_labelIds.png", none, none) for name in ("b", "a")]
    pseudo_labels.write_list(tmp_path, "more", written)
    path = pseudo_labels.list_path(tmp_path, "more")
    assert path.read_text().splitlines()[1:] == ["a\ta_labelIds.png", "b\tb_labelIds.png"]
    assert pseudo_labels.is_written_list(path)
    path.write_text(path.read_text() + "c\tc.png\n")
    assert not pseudo_labels.is_written_list(path)
    assert not pseudo_labels.is_written_list(tmp_path / "missing.lst")
