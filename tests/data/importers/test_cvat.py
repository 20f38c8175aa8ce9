import pytest
from exports import draw, write_image, write_text

from deeplab_jax.data.importers import Notes, reading
from deeplab_jax.data.importers.cvat import OTHER_XML, read
from deeplab_jax.errors import DataError

LABELS = """<labels><label><name>car</name><color>#ff0080</color></label><label><name>sky</name></label></labels>"""


def write(path, shapes, meta="", attributes=""):
    image = f'<image id="0" name="my images/a.png" width="8" height="4" {attributes}>{shapes}</image>'
    text = f"<annotations><version>1.1</version><meta><task>{LABELS}{meta}</task></meta>{image}</annotations>"
    return write_text(path, f'<?xml version="1.0" encoding="utf-8"?>\n{text}')


def box(label, left, top, right, bottom, more=""):
    corners = f'xtl="{left}" ytl="{top}" xbr="{right}" ybr="{bottom}"'
    return f'<box label="{label}" {corners} {more}><attribute name="x">1</attribute></box>'


def test_shapes_are_drawn_by_their_z_order(tmp_path):
    write_image(tmp_path / "images/my images/a.png", 8, 4)
    shapes = (
        '<mask label="car" rle="0, 1, 2, 1" left="1" top="1" width="2" height="2" z_order="1" occluded="1"/>'
        '<mask label="sky" rle="0,32" left="0" top="0" width="8" height="4" z_order="0"/>'
        '<mask label="car" rle="0,32" left="0" top="0" width="8" height="4" outside="1" z_order="3"/>'
        '<tag label="car"/>'
    )
    write(tmp_path / "annotations.xml", shapes)
    write_text(tmp_path / "other.xml", "<other/>")
    notes = Notes()
    source = read(tmp_path, notes)
    (annotation,) = source.annotations
    assert (annotation.split, annotation.name, annotation.size) == ("train", "my images/a.png", (4, 8))
    assert source.classes == {"car": (255, 0, 128), "sky": None}
    assert draw(annotation, {"car": 1, "sky": 2}, size=(4, 8)) == ["22222222", "21222222", "22122222", "22222222"]
    assert notes.counts() == {OTHER_XML: 1}


def test_polygons_boxes_and_ellipses(tmp_path):
    pytest.importorskip("pycocotools")
    write_image(tmp_path / "a.png", 8, 4)
    shapes = (
        '<polygon label="car" points="0.0,0.0;2.0,0.0;2.0,2.0;0.0,2.0" z_order="0"/>'
        + box("sky", 4, 1, 8, 3)
        + box("car", 5, 0, 7, 4, 'rotation="90.0"')
        + '<ellipse label="car" cx="2" cy="3" rx="1" ry="0"/>'
    )
    write(tmp_path / "annotations.xml", shapes)
    image = (tmp_path / "annotations.xml").read_text().replace("my images/a.png", "a.png")
    write_text(tmp_path / "annotations.xml", image)
    (annotation,) = read(tmp_path, Notes()).annotations
    assert draw(annotation, {"car": 1, "sky": 2}, size=(4, 8)) == ["11000000", "11001111", "00001111", "01110000"]


@pytest.mark.parametrize("file", ["images/v1.5/frame_000000.PNG", "frames/v1.5/frame_000000.jpg"])
def test_frames_of_videos_are_named_without_a_suffix(tmp_path, file):
    write_image(tmp_path / file, 8, 4)
    text = write(tmp_path / "annotations.xml", "").read_text().replace("my images/a.png", "v1.5/frame_000000")
    write_text(tmp_path / "annotations.xml", text)
    notes = Notes()
    (annotation,) = read(tmp_path, notes).annotations
    assert (annotation.image, notes.counts()) == (tmp_path / file, {})
    assert annotation.name == f"v1.5/{annotation.image.name}"


def test_labels_without_an_area_are_no_classes(tmp_path):
    write_image(tmp_path / "images/my images/a.png", 8, 4)
    types = {"any": "any", "person": "skeleton", "nose": "points", "lane": "polyline", "night": "tag", "drawn": "polyline"}
    parents = {"nose": "<parent>person</parent>"}
    labels = (f"<label><name>{name}</name><type>{kind}</type>{parents.get(name, '')}</label>" for name, kind in types.items())
    text = write(tmp_path / "annotations.xml", box("drawn", 0, 0, 1, 1)).read_text()
    write_text(tmp_path / "annotations.xml", text.replace("</labels>", f"{''.join(labels)}</labels>"))
    assert list(read(tmp_path, Notes()).classes) == ["car", "sky", "any", "drawn"]


@pytest.mark.parametrize(
    ("meta", "attributes", "split"),
    [
        ("", 'subset="Validation"', "val"),
        ("<id>5</id><subset>Test</subset>", 'task_id="5"', "test"),
        ("<id>5</id><subset>val</subset>", "", "val"),
        ("", 'subset="other"', "train"),
    ],
)
def test_the_split_is_the_subset(tmp_path, meta, attributes, split):
    write_image(tmp_path / "images/my images/a.png", 8, 4)
    write(tmp_path / "annotations.xml", "", meta, attributes)
    (annotation,) = read(tmp_path, Notes()).annotations
    assert annotation.split == split


def test_without_a_subset_the_split_is_a_folder_of_the_image(tmp_path):
    names = ["dev/train/a.png", "dev/val/b/a.png", "dev/a.png"]  # all begin with dev, so it says nothing about the split
    for name in names:
        write_image(tmp_path / "images" / name)
    images = "".join(f'<image name="{name}"/>' for name in names)
    write_text(tmp_path / "annotations.xml", f"<annotations>{images}</annotations>")
    annotations = read(tmp_path, Notes()).annotations
    assert [each.split for each in annotations] == ["train", "val", "train"]
    assert [each.image.relative_to(tmp_path / "images").as_posix() for each in annotations] == names


def test_what_cannot_be_used_is_noted(tmp_path):
    write_image(tmp_path / "images/my images/a.png", 8, 4)
    shapes = '<polyline label="car" points="1,1;2,2"/><polygon label="car" points="1,1;2,2"/>' + box("x", 0, 0, 1, 1)
    write(tmp_path / "annotations.xml", shapes)
    write(tmp_path / "sub/gone.xml", "")
    text = (tmp_path / "sub/gone.xml").read_text()
    write_text(tmp_path / "sub/gone.xml", text.replace("my images/a.png", "gone.png"))
    write_text(tmp_path / "sub/out.xml", text.replace("my images/a.png", "../../../a.png"))
    notes = Notes()
    (annotation,) = read(tmp_path, notes).annotations
    assert [shape.name for shape in annotation.shapes] == [None]
    expected = (reading.UNSUPPORTED, reading.FEW_POINTS, reading.UNKNOWN_CLASS, reading.MISSING, reading.OUTSIDE)
    assert notes.counts() == dict.fromkeys(expected, 1)


@pytest.mark.parametrize(
    "shape", ['<mask label="car" rle="1,2" left="0" top="0" width="2" height="2"/>', box("car", 0, "x", 1, 1)]
)
def test_a_damaged_shape_makes_drawing_fail(tmp_path, shape):
    write_image(tmp_path / "images/my images/a.png", 8, 4)
    write(tmp_path / "annotations.xml", shape)
    (annotation,) = read(tmp_path, Notes()).annotations
    with pytest.raises(DataError, match=r"on 'my images/a\.png' in"):
        draw(annotation, {"car": 1, None: 255}, size=(4, 8))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotations>", "not valid XML"),
        ("<annotations><track/></annotations>", "format for videos"),
        ('<!DOCTYPE x [<!ENTITY y SYSTEM "file:///etc/passwd">]><annotations>&y;</annotations>', "has a document type"),
    ],
)
def test_a_malformed_file_is_an_error_that_names_it(tmp_path, text, message):
    write_text(tmp_path / "annotations.xml", text)
    with pytest.raises(DataError, match=rf"annotations\.xml .*{message}"):
        read(tmp_path, Notes())
