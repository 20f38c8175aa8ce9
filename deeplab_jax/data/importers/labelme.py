"""LabelMe: one JSON file for each image, with shapes in drawing order.

See https://github.com/wkentaro/labelme. The pixels are those of `labelme.utils.shapes_to_label`. As in its `labelme2voc`
example, the labels "__ignore__" and "_background_" stand for ignored pixels and the background.
"""

import base64
import binascii
import math
from pathlib import Path
from typing import Any

from deeplab_jax.data.decode import IMAGE_SUFFIXES
from deeplab_jax.data.importers import reading
from deeplab_jax.data.importers.annotation import Annotation, AnnotationSet, Notes, Shape
from deeplab_jax.data.importers.figures import Circle, Damaged, EncodedBitmap, Figure, Outline, Rectangle, pairs
from deeplab_jax.errors import DataError
from deeplab_jax.labels import Color

OTHER_JSON = "JSON files that are not LabelMe annotations"
WITHOUT_FILE = "images without an annotation file (left out)"
WITHOUT_AREA = ("point", "points", "line", "linestrip")


def read(root: Path, notes: Notes) -> AnnotationSet:
    """Read the LabelMe files below a folder.

    The split is the first folder if that is named train, val or test, and train otherwise. Classes are in alphabetical order,
    because LabelMe has no list of them.

    Args:
      root: The folder, as an absolute path.
      notes: Receives what could not be used.

    Raises:
      DataError: There is no LabelMe file.
    """
    annotations = []
    for path in reading.find_files(root, [".json"]):
        try:
            content = reading.read_json(path)
        except DataError as error:
            notes.add(reading.UNREADABLE, error)
            continue
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            notes.add(OTHER_JSON, path)
            continue
        annotation = _read_file(root, path, content, notes)
        if annotation:
            annotations.append(annotation)
    used = {annotation.image for annotation in annotations}
    for image in reading.find_files(root, IMAGE_SUFFIXES):
        if image not in used and not image.with_suffix(".json").exists():
            notes.add(WITHOUT_FILE, image)
    names = sorted({shape.name for each in annotations for shape in each.shapes if shape.name is not None})
    classes: dict[str, Color | None] = dict.fromkeys(names)
    return AnnotationSet(classes, annotations, is_turned=True)


def _read_file(root: Path, path: Path, content: dict[str, Any], notes: Notes) -> Annotation | None:
    image = _find_image(root, path, content, notes)
    if image is None:
        return None
    shapes = tuple(shape for each in content["shapes"] if (shape := _read_shape(path, each, notes)))
    size = reading.parse_size(content.get("imageHeight"), content.get("imageWidth"))
    if image != path:
        split, name = reading.split_path(image, root)
        return Annotation(image, split, name, shapes, size)
    split, name = reading.split_path(path, root)
    return Annotation(path, split, name, shapes, size, embedded=lambda: _read_embedded(path))


def _find_image(root: Path, path: Path, content: dict[str, Any], notes: Notes) -> Path | None:
    """Return the image file, or `path` itself if the annotation file contains the image, or None if there is no image.

    If the image is not where `imagePath` says, or this leads out of `root`, a file of the same name next to the annotation
    file is used.
    """
    name, kind = content.get("imagePath"), reading.MISSING
    if isinstance(name, str) and name:
        file, near = reading.locate(root, path.parent, name), path.parent / reading.split_name(name)[-1]
        location = next((each for each in (file, near) if each and each.is_file()), None)
        if location:
            return location
        kind = reading.MISSING if file else reading.OUTSIDE
    if content.get("imageData"):
        return path
    notes.add(kind, f"{name!r} in {path}")
    return None


def _read_embedded(path: Path) -> bytes:
    try:
        return base64.b64decode(reading.read_json(path)["imageData"])
    except (TypeError, binascii.Error):
        raise DataError(f"the imageData of {path} is not base64") from None


def _read_shape(path: Path, values: Any, notes: Notes) -> Shape | None:
    if not isinstance(values, dict) or not isinstance(values.get("label"), (str, int)) or values["label"] == "":
        return Shape(None, Damaged(f"a shape without a label in {path}"))
    label, kind = str(values["label"]), values.get("shape_type") or "polygon"
    where = f"the {kind} {label!r} in {path}"
    if kind in WITHOUT_AREA:
        notes.add(reading.UNSUPPORTED, where)
        return None
    try:
        figure = _make_figure(kind, values)
    except (TypeError, ValueError, KeyError, IndexError):
        return Shape(None, Damaged(where))
    if figure is None:
        is_short = kind == "polygon"
        notes.add(reading.FEW_POINTS if is_short else reading.UNSUPPORTED, where)
        return None
    return Shape(None if label == "__ignore__" else label, figure)


def _make_figure(kind: str, values: dict[str, Any]) -> Figure | None:
    """Return the figure of a shape, or None if its type is unsupported or it is a polygon with fewer than 3 points."""
    points = pairs(value for x, y in values["points"] for value in (x, y))
    match kind:
        case "polygon":
            return Outline(points) if len(points) > 2 else None
        case "oriented_rectangle" | "rotation" if len(points) == 4:  # X-AnyLabeling calls it a rotation
            return Outline(points)
        case "rectangle" if len(points) in (2, 4):  # other tools write all four corners
            return Rectangle(points)
        case "circle":
            center, edge = points
            return Circle(center, math.dist(center, edge))
        case "mask":
            (left, top), (right, bottom) = ((int(x), int(y)) for x, y in points)
            size = (bottom - top + 1, right - left + 1)
            return EncodedBitmap(base64.b64decode(values["mask"]), left, top, size)
        case "rectangle" | "oriented_rectangle" | "rotation":
            raise ValueError("a rectangle with a wrong number of points")
    return None
