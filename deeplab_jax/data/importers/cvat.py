"""CVAT: the XML format "CVAT for images 1.1".

See https://docs.cvat.ai/docs/other/xml_format. The pixels of polygons and boxes are those of CVAT's own exports of masks and
of COCO files, which use pycocotools. Shapes are drawn in the order of `z_order`, and within it in that of the file.
"""

import math
import xml.etree.ElementTree as ET
from pathlib import Path

from deeplab_jax.data.decode import IMAGE_SUFFIXES
from deeplab_jax.data.importers import reading
from deeplab_jax.data.importers.annotation import Annotation, AnnotationSet, Notes, Shape
from deeplab_jax.data.importers.figures import Bitmap, CocoPolygons, Damaged, Ellipse, Figure, decode_runs, pairs
from deeplab_jax.errors import DataError, one_line
from deeplab_jax.labels import Color

OTHER_XML = "XML files that are not CVAT annotations"
IGNORED_TAGS = ("tag", "attribute")
AREA_TAGS = ("polygon", "box", "ellipse", "mask")
TYPES_WITHOUT_AREA = ("skeleton", "points", "polyline", "tag")


class _NoDoctype(ET.TreeBuilder):
    """Builds a tree, and refuses document types. CVAT writes none, and they can define entities."""

    def doctype(self, *_: object) -> None:
        raise DataError("it has a document type, which CVAT does not write")


def read(root: Path, notes: Notes) -> AnnotationSet:
    """Read the CVAT files below a folder.

    The split is the subset of the image or of its task, or else a folder in the image's name, and train otherwise.

    Args:
      root: The folder, as an absolute path.
      notes: Receives what could not be used.

    Raises:
      DataError: A file is not XML, or is in the format for videos.
    """
    images = reading.Images(root)
    classes: dict[str, Color | None] = {}
    annotations = []
    for path in reading.find_files(root, [".xml"]):
        tree = _parse(path)
        if tree.tag != "annotations":
            notes.add(OTHER_XML, path)
            continue
        if tree.find("track") is not None:
            raise DataError(f"{path} is in the format for videos. Export it as `CVAT for images 1.1`.")
        used = {shape.get("label") for tag in AREA_TAGS for shape in tree.iterfind(f"image/{tag}")}
        for label in tree.iterfind("meta/*/labels/label"):
            name = label.findtext("name")
            if name and (name in used or _can_have_area(label)):
                classes.setdefault(name, reading.parse_color(label.findtext("color")))
        subsets = {task.findtext("id"): task.findtext("subset") or "" for task in tree.iterfind("meta//task")}
        shared = reading.shared_folder(image.get("name") or "" for image in tree.iterfind("image"))
        for image in tree.iterfind("image"):
            subset = image.get("subset") or subsets.get(image.get("task_id")) or _get_only(subsets)
            subset = subset or reading.find_split_in_folders(image.get("name") or "", shared)
            annotation = _read_image(images, path, image, subset, classes, notes)
            if annotation:
                annotations.append(annotation)
    return AnnotationSet(classes, annotations, is_turned=True)


def _can_have_area(label: ET.Element) -> bool:
    """Return whether the shapes of a label can have an area. A label with a parent is a point of a skeleton."""
    return label.find("parent") is None and label.findtext("type") not in TYPES_WITHOUT_AREA


def _get_only(subsets: dict[str | None, str]) -> str:
    return next(iter(subsets.values())) if len(subsets) == 1 else ""


def _parse(path: Path) -> ET.Element:
    try:
        return ET.parse(path, ET.XMLParser(target=_NoDoctype())).getroot()
    except DataError as error:
        raise DataError(f"{path} cannot be used: {error}. Remove it or export the annotations again.") from None
    except (ET.ParseError, OSError, ValueError, LookupError) as error:
        raise DataError(f"{path} is not valid XML ({one_line(error)}). Export the annotations again.") from None


def _read_image(
    images: reading.Images, path: Path, image: ET.Element, subset: str, classes: dict[str, Color | None], notes: Notes
) -> Annotation | None:
    name = image.get("name") or ""
    split = reading.find_split_in_name(subset) or "train"
    folders = [path.parent / each for each in ("images", f"images/{subset}", subset, "")]
    # Exports of videos name the frames without a suffix.
    suffixes = ("",) if name.lower().endswith(IMAGE_SUFFIXES) else ("", *reading.LIKELY_SUFFIXES)
    try:
        files = (images.find(name + suffix, split, [*folders, images.root, images.root / "images"]) for suffix in suffixes)
        file = next(filter(None, files), None) if name else None
    except DataError as error:
        notes.add(reading.OUTSIDE, f"{error}, in {path}")
        return None
    if file is None:
        notes.add(reading.MISSING, f"{name!r} in {path}")
        return None
    shapes = []
    for element in sorted(image, key=_read_z_order):
        if element.tag in IGNORED_TAGS or element.get("outside") == "1":
            continue
        shape = _read_shape(element, f"the {element.tag} {element.get('label')!r} on {name!r} in {path}", classes, notes)
        if shape:
            shapes.append(shape)
    size = reading.parse_size(image.get("height"), image.get("width"))
    return Annotation(file, split, reading.name_below_split(name, file, split), tuple(shapes), size)


def _read_z_order(element: ET.Element) -> float:
    try:
        return float(element.get("z_order", 0))
    except ValueError:
        return 0.0


def _read_shape(element: ET.Element, where: str, classes: dict[str, Color | None], notes: Notes) -> Shape | None:
    try:
        figure = _make_figure(element)
    except (TypeError, ValueError, KeyError, DataError):
        return Shape(None, Damaged(where))
    if figure is None:
        notes.add(reading.FEW_POINTS if element.tag == "polygon" else reading.UNSUPPORTED, where)
        return None
    label = element.get("label")
    if label not in classes:
        notes.add(reading.UNKNOWN_CLASS, where)
        label = None
    return Shape(label, figure)


def _make_figure(element: ET.Element) -> Figure | None:
    """Return the figure of an element, or None if its type is unsupported or it is a polygon with fewer than 3 points."""

    def read_numbers(*names: str) -> list[float]:
        values = [float(element.attrib[name]) for name in names]
        if not all(map(math.isfinite, values)):
            raise ValueError("a coordinate that is not finite")
        return values

    rotation = float(element.get("rotation", 0))
    match element.tag:
        case "polygon":
            points = pairs(value for point in element.attrib["points"].split(";") for value in point.split(","))
            return CocoPolygons((points,)) if len(points) > 2 else None
        case "box":
            left, top, right, bottom = read_numbers("xtl", "ytl", "xbr", "ybr")
            corners = ((left, top), (right, top), (right, bottom), (left, bottom))
            return CocoPolygons((tuple(_rotate(x, y, corners, rotation) for x, y in corners) if rotation else corners,))
        case "ellipse":
            x, y, rx, ry = read_numbers("cx", "cy", "rx", "ry")
            return Ellipse((x, y), (rx, ry), rotation)
        case "mask":
            left, top, width, height = map(int, read_numbers("left", "top", "width", "height"))
            counts = tuple(int(count) for count in element.attrib["rle"].split(","))
            return Bitmap(decode_runs(counts, height, width), left, top)
    return None


def _rotate(x: float, y: float, corners: tuple[tuple[float, float], ...], degrees: float) -> tuple[float, float]:
    """Return a corner of a box after a clockwise rotation of the box about its centre."""
    cx, cy = (corners[0][0] + corners[2][0]) / 2, (corners[0][1] + corners[2][1]) / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return cx + cos * (x - cx) - sin * (y - cy), cy + sin * (x - cx) + cos * (y - cy)
