import base64
import zlib

import pytest
from exports import draw, encode_png, square, write_image, write_json, write_text

from deeplab_jax.data.importers import Notes, reading
from deeplab_jax.data.importers.supervisely import read
from deeplab_jax.errors import DataError

IDS = {"car": 1, "sky": 2, None: 255}


def compress(png):
    return base64.b64encode(zlib.compress(base64.b64decode(png))).decode()


def polygon(name, exterior, *interior):
    return {"classTitle": name, "geometryType": "polygon", "points": {"exterior": exterior, "interior": list(interior)}}


def bitmap(name, data, origin):
    return {"classTitle": name, "geometryType": "bitmap", "bitmap": {"data": data, "origin": origin}}


def write(root, path, objects, tags=()):
    classes = [
        {"title": "car", "shape": "polygon", "color": "#FF0080"},
        {"title": "sky", "shape": "bitmap", "color": "#00ff00"},
    ]
    write_json(root / "meta.json", {"classes": classes, "tags": []})
    content = {"size": {"height": 8, "width": 8}, "tags": [{"name": tag} for tag in tags], "objects": objects}
    write_json(root / path, content)


def test_objects_are_drawn_in_the_order_of_the_file(tmp_path):
    write_image(tmp_path / "valid/img/a.png")
    mask = encode_png([[255, 0], [255, 255]])
    objects = [
        polygon("car", square(1, 1, 6, 6), square(3, 3, 4, 4)),
        {"classTitle": "sky", "geometryType": "rectangle", "points": {"exterior": [[0, 0], [7, 0]], "interior": []}},
        bitmap("sky", compress(mask), [6, 5]),
        bitmap("sky", mask, [0, 3]),
    ]
    write(tmp_path, "valid/ann/a.png.json", objects)
    notes = Notes()
    source = read(tmp_path, notes)
    (annotation,) = source.annotations
    assert (annotation.split, annotation.name, annotation.size) == ("val", "a.png", (8, 8))
    assert source.classes == {"car": (255, 0, 128), "sky": (0, 255, 0)}
    assert draw(annotation, IDS) == [
        "22222222",
        "01111110",
        "01111110",
        "21100110",
        "22100110",
        "01111120",
        "01111122",
        "00000000",
    ]
    assert notes.counts() == {}


@pytest.mark.parametrize("name", ["a.png", "IMG_1.JPG"])
def test_annotations_of_older_projects_are_named_without_the_suffix_of_the_image(tmp_path, name):
    image = write_image(tmp_path / "x/img" / name)
    write(tmp_path, f"x/ann/{image.stem}.json", [])
    assert [each.image for each in read(tmp_path, Notes()).annotations] == [image]


def test_data_sets_are_folders_and_tags_are_splits(tmp_path):
    write_image(tmp_path / "city/datasets/day/img/a.png")
    write(tmp_path, "city/datasets/day/ann/a.png.json", [], ["Test"])
    (annotation,) = read(tmp_path, Notes()).annotations
    assert (annotation.split, annotation.name) == ("test", "city/day/a.png")


def test_what_cannot_be_used_is_noted(tmp_path):
    write_image(tmp_path / "x/img/a.png")
    line = {"classTitle": "car", "geometryType": "line", "points": {"exterior": [[0, 0], [1, 1]]}}
    write(tmp_path, "x/ann/a.png.json", [line, polygon("car", [[0, 0], [1, 1]]), polygon("tree", square(0, 0, 1, 1))])
    write(tmp_path, "x/ann/gone.png.json", [])
    write_text(tmp_path / "x/ann/bad.png.json", "{")
    notes = Notes()
    (annotation,) = read(tmp_path, notes).annotations
    assert [shape.name for shape in annotation.shapes] == [None]
    expected = (reading.UNSUPPORTED, reading.FEW_POINTS, reading.UNKNOWN_CLASS, reading.MISSING, reading.UNREADABLE)
    assert notes.counts() == dict.fromkeys(expected, 1)


@pytest.mark.parametrize("data", ["?", "eJw=", compress(encode_png([[1]]))[:20]])
def test_a_damaged_bitmap_makes_drawing_fail(tmp_path, data):
    write_image(tmp_path / "x/img/a.png")
    write(tmp_path, "x/ann/a.png.json", [bitmap("car", data, [0, 0])])
    (annotation,) = read(tmp_path, Notes()).annotations
    with pytest.raises(DataError):
        draw(annotation, IDS)


@pytest.mark.parametrize("text", ["{", "[]", '{"classes": [{}]}'])
def test_a_malformed_meta_file_is_an_error_that_names_it(tmp_path, text):
    write_text(tmp_path / "meta.json", text)
    with pytest.raises(DataError, match=r"meta\.json"):
        read(tmp_path, Notes())
    (tmp_path / "meta.json").unlink()
    with pytest.raises(DataError, match=r"has no meta\.json\. Give the folder of a project"):
        read(tmp_path, Notes())
