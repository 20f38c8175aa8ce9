"""Supervisely: a project with meta.json and, for each data set, the folders img and ann.

See https://docs.supervisely.com/data-organization/00_ann_format_navi. Objects are drawn in the order of the file.
"""

import base64
import zlib
from pathlib import Path
from typing import Any

from deeplab_jax.data.importers import reading
from deeplab_jax.data.importers.annotation import Annotation, AnnotationSet, Notes, Shape
from deeplab_jax.data.importers.figures import Damaged, EncodedBitmap, Figure, Outline, Rectangle, Ring, pairs
from deeplab_jax.data.split_names import SPLITS
from deeplab_jax.errors import DataError
from deeplab_jax.labels import Color

OTHER_JSON = "JSON files that are not Supervisely annotations"
MAX_BITMAP = 1 << 28  # bytes of a decompressed PNG file


def read(root: Path, notes: Notes) -> AnnotationSet:
    """Read a Supervisely project.

    The split is a tag of the image that is called train, val or test, or else a data set with such a name, or train.

    Args:
      root: The folder with meta.json, as an absolute path.
      notes: Receives what could not be used.

    Raises:
      DataError: meta.json is missing or unreadable.
    """
    classes = _read_classes(root / "meta.json")
    annotations = []
    for path in reading.find_files(root, [".json"]):
        if path.parent.name != "ann":
            continue
        try:
            content = reading.read_json(path)
        except DataError as error:
            notes.add(reading.UNREADABLE, error)
            continue
        if not isinstance(content, dict) or not isinstance(content.get("objects"), list):
            notes.add(OTHER_JSON, path)
            continue
        annotation = _read_file(root, path, content, classes, notes)
        if annotation:
            annotations.append(annotation)
    return AnnotationSet(classes, annotations, is_turned=True)


def _read_classes(path: Path) -> dict[str, Color | None]:
    if not path.is_file():
        raise DataError(f"{path.parent} has no {path.name}. Give the folder of a project, which has this file.")
    content = reading.read_json(path)
    classes = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(classes, list) or not all(isinstance(each, dict) and each.get("title") for each in classes):
        raise DataError(f"{path} has no list of classes with titles. Download the project again in the Supervisely format.")
    return {str(each["title"]): reading.parse_color(each.get("color")) for each in classes}


def _read_file(
    root: Path, path: Path, content: dict[str, Any], classes: dict[str, Color | None], notes: Notes
) -> Annotation | None:
    folder = path.parent.parent
    image = _find_image(folder / "img", path)
    if image is None:
        notes.add(reading.MISSING, path)
        return None
    # Nested data sets are in a folder called datasets.
    parts = [part for part in folder.relative_to(root).parts if part != "datasets"]
    split = next((SPLITS[part.lower()] for part in parts if part.lower() in SPLITS), "")
    inner = [part for part in parts if part.lower() not in SPLITS]
    tags = [str(tag.get("name", "")).lower() for tag in content.get("tags") or [] if isinstance(tag, dict)]
    split = next((SPLITS[tag] for tag in tags if tag in SPLITS), split) or "train"
    shapes = tuple(shape for each in content["objects"] if (shape := _read_object(path, each, classes, notes)))
    size = content.get("size") if isinstance(content.get("size"), dict) else {}
    sides = reading.parse_size(size.get("height"), size.get("width")) if size else None
    return Annotation(image, split, "/".join([*inner, image.name]), shapes, sides)


def _find_image(folder: Path, path: Path) -> Path | None:
    """Return the image of x.jpg.json, which is x.jpg, or in older projects of x.json, which has any suffix."""
    image = folder / path.stem
    if image.is_file():
        return image
    return next((file for suffix in reading.LIKELY_SUFFIXES if (file := folder / f"{path.stem}{suffix}").is_file()), None)


def _read_object(path: Path, values: Any, classes: dict[str, Color | None], notes: Notes) -> Shape | None:
    if not isinstance(values, dict):
        return Shape(None, Damaged(f"an object in {path}"))
    name, kind = values.get("classTitle"), values.get("geometryType")
    where = f"the {kind} {name!r} in {path}"
    try:
        figure = _make_figure(str(kind), values)
    except (TypeError, ValueError, KeyError, IndexError, zlib.error):
        return Shape(None, Damaged(where))
    if figure is None:
        notes.add(reading.FEW_POINTS if kind == "polygon" else reading.UNSUPPORTED, where)
        return None
    if name not in classes:
        notes.add(reading.UNKNOWN_CLASS, where)
        name = None
    return Shape(name, figure)


def _make_figure(kind: str, values: dict[str, Any]) -> Figure | None:
    """Return the figure of an object, or None if its type is unsupported or it is a polygon with fewer than 3 points."""
    match kind:
        case "polygon":
            exterior, *holes = (_read_ring(ring) for ring in (values["points"]["exterior"], *values["points"]["interior"]))
            return Outline(exterior, tuple(hole for hole in holes if len(hole) > 2)) if len(exterior) > 2 else None
        case "rectangle":
            first, second = _read_ring(values["points"]["exterior"])
            return Rectangle((first, second))
        case "bitmap" | "alpha_mask":
            left, top = values["bitmap"]["origin"]
            return EncodedBitmap(_decompress(values["bitmap"]["data"]), int(left), int(top))
    return None


def _read_ring(points: Any) -> Ring:
    """Return points at whole pixels, as Supervisely draws them."""
    ring = pairs(value for x, y in points for value in (x, y))
    return tuple((float(round(x)), float(round(y))) for x, y in ring)


def _decompress(text: str) -> bytes:
    """Return the PNG file in base64, which newer versions also compress with zlib."""
    data = base64.b64decode(text)
    if data.startswith(b"\x89PNG"):
        return data
    decompressor = zlib.decompressobj()
    png = decompressor.decompress(data, MAX_BITMAP)
    if not decompressor.eof:
        raise ValueError("a bitmap that is cut off or very large")
    return png
