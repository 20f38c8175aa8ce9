import numpy as np
import pytest
from exports import draw, write_image, write_json, write_text
from PIL import Image

from deeplab_jax.data.importers import Notes, coco, reading, roboflow
from deeplab_jax.data.importers.coco import NOT_LISTED, NOT_USED
from deeplab_jax.data.importers.figures import read_mask_values
from deeplab_jax.errors import DataError

# Columns 1 and 2 of an image with 2 rows and 4 columns.
COLUMNS = {"size": [2, 4], "counts": [2, 4, 2]}
LAST = {"size": [2, 4], "counts": "44"}


def write(path, annotations, images=None, categories=None):
    images = images or [{"id": 1, "file_name": "a.png", "height": 2, "width": 4}]
    categories = categories or [{"id": 7, "name": "car"}, {"id": 9, "name": "sky"}]
    annotations = [{"id": i, "image_id": 1} | each for i, each in enumerate(annotations)]
    return write_json(path, {"images": images, "annotations": annotations, "categories": categories})


def test_objects_are_drawn_in_the_order_of_the_file_above_crowds(tmp_path):
    write_image(tmp_path / "val2017/a.png", 4, 2)
    objects = [
        {"category_id": 9, "segmentation": COLUMNS},
        {"category_id": 7, "segmentation": LAST},
        {"category_id": 7, "segmentation": {"size": [2, 4], "counts": [0, 4, 4]}, "iscrowd": 1},
    ]
    write(tmp_path / "annotations/instances_val2017.json", objects)
    write_json(tmp_path / "annotations/captions_val2017.json", {})
    notes = Notes()
    source = coco.read(tmp_path, notes)
    (annotation,) = source.annotations
    assert (annotation.image, annotation.split, annotation.name) == (tmp_path / "val2017/a.png", "val", "a.png")
    assert (list(source.classes), source.is_turned) == (["car", "sky"], None)
    assert draw(annotation, {"car": 1, "sky": 2, None: 255}, size=(2, 4)) == ["1211", "1211"]
    assert notes.counts() == {NOT_USED: 1}


def test_polygons_of_an_object_are_united(tmp_path):
    pytest.importorskip("pycocotools")
    write_image(tmp_path / "a.png", 4, 2)
    left, right = [0, 0, 1, 0, 1, 2, 0, 2], [3, 0, 4, 0, 4, 2, 3, 2]
    write(tmp_path / "train.json", [{"category_id": 7, "segmentation": [left, right, [1, 1, 2, 2]]}])
    notes = Notes()
    (annotation,) = coco.read(tmp_path, notes).annotations
    assert draw(annotation, {"car": 1}, size=(2, 4)) == ["1001", "1001"]
    assert notes.counts() == {reading.FEW_POINTS: 1}


POINTS = [[3, 0], [4, 0], [4, 2], [3, 2]]


@pytest.mark.parametrize("segmentation", [[3, 0, 4, 0, 4, 2, 3, 2], POINTS, [POINTS]])
def test_a_polygon_without_a_list_around_it_or_of_pairs_is_read(tmp_path, segmentation):
    pytest.importorskip("pycocotools")
    write_image(tmp_path / "a.png", 4, 2)
    write(tmp_path / "train.json", [{"category_id": 7, "segmentation": segmentation}])
    (annotation,) = coco.read(tmp_path, Notes()).annotations
    assert draw(annotation, {"car": 1}, size=(2, 4)) == ["0001", "0001"]


def test_panoptic_segments_are_the_pixels_with_their_id(tmp_path):
    write_image(tmp_path / "train2017/a.jpg", 2, 1)
    ids = np.array([[[4, 1, 0], [5, 0, 1]]], np.uint8)  # 4 + 256 and 5 + 65536
    (tmp_path / "annotations/panoptic_train2017").mkdir(parents=True)
    Image.fromarray(ids).save(tmp_path / "annotations/panoptic_train2017/a.png")
    segments = [{"id": 260, "category_id": 7}, {"id": 65541, "category_id": 9}]
    images = [{"id": 1, "file_name": "a.jpg", "height": 1, "width": 2}]
    write(tmp_path / "annotations/panoptic_train2017.json", [{"file_name": "a.png", "segments_info": segments}], images)
    (annotation,) = coco.read(tmp_path, Notes()).annotations
    assert draw(annotation, {"car": 1, "sky": 2}, size=(1, 2)) == ["12"]
    Image.fromarray(ids[..., ::-1]).save(tmp_path / "annotations/panoptic_train2017/a.png")  # as OpenCV writes RGB arrays
    (annotation,) = coco.read(tmp_path, Notes()).annotations
    read_mask_values.cache_clear()
    with pytest.raises(DataError, match=r"a\.png has no pixels with the id 260"):
        draw(annotation, {"car": 1, "sky": 2}, size=(1, 2))


@pytest.mark.parametrize("shared", ["", "images/", "C:\\Users\\dev\\"])
def test_the_split_of_a_file_for_all_splits_is_a_folder_of_the_image(tmp_path, shared):
    names = ["train/a.png", "Valid/x/a.png", "test/a.png", "more/a.png"]
    for name in names:
        write_image(tmp_path / "images" / name, 4, 2)
    images = [{"id": i, "file_name": shared + name} for i, name in enumerate(names)]
    write(tmp_path / "annotations.json", [], images)
    annotations = coco.read(tmp_path, Notes()).annotations
    locations = [(each.image.relative_to(tmp_path / "images").as_posix(), each.split, each.name) for each in annotations]
    assert locations == [
        ("train/a.png", "train", "a.png"),
        ("Valid/x/a.png", "val", "x/a.png"),
        ("test/a.png", "test", "a.png"),
        ("more/a.png", "train", "more/a.png"),
    ]


def test_a_name_of_two_classes_is_noted(tmp_path):
    write_image(tmp_path / "a.png", 4, 2)
    categories = [{"id": i, "name": "car"} for i in (0, 7, 8)]  # as the project in exports of Roboflow
    write(tmp_path / "a.json", [{"category_id": 7, "segmentation": LAST}], categories=categories)
    notes = Notes()
    assert list(coco.read(tmp_path, notes).classes) == ["car"]
    assert notes.counts() == {}
    write(tmp_path / "a.json", [{"category_id": i, "segmentation": LAST} for i in (7, 8)], categories=categories)
    coco.read(tmp_path, notes)
    assert notes.counts() == {reading.REPEATED: 1}


def test_what_cannot_be_used_is_noted(tmp_path):
    write_image(tmp_path / "a.png", 4, 2)
    objects = [
        {"category_id": 8, "segmentation": COLUMNS},
        {"category_id": 7, "segmentation": [], "bbox": [0, 0, 1, 1]},
        {"category_id": 7, "segmentation": COLUMNS, "image_id": 5},
    ]
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "gone.png"}, {"id": 3, "file_name": "../../../a.png"}]
    write(tmp_path / "x.json", objects, images)
    notes = Notes()
    (annotation,) = coco.read(tmp_path, notes).annotations
    assert annotation.unusable == reading.ONLY_BOXES
    assert draw(annotation, {None: 255}, size=(2, 4)) == ["0##0", "0##0"]
    assert notes.counts() == {reading.UNKNOWN_CLASS: 1, NOT_LISTED: 1, reading.MISSING: 1, reading.OUTSIDE: 1}


def test_an_image_of_another_split_is_not_taken_for_a_missing_one(tmp_path):
    write_image(tmp_path / "val/a.png", 4, 2)
    write(tmp_path / "annotations/train.json", [])
    notes = Notes()
    assert not coco.read(tmp_path, notes).annotations
    assert notes.counts() == {reading.MISSING: 1}


def test_images_are_found_by_the_end_of_their_path(tmp_path):
    write_image(tmp_path / "deep/down/x/a.png", 4, 2)
    images = [{"id": 1, "file_name": "x/a.png"}, {"id": 2, "file_name": "y/a.png"}]
    write(tmp_path / "annotations/labels.json", [], images)
    notes = Notes()
    (annotation,) = coco.read(tmp_path, notes).annotations
    assert annotation.name == "x/a.png"
    assert notes.counts() == {reading.MISSING: 1}


@pytest.mark.parametrize(
    "names",
    [
        ["/home/joe/set/a.png", "/home/joe/set/x/b.png"],
        ["C:\\set\\a.png", "C:\\set\\x\\b.png"],
        ["..\\..\\media\\upload\\4\\a.png", "..\\..\\media\\upload\\4\\x\\b.png"],  # Label Studio
        ["images/1/a.png", "images/1/x/b.png"],  # Label Studio
        ["https://example.org/a.png", "https://example.org/x/b.png"],
    ],
)
def test_images_are_found_without_the_folder_of_another_computer(tmp_path, names):
    write_image(tmp_path / "images/a.png", 4, 2)
    write_image(tmp_path / "images/x/b.png", 4, 2)
    write_image(tmp_path / "other/c.png", 4, 2)
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    write(tmp_path / "result.json", [{"image_id": 1, "category_id": 7, "segmentation": COLUMNS}], images)
    notes = Notes()
    first, second = coco.read(tmp_path, notes).annotations
    assert (first.image, first.name) == (tmp_path / "images/a.png", "a.png")
    assert (second.image, second.name) == (tmp_path / "images/x/b.png", "x/b.png")
    assert (len(first.shapes), len(second.shapes), notes.counts()) == (0, 1, {reading.MOVED: 2})


def test_an_image_of_another_folder_is_not_taken_for_that_of_another_computer(tmp_path):
    write_image(tmp_path / "camera2/a.png", 4, 2)
    write(tmp_path / "result.json", [], [{"id": 1, "file_name": "/home/joe/camera1/a.png"}])
    notes = Notes()
    assert not coco.read(tmp_path, notes).annotations
    assert notes.counts() == {reading.OUTSIDE: 1}


@pytest.mark.parametrize("kind", [str, float])  # pandas writes 1.0
def test_ids_can_be_text_or_whole_floats(tmp_path, kind):
    write_image(tmp_path / "a.png", 4, 2)
    objects = [{"image_id": kind(1), "category_id": kind(9), "segmentation": COLUMNS}]
    write(tmp_path / "x.json", objects)
    notes = Notes()
    (annotation,) = coco.read(tmp_path, notes).annotations
    assert ([shape.name for shape in annotation.shapes], notes.counts()) == (["sky"], {})


@pytest.mark.parametrize(
    ("images", "categories", "message"),
    [
        (["a.png", "b.png"], ["car"], r"x\.json has the id 1 twice in 'images', for 'a.png' and 'b.png'"),
        (["a.png"], ["car", "sky"], r"x\.json has the id 1 twice in 'categories', for 'car' and 'sky'"),
    ],
)
def test_an_id_of_two_images_or_classes_is_an_error(tmp_path, images, categories, message):
    images = [{"id": 1, "file_name": name} for name in images]
    write(tmp_path / "x.json", [], images, [{"id": 1, "name": name} for name in categories])
    with pytest.raises(DataError, match=message):
        coco.read(tmp_path, Notes())


def test_an_image_can_be_listed_twice(tmp_path):
    write_image(tmp_path / "a.png", 4, 2)
    write(tmp_path / "x.json", [], [{"id": 1, "file_name": "a.png"}] * 2)
    assert len(coco.read(tmp_path, Notes()).annotations) == 2


@pytest.mark.parametrize("segmentation", [[], [[]], [[0, 0, 4, 2]], [3, 0, 1, 2], [[3, 0], [1, 2]]])
def test_a_box_has_no_outline(tmp_path, segmentation):
    write_image(tmp_path / "a.png", 4, 2)
    objects = [{"category_id": 7, "segmentation": COLUMNS}, {"category_id": 7, "segmentation": segmentation}]
    write(tmp_path / "x.json", objects)
    (annotation,) = coco.read(tmp_path, Notes()).annotations
    assert annotation.unusable == reading.ONLY_BOXES


def test_fractions_of_the_size_are_an_error(tmp_path):
    write_image(tmp_path / "a.png", 4, 2)
    write(tmp_path / "x.json", [{"category_id": 7, "segmentation": [[0, 0, 0.5, 0, 0.5, 1]]}])
    with pytest.raises(DataError, match=r"x\.json are between 0 and 1.*in pixels"):
        coco.read(tmp_path, Notes())


@pytest.mark.parametrize("text", ["{", '{"images": [1], "annotations": [], "categories": []}'])
def test_a_malformed_file_is_an_error_that_names_it(tmp_path, text):
    write_text(tmp_path / "x.json", text)
    with pytest.raises(DataError, match=r"x\.json"):
        coco.read(tmp_path, Notes())


@pytest.mark.parametrize("segmentation", [{"counts": "44"}, [[1, 2, 3]], [["a"]], 5, {"size": [2, 4], "counts": [1]}])
def test_a_damaged_object_makes_drawing_fail(tmp_path, segmentation):
    write_image(tmp_path / "a.png", 4, 2)
    write(tmp_path / "x.json", [{"category_id": 7, "segmentation": segmentation}])
    (annotation,) = coco.read(tmp_path, Notes()).annotations
    with pytest.raises(DataError):
        draw(annotation, {"car": 1, None: 255}, size=(2, 4))


def test_roboflow_exports_have_a_category_for_the_project(tmp_path):
    categories = [
        {"id": 0, "name": "cars-x1", "supercategory": "none"},
        {"id": 1, "name": "car", "supercategory": "cars-x1"},
    ]
    for split in ("train", "valid"):
        write_image(tmp_path / split / "a.png", 4, 2)
        objects = [{"category_id": 1, "segmentation": COLUMNS}]
        write(tmp_path / split / "_annotations.coco.json", objects, categories=categories)
    source = roboflow.read(tmp_path, Notes())
    assert [each.split for each in source.annotations] == ["train", "val"]
    assert list(source.classes) == ["car"]


@pytest.mark.parametrize("name", ["a.jpg", "a.JPG"])
def test_roboflow_masks_are_values_listed_in_a_table(tmp_path, name):
    write_image(tmp_path / "valid" / name, 3, 1)
    write_image(tmp_path / "valid/b.jpg", 3, 1)
    write_text(tmp_path / "valid/_classes.csv", "Pixel Value, Class\n0, background\n1, car\n")
    Image.fromarray(np.array([[0, 1, 2]], np.uint8)).save(tmp_path / "valid/a_mask.png")
    notes = Notes()
    source = roboflow.read(tmp_path, notes)
    first, second = source.annotations
    assert (first.split, first.name, list(source.classes)) == ("val", name, ["background", "car"])
    assert draw(first, {"background": 0, "car": 1, None: 255}, size=(1, 3)) == ["01#"]
    assert not second.shapes
    assert notes.counts() == {reading.UNKNOWN_CLASS: 1}


def test_another_export_of_roboflow_is_an_error_with_advice(tmp_path):
    with pytest.raises(DataError, match="Export it as `COCO Segmentation`"):
        roboflow.read(tmp_path, Notes())
    write_text(tmp_path / "data.yaml", "names: [a]")
    with pytest.raises(DataError, match="--from yolo"):
        roboflow.read(tmp_path, Notes())
