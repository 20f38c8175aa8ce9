import pytest
from exports import draw, encode_png, square, write_image, write_json, write_text

from deeplab_jax.data.importers import Notes, reading
from deeplab_jax.data.importers.labelme import OTHER_JSON, WITHOUT_FILE, read


def shape(label, points, kind="polygon", **fields):
    return {"label": label, "points": points, "shape_type": kind, **fields}


def write(path, shapes, image="a.png", data=None, size=(8, 8)):
    return write_json(
        path, {"imagePath": image, "imageData": data, "imageHeight": size[0], "imageWidth": size[1], "shapes": shapes}
    )


def test_shapes_are_drawn_in_the_order_of_the_file(tmp_path):
    write_image(tmp_path / "val/my images/a.png")
    shapes = [
        shape("car", square(1, 1, 5, 5)),
        shape("road", [[4, 4], [7, 7]], "rectangle"),
        shape("car", [[6, 1], [7, 2]], "mask", mask=encode_png([[255, 0], [0, 255]])),
        shape("__ignore__", [[0, 0], [0, 7]], "rectangle"),
    ]
    write(tmp_path / "val/my images/a.json", shapes)
    notes = Notes()
    source = read(tmp_path, notes)
    (annotation,) = source.annotations
    assert (annotation.split, annotation.name, annotation.size) == ("val", "my images/a.png", (8, 8))
    assert (list(source.classes), source.is_turned, notes.counts()) == (["car", "road"], True, {})
    assert draw(annotation, {"car": 1, "road": 2, None: 255}) == [
        "#0000000",
        "#1111110",
        "#1111101",
        "#1111100",
        "#1112222",
        "#1112222",
        "#0002222",
        "#0002222",
    ]


def test_a_rectangle_can_have_all_four_corners(tmp_path):
    write_image(tmp_path / "a.png", 4, 4)
    write(tmp_path / "a.json", [shape("car", [[1, 2], [2, 2], [2, 3], [1, 3]], "rectangle")], size=(4, 4))
    (annotation,) = read(tmp_path, Notes()).annotations
    assert draw(annotation, {"car": 1}, size=(4, 4)) == ["0000", "0000", "0110", "0110"]


@pytest.mark.parametrize("kind", ["rotation", "oriented_rectangle"])  # X-AnyLabeling, LabelMe
def test_a_turned_rectangle_has_four_corners(tmp_path, kind):
    write_image(tmp_path / "a.png", 4, 4)
    write(tmp_path / "a.json", [shape(7, [[1, 0], [2, 1], [1, 2], [0, 1]], kind)], size=(4, 4))
    (annotation,) = read(tmp_path, Notes()).annotations
    assert draw(annotation, {"7": 1}, size=(4, 4)) == ["0100", "1110", "0100", "0000"]


def test_images_are_found_where_the_file_says_or_next_to_it_or_inside_it(tmp_path):
    write_image(tmp_path / "images/a.png")
    write_image(tmp_path / "labels/moved.png")
    write_image(tmp_path / "images/without.png")
    write(tmp_path / "labels/a.json", [], "..\\images\\a.png")
    write(tmp_path / "labels/moved.json", [], "elsewhere/moved.png")
    write(tmp_path / "labels/inside.json", [], "gone.png", encode_png([[1]]))
    write(tmp_path / "labels/gone.json", [], "gone.png")
    notes = Notes()
    annotations = {each.image.name: each for each in read(tmp_path, notes).annotations}
    assert [each.name for each in annotations.values()] == ["images/a.png", "labels/inside.json", "labels/moved.png"]
    assert annotations["inside.json"].embedded().startswith(b"\x89PNG")
    assert notes.counts() == {reading.MISSING: 1, WITHOUT_FILE: 1}


OUTSIDE_NAMES = ["../../a.png", "/etc/a.png", "x/../../../a.png", "..\\..\\a.png", "C:\\a.png"]


@pytest.mark.parametrize("name", OUTSIDE_NAMES)
def test_the_path_of_another_computer_is_replaced_by_the_image_next_to_or_inside_the_file(tmp_path, name):
    write_image(tmp_path / "a.png")
    write(tmp_path / "root/sub/a.json", [], name, encode_png([[1]]))
    (embedded,) = read(tmp_path / "root", Notes()).annotations
    assert embedded.embedded().startswith(b"\x89PNG")
    write_image(tmp_path / "root/sub/a.png")
    notes = Notes()
    (near,) = read(tmp_path / "root", notes).annotations
    assert (near.image, near.embedded, notes.counts()) == (tmp_path / "root/sub/a.png", None, {})


@pytest.mark.parametrize("name", OUTSIDE_NAMES)
def test_an_image_outside_of_the_folder_is_refused(tmp_path, name):
    write_image(tmp_path / "a.png")
    write(tmp_path / "root/sub/a.json", [], name)
    notes = Notes()
    assert not read(tmp_path / "root", notes).annotations
    assert notes.counts() == {reading.OUTSIDE: 1}
    assert "give the folder above both the images and the annotations" in next(notes.lines())


def test_what_cannot_be_used_is_noted(tmp_path):
    write_image(tmp_path / "a.png")
    shapes = [shape("car", [[1, 1]], "point"), shape("car", [[1, 1], [2, 2]], "line"), shape("car", [[1, 1], [2, 2]])]
    write(tmp_path / "a.json", shapes)
    write_text(tmp_path / "bad.json", "{")
    (tmp_path / "latin.json").write_bytes(b'{"imagePath": "\xe9.png"}')
    write_json(tmp_path / "other.json", [])
    notes = Notes()
    (annotation,) = read(tmp_path, notes).annotations
    assert not annotation.shapes
    assert notes.counts() == {reading.UNSUPPORTED: 2, reading.FEW_POINTS: 1, reading.UNREADABLE: 2, OTHER_JSON: 1}
    assert any("bad.json is not valid JSON" in line for line in notes.lines())


@pytest.mark.parametrize(
    "damaged",
    [
        shape("car", [[1, "x"], [2, 2], [3, 3]]),
        shape("car", [[1, 1]], "circle"),
        shape("car", [[0, 0], [1, 1]], "mask"),
        shape("car", [[0, 0], [1, 1]], "mask", mask="?"),
        shape("car", [[0, 0]], "rectangle"),
        shape("car", [[0, 0], [1, 0], [1, 1]], "rectangle"),
        {"points": []},
        7,
    ],
)
def test_a_damaged_shape_makes_drawing_fail(tmp_path, damaged):
    from deeplab_jax.errors import DataError

    write_image(tmp_path / "a.png")
    write(tmp_path / "a.json", [damaged])
    (annotation,) = read(tmp_path, Notes()).annotations
    with pytest.raises(DataError):
        draw(annotation, {"car": 1, None: 255})
