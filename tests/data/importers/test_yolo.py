import pytest
from exports import draw, write_image, write_text

from deeplab_jax.data.importers import Notes, reading
from deeplab_jax.data.importers.yolo import NO_FOLDER, read
from deeplab_jax.errors import DataError

QUARTER = "1 0 0 0.5 0 0.5 0.5 0 0.5\n"  # the upper left quarter


def test_a_set_in_the_structure_of_ultralytics(tmp_path):
    pytest.importorskip("pycocotools")
    write_image(tmp_path / "images/train/x/a.b.jpg", 8, 4)
    write_image(tmp_path / "images/val/c.png", 8, 4)
    write_text(tmp_path / "labels/train/x/a.b.txt", QUARTER)
    write_text(
        tmp_path / "set.yaml", "path: /elsewhere/set\ntrain: images/train\nval: images/val\nnames:\n  0: sky\n  1: car\n"
    )
    notes = Notes()
    source = read(tmp_path, notes)
    first, second = source.annotations
    assert (first.split, first.name, first.size, list(source.classes)) == ("train", "x/a.b.jpg", (4, 8), ["sky", "car"])
    assert draw(first, {"sky": 0, "car": 1}, size=(4, 8)) == ["11110000", "11110000", "00000000", "00000000"]
    assert (second.split, second.name, second.shapes, notes.counts()) == ("val", "c.png", (), {})


def test_a_set_in_the_structure_of_roboflow(tmp_path):
    write_image(tmp_path / "train/images/a.png")
    write_image(tmp_path / "valid/images/a.png")
    write_text(tmp_path / "valid/labels/a.txt", QUARTER)
    text = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 2\nnames: ['sky', 'car']\n"
    write_text(tmp_path / "data.yaml", text)
    notes = Notes()
    first, second = read(tmp_path, notes).annotations
    assert (first.split, first.name, second.split, len(second.shapes)) == ("train", "a.png", "val", 1)
    assert notes.counts() == {NO_FOLDER: 1}


def test_splits_can_be_lists_of_files(tmp_path):
    write_image(tmp_path / "images/train/a.png")
    write_text(tmp_path / "train.txt", "./images/train/a.png\n./images/train/gone.png\n/etc/x.png\n")
    write_text(tmp_path / "labels/train/a.txt", "")
    write_text(tmp_path / "data.yaml", "train: train.txt\nnames: [sky]")
    notes = Notes()
    (annotation,) = read(tmp_path, notes).annotations
    assert (annotation.split, annotation.name) == ("train", "a.png")
    assert notes.counts() == {reading.MISSING: 1, reading.OUTSIDE: 1}


@pytest.mark.parametrize("folder", ["/home/joe/set", "C:/set", "build/x64"])
def test_lists_of_another_computer_are_read(tmp_path, folder):
    for name in ("a", "x/b"):
        write_image(tmp_path / f"images/train/{name}.png")
        write_text(tmp_path / f"labels/train/{name}.txt", QUARTER)
    write_text(tmp_path / "train.txt", f"{folder}/a.png\n\n{folder}/x/b.png\n")
    write_text(tmp_path / "data.yaml", "train: train.txt\nnames: [sky, car]")
    notes = Notes()
    first, second = read(tmp_path, notes).annotations
    assert [(each.name, len(each.shapes)) for each in (first, second)] == [("a.png", 1), ("x/b.png", 1)]
    assert notes.counts() == {reading.MOVED: 2}


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_the_polygons_of_a_turned_image_belong_to_the_turned_view(tmp_path, suffix):
    write_image(tmp_path / f"images/a.{suffix}", 8, 4, orientation=6)
    write_text(tmp_path / "labels/a.txt", QUARTER)
    write_text(tmp_path / "data.yaml", "train: images\nnames: [sky, car]")
    (annotation,) = read(tmp_path, Notes()).annotations
    assert annotation.size == (8, 4)
    assert annotation.shapes[0].figure.extent() == (0, 0, 2, 4)


def test_what_cannot_be_used_is_noted(tmp_path):
    for name in "abc":
        write_image(tmp_path / f"images/{name}.png")
    write_text(tmp_path / "images/d.png", "no image")
    write_text(tmp_path / "labels/a.txt", "0 0.5 0.5 0.1 0.1\n")
    write_text(tmp_path / "labels/b.txt", f"\n7 0 0 1 0 1 1\n0 0.1 0.2\n{QUARTER}")
    write_text(tmp_path / "labels/c.txt", "0 0 0 1 0 1\n")
    write_text(tmp_path / "labels/d.txt", QUARTER)
    write_text(tmp_path / "data.yaml", "train: images\nnames: [sky, car]")
    notes = Notes()
    boxes, mixed, odd, broken = read(tmp_path, notes).annotations
    assert (boxes.unusable, broken.unusable) == (reading.ONLY_BOXES, reading.BAD_IMAGE)
    assert [shape.name for shape in mixed.shapes] == [None, "car"]
    assert notes.counts() == {reading.UNKNOWN_CLASS: 1, reading.FEW_POINTS: 1}
    with pytest.raises(DataError, match="line 1 of"):
        draw(odd, {None: 255})


def test_class_names_are_what_the_file_says(tmp_path):
    write_image(tmp_path / "images/a.png")
    write_text(tmp_path / "labels/a.txt", QUARTER)
    write_text(tmp_path / "data.yaml", "train: images\nnames: [yes, on, 010, 3.10, no]")
    source = read(tmp_path, Notes())
    assert list(source.classes) == ["yes", "on", "010", "3.10", "no"]
    assert [shape.name for shape in source.annotations[0].shapes] == ["on"]


def test_a_name_of_two_classes_is_noted(tmp_path):
    write_image(tmp_path / "images/a.png")
    write_text(tmp_path / "labels/a.txt", QUARTER)
    write_text(tmp_path / "data.yaml", "train: images\nnames: [car, sky, car]")
    notes = Notes()
    assert list(read(tmp_path, notes).classes) == ["car", "sky"]
    assert list(notes.lines()) == [f"{reading.REPEATED} (1), for example 'car' in {tmp_path / 'data.yaml'}"]


@pytest.mark.parametrize(
    "line", ["0 2 2 20 2 20 20", "0 10 10 50 10 50 50", "0.5 0 0 1 0 1 1", "car 0 0 1 0 1 1", "0,0,0,1,0,1,1"]
)
def test_pixels_percentages_and_other_lines_are_damaged(tmp_path, line):
    write_image(tmp_path / "images/a.png", 40, 30)
    write_text(tmp_path / "labels/a.txt", line)
    write_text(tmp_path / "data.yaml", "train: images\nnames: [sky, car]")
    (annotation,) = read(tmp_path, Notes()).annotations
    with pytest.raises(DataError, match="line 1 of"):
        draw(annotation, {"sky": 1, None: 255})


def test_shapes_that_reach_beyond_the_image_a_little_are_kept(tmp_path):
    write_image(tmp_path / "images/a.png", 4, 2)
    write_text(tmp_path / "labels/a.txt", "0.0 -0.25 0 1.5 0 1.5 1")
    write_text(tmp_path / "data.yaml", "train: images\nnames: [sky, car]")
    (annotation,) = read(tmp_path, Notes()).annotations
    assert annotation.shapes[0].name == "sky"
    assert annotation.shapes[0].figure.extent() == (-1, 0, 6, 2)


def test_images_without_any_label_file_are_an_error(tmp_path):
    write_image(tmp_path / "images/a.png")
    write_text(tmp_path / "annotations/a.txt", QUARTER)
    write_text(tmp_path / "data.yaml", "train: images\nnames: [sky, car]")
    with pytest.raises(DataError, match=r"None of the 1 images .* has a label file\..*images/a\.png.*labels/a\.txt"):
        read(tmp_path, Notes())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [", "not valid YAML"),
        ("train: x", "no YAML file with class `names`.*or write one"),
        ("names: 3", "neither"),
        ("names: car, road", r"`names` \(='car, road'\).*neither"),
        ("names: [{car: 0}, {road: 1}]", "neither"),
        ("names: [tiger]\nkpt_shape: [12, 2]", r"`kpt_shape` \(=\[12, 2\]\).*Export polygons"),
    ],
)
def test_a_malformed_description_is_an_error_that_names_it(tmp_path, text, message):
    write_text(tmp_path / "data.yaml", text)
    with pytest.raises(DataError, match=message):
        read(tmp_path, Notes())
