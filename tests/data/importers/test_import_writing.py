import io
import os
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from conftest import read_pixels
from exports import write_image
from PIL import Image, ImageOps

from deeplab_jax.data.importers import Annotation, AnnotationSet, Notes, Shape, reading, write
from deeplab_jax.data.importers.figures import Bitmap, Rectangle
from deeplab_jax.data.importers.label_ids import find_alike, make_label_set
from deeplab_jax.data.importers.write import Drawing, draw_mask, find_view, new_folder, require_output, write_samples
from deeplab_jax.errors import ConfigError, DataError

DRAWING = Drawing({"car": 1, "sky": 2, None: 255}, fill=0)
CORNER = Shape("car", Rectangle(((0, 0), (1, 0))))  # two pixels in the upper left corner


def test_smaller_shapes_are_on_top_if_drawn_by_area():
    small, large = Shape("car", Rectangle(((1, 0), (1, 0)))), Shape("sky", Rectangle(((0, 0), (2, 0))))
    assert draw_mask((small, large), (1, 4), DRAWING).tolist() == [[2, 2, 2, 0]]
    assert draw_mask((small, large), (1, 4), replace(DRAWING, order="area", fill=255)).tolist() == [[2, 1, 2, 255]]


def test_drawing_by_area_needs_no_more_memory_for_more_shapes():
    shapes = tuple(Shape("car", Bitmap(np.ones((i, i), bool))) for i in range(1, 51))
    tracemalloc.start()
    draw_mask(shapes, (400, 500), replace(DRAWING, order="area"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 400 * 500  # the mask, a shape, and what NumPy needs to assign; 50 shapes would be 10 MB


def run(folder, *annotations, is_turned=True, drawing=DRAWING):
    notes = Notes()
    counts = write_samples(AnnotationSet({}, list(annotations), is_turned), folder, drawing, notes, lambda: None)
    return dict(counts), notes.counts()


def test_images_keep_their_bytes_and_names(tmp_path):
    image = write_image(tmp_path / "in/a.jpg", 4, 2)
    annotations = [
        Annotation(image, "val", name, (CORNER,))
        for name in ("x y/a.b.JPG", "x y/a.b.png", "shop_color.jpg", "\udce9.jpg", "\u00e9.jpg")
    ]
    assert run(tmp_path / "out", *annotations) == ({"val": 4}, {write.DUPLICATE: 1})
    for name in ("x y/a.b.JPG", "shop_color_image.jpg", "%E9.jpg", "\u00e9.jpg"):
        path = tmp_path / "out/input/val" / name
        assert path.read_bytes() == image.read_bytes()
        assert read_pixels((tmp_path / "out/target/val" / name).with_suffix(".png")).tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    assert os.stat(image).st_nlink == 5


def test_images_are_copied_where_they_cannot_be_linked(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("another device")

    monkeypatch.setattr(os, "link", refuse)
    image = write_image(tmp_path / "in/a.jpg", 4, 2)
    assert run(tmp_path / "out", Annotation(image, "train", "a.jpg", (CORNER,))) == ({"train": 1}, {})
    assert (tmp_path / "out/input/train/a.jpg").read_bytes() == image.read_bytes()


@pytest.mark.parametrize("orientation", range(2, 9))
def test_the_mask_of_a_turned_image_belongs_to_the_stored_pixels(tmp_path, orientation):
    image = write_image(tmp_path / "in/a.jpg", 4, 2, orientation)
    size = (2, 4) if orientation < 5 else (4, 2)
    drawn = np.random.default_rng(0).integers(0, 2, size).astype(bool)
    annotation = Annotation(image, "train", "a.jpg", (Shape("car", Bitmap(drawn)),), size)
    assert run(tmp_path / "out", annotation) == ({"train": 1}, {write.TURNED: 1})
    stored = Image.fromarray(read_pixels(tmp_path / "out/target/train/a.png"))
    stored.getexif()[0x0112] = orientation
    # Turning the stored mask as a viewer would turn the image gives what was drawn.
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(ImageOps.exif_transpose(Image.open(file)), drawn)


def test_the_sizes_or_the_tool_decide_which_view_was_drawn_on():
    assert find_view((2, 4), (4, 2), (4, 2), None) is True
    assert find_view((2, 4), (4, 2), (2, 4), True) is False
    assert find_view((2, 4), (4, 2), None, True) is True
    assert find_view((4, 4), (4, 4), (4, 4), None) is None


def test_images_that_would_train_wrongly_are_left_out(tmp_path):
    image = write_image(tmp_path / "in/a.jpg", 4, 2)
    turned = write_image(tmp_path / "in/turned.jpg", 4, 2, 3)
    broken = tmp_path / "in/broken.jpg"
    broken.write_bytes(b"no image")
    write_image(tmp_path / "in/a.gif", 4, 2)
    annotations = [
        Annotation(image, "train", "size.jpg", (CORNER,), (2, 5)),
        Annotation(turned, "train", "turned.jpg", (CORNER,), (2, 4)),
        Annotation(broken, "train", "broken.jpg", (CORNER,)),
        Annotation(tmp_path / "in/gone.jpg", "train", "gone.jpg", (CORNER,)),
        Annotation(tmp_path / "in/a.gif", "train", "a.gif", (CORNER,)),
        Annotation(image, "train", "empty.jpg", ()),
        Annotation(image, "train", "boxes.jpg", (CORNER,), unusable=reading.ONLY_BOXES),
    ]
    counts, notes = run(tmp_path / "out", *annotations, is_turned=None)
    assert counts == {}
    kinds = (write.SIZES, write.UNCLEAR_TURN, write.FORMAT, write.EMPTY, reading.ONLY_BOXES)
    assert notes == {**dict.fromkeys(kinds, 1), reading.BAD_IMAGE: 2}
    assert not (tmp_path / "out").exists()


def test_further_annotations_of_an_image_are_noted(tmp_path):
    image = write_image(tmp_path / "in/a.jpg", 4, 2)
    annotations = [Annotation(image, "train", "a.jpg", (CORNER,)) for _ in range(2)]
    assert run(tmp_path / "out", *annotations) == ({"train": 1}, {write.AGAIN: 1})


def test_an_image_of_two_splits_is_noted(tmp_path):
    image = write_image(tmp_path / "in/a.jpg", 4, 2)
    annotations = [Annotation(image, split, "a.jpg", (CORNER,)) for split in ("train", "val")]
    assert run(tmp_path / "out", *annotations) == ({"train": 1, "val": 1}, {write.SHARED: 1})


def test_class_names_that_look_alike_are_listed():
    assert find_alike(["car", "road", "Car", "car "]) == ["'car', 'Car', 'car '"]
    assert find_alike(["car", "cars"]) == []
    # Objects that were numbered would become classes of their own.
    assert find_alike(["person1", "dog", "Person-2", "person_13"]) == ["'person1', 'Person-2', 'person_13'"]
    assert find_alike(["1", "2", "-3", "v1.5", "v1.7"]) == []


def test_images_without_shapes_can_be_kept(tmp_path):
    image = write_image(tmp_path / "in/a.jpg", 4, 2)
    drawing = replace(DRAWING, keep_empty=True)
    assert run(tmp_path / "out", Annotation(image, "train", "a.jpg", ()), drawing=drawing) == ({"train": 1}, {})
    assert not read_pixels(tmp_path / "out/target/train/a.png").any()


def test_shapes_beyond_the_image_are_cut_off_and_noted(tmp_path):
    image = write_image(tmp_path / "in/a.jpg", 4, 2)
    shapes = (Shape("car", Rectangle(((3, -3), (6, 0)))), Shape("sky", Rectangle(((0, 1), (4.5, 2.5)))))
    assert run(tmp_path / "out", Annotation(image, "train", "a.jpg", shapes)) == ({"train": 1}, {write.BEYOND: 1})
    assert read_pixels(tmp_path / "out/target/train/a.png").tolist() == [[0, 0, 0, 1], [2, 2, 2, 2]]


def test_an_embedded_image_gets_the_suffix_of_its_format(tmp_path):
    data = write_image(tmp_path / "in/a.jpg", 4, 2).read_bytes()
    annotation = Annotation(tmp_path / "a.json", "train", "a.json", (CORNER,), embedded=lambda: data)
    assert run(tmp_path / "out", annotation) == ({"train": 1}, {})
    assert (tmp_path / "out/input/train/a.jpg").read_bytes() == data


DEAD_PROCESS = 2**22 + 1  # more than the largest number of a process on Linux


def test_a_failed_or_killed_import_leaves_nothing_and_can_be_repeated(tmp_path):
    out = tmp_path / "out"
    left_over = tmp_path / f".out.importing.{DEAD_PROCESS}/input/train/a.png"
    left_over.parent.mkdir(parents=True)
    left_over.write_text("from a killed import")
    with pytest.raises(ConfigError, match="Cannot write"), new_folder(out) as folder:
        (folder / "gone/x").touch()
    assert not list(tmp_path.iterdir())
    out.mkdir()
    with new_folder(out) as folder:
        (folder / "x").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "x"]


def test_of_two_imports_to_one_folder_the_first_to_end_is_complete(tmp_path, monkeypatch):
    first, second = (new_folder(tmp_path / "out") for _ in range(2))
    (first.__enter__() / "x").touch()
    monkeypatch.setattr(os, "getpid", os.getppid)
    (second.__enter__() / "y").touch()
    first.__exit__(None, None, None)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"]
    with pytest.raises(ConfigError, match=r"Cannot write .*out: Directory not empty"):
        second.__exit__(None, None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_output_must_be_new_and_outside_of_the_root(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    require_output(tmp_path / "root", tmp_path / "new")
    for root, out in (("root", "full"), ("root", "full/x"), ("full", "full/new"), ("full", "full")):
        with pytest.raises(ConfigError, match="`--out`"):
            require_output(tmp_path / root, tmp_path / out)


def test_a_mount_point_cannot_be_the_output(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path)
    with pytest.raises(ConfigError, match=r"is a mount point.* Choose a folder inside it\."):
        require_output(tmp_path / "root", tmp_path)
    require_output(tmp_path / "root", tmp_path / "out")


def test_classes_follow_the_background_and_keep_usable_colors():
    classes = {"car": (1, 2, 3), "_background_": (9, 9, 9), "sky": (1, 2, 3), "road": None, "pole": (0, 0, 0)}
    labels, ids = make_label_set("x", AnnotationSet(classes, []), has_background=False)
    assert labels.names == ("background", "car", "sky", "road", "pole")
    assert ids == {"_background_": 0, "car": 1, "sky": 2, "road": 3, "pole": 4, None: 255}
    assert labels.colors[:2] == ((0, 0, 0), (1, 2, 3))
    assert len(set(labels.colors)) == 5
    assert (labels.class_ids, labels.ignored_ids) == ((0, 1, 2, 3, 4), (255,))


def test_without_a_background_ids_begin_with_the_first_class():
    labels, ids = make_label_set("x", AnnotationSet({"car": None, "sky": None}, []), has_background=False)
    assert (labels.names, ids) == (("car", "sky"), {"car": 0, "sky": 1, None: 255})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("car", "have only the class 'car', and training needs 2 or more. Use `--unlabelled background`"),
        ("_background_", "have only the class 'background', and training needs 2 or more. Draw shapes of another class."),
    ],
)
def test_a_single_class_is_refused_with_advice_that_helps(name, message):
    with pytest.raises(DataError, match=message):
        make_label_set("x", AnnotationSet({name: None}, []), has_background=False)
