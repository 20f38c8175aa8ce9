"""COCO: a JSON file for each split, with polygons or run lengths of instances, or PNG files of panoptic segments.

See https://cocodataset.org/#format-data. The pixels of each object are those of pycocotools.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

from deeplab_jax.data.importers import reading
from deeplab_jax.data.importers.annotation import Annotation, AnnotationSet, Notes, Shape
from deeplab_jax.data.importers.figures import CocoPolygons, CocoRle, Damaged, Figure, FileRegion, pairs
from deeplab_jax.errors import DataError
from deeplab_jax.labels import Color

NOT_USED = "JSON files that were not used"
NOT_LISTED = "annotations of images that the file does not list"
FIELDS = {"images": list, "annotations": list, "categories": list}


def read(root: Path, notes: Notes) -> AnnotationSet:
    """Read the COCO files below a folder.

    The split is a word in the name of the file, as in instances_val2017.json, or else of its folder, as in
    valid/_annotations.coco.json, or else a folder in the image's path, and train otherwise. If a folder contains
    instances_*.json, only these are used in it.

    Args:
      root: The folder, as an absolute path.
      notes: Receives what could not be used.

    Raises:
      DataError: A file is not JSON, or there is no COCO file.
    """
    images = reading.Images(root)
    contents = {path: content for path in _choose_files(root, notes) if (content := _read_content(path, notes))}
    annotations = [each for path, content in contents.items() for each in _read_images(images, path, content, notes)]
    return AnnotationSet(_list_classes(list(contents.values())), annotations)


def _choose_files(root: Path, notes: Notes) -> list[Path]:
    files = reading.find_files(root, [".json"])
    instances = {path.parent for path in files if path.name.startswith("instances_")}
    chosen = [path for path in files if path.parent not in instances or path.name.startswith("instances_")]
    for path in sorted({*files} - {*chosen}):
        notes.add(NOT_USED, f"{path}, next to instances_*.json")
    return chosen


def _read_content(path: Path, notes: Notes) -> dict[str, Any] | None:
    content = reading.read_json(path)
    missing = [key for key, kind in FIELDS.items() if not isinstance(content, dict) or not isinstance(content.get(key), kind)]
    if missing:
        notes.add(NOT_USED, f"{path}, which has no list {missing[0]!r}")
        return None
    for key in FIELDS:
        if not all(isinstance(each, dict) for each in content[key]):
            raise DataError(f"{path} has an entry in {key!r} that is not an object. Export the annotations again.")
    _require_own_ids(path, "images", content["images"], "file_name")
    _require_own_ids(path, "categories", content["categories"], "name")
    used = {id_ for each in content["annotations"] for id_ in _list_categories(each)}
    names = {_id(each, "id"): str(each.get("name", "")) for each in content["categories"]}
    for name in reading.find_repeated(name for id_, name in names.items() if id_ in used):
        notes.add(reading.REPEATED, f"{name!r} in {path}")
    return content


def _require_own_ids(path: Path, key: str, entries: list[dict[str, Any]], field: str) -> None:
    names: dict[str, Any] = {}
    for each in entries:
        id_, name = _id(each, "id"), each.get(field)
        first = names.setdefault(id_, name)
        if first != name:
            raise DataError(
                f"{path} has the id {id_} twice in {key!r}, for {first!r} and {name!r}, so the annotations with this "
                "id could belong to both. Give each its own id. Merged files often have this fault."
            )


def _id(entry: dict[str, Any], key: str) -> str:
    """Return an id as text, because some tools write an id as a number in one place and as text, or as 1.0, in another."""
    id_ = entry.get(key)
    return str(int(id_) if isinstance(id_, float) and id_.is_integer() else id_)


def _list_classes(contents: list[dict[str, Any]]) -> dict[str, Color | None]:
    """Return the classes of all files.

    Roboflow adds a category that stands for the project: other categories name it as their supercategory, and no annotation
    uses it. It is left out.
    """
    classes: dict[str, Color | None] = {}
    parents = {category.get("supercategory") for content in contents for category in content["categories"]}
    for content in contents:
        used = {id_ for each in content["annotations"] for id_ in _list_categories(each)}
        for category in content["categories"]:
            name = str(category.get("name", ""))
            is_project = category.get("supercategory") == "none" and name in parents and _id(category, "id") not in used
            if name and not is_project:
                color = category.get("color")
                classes.setdefault(name, _read_color(color))
    return classes


def _list_categories(annotation: dict[str, Any]) -> list[str]:
    segments = annotation.get("segments_info")
    return [_id(each, "category_id") for each in (segments if isinstance(segments, list) else [annotation])]


def _read_color(color: Any) -> Color | None:
    if isinstance(color, list) and len(color) == 3 and all(isinstance(value, int) and 0 <= value <= 255 for value in color):
        return color[0], color[1], color[2]
    return reading.parse_color(color)


def _read_images(images: reading.Images, path: Path, content: dict[str, Any], notes: Notes) -> list[Annotation]:
    folder = path.parent.name if path.parent != images.root else ""
    split_of_file = reading.find_split_in_name(path.stem) or reading.find_split_in_name(folder)
    names = {_id(category, "id"): str(category.get("name", "")) for category in content["categories"]}
    of_image = defaultdict(list)
    for annotation in content["annotations"]:
        of_image[_id(annotation, "image_id")].append(annotation)
    listed = {_id(image, "id") for image in content["images"]}
    for annotation in content["annotations"]:
        if _id(annotation, "image_id") not in listed:
            notes.add(NOT_LISTED, f"annotation {annotation.get('id')} in {path}")
    shared = reading.shared_folder(_file_name(image) for image in content["images"])
    result = []
    for image in content["images"]:
        name = _file_name(image)
        split = split_of_file or reading.find_split_in_folders(name, shared) or "train"
        location = _find_image(images, path, split, name, shared, notes)
        if location:
            size = reading.parse_size(image.get("height"), image.get("width"))
            shapes, unusable = _read_shapes(path, of_image[_id(image, "id")], names, notes)
            result.append(Annotation(*location, shapes, size, unusable))
    _require_pixels(path, result)
    return result


def _require_pixels(path: Path, annotations: list[Annotation]) -> None:
    figures = (shape.figure for annotation in annotations for shape in annotation.shapes)
    rings = [ring for figure in figures if isinstance(figure, CocoPolygons) for ring in figure.rings]
    if rings and all(0 <= value <= 1 for ring in rings for point in ring for value in point):
        raise DataError(
            f"All coordinates of the polygons in {path} are between 0 and 1, like fractions of the image's size. "
            "Export them in pixels."
        )


def _file_name(image: dict[str, Any]) -> str:
    return str(image.get("file_name") or "")


def _find_image(
    images: reading.Images, path: Path, split: str, name: str, shared: list[str], notes: Notes
) -> tuple[Path, str, str] | None:
    """Return an image's file, split and name, or None if there is no such file.

    `shared` is the folder with which all names in the file begin. See `reading.find_moved`.
    """
    root, word = images.root, path.stem.rpartition("_")[2]
    folders = (path.parent, root, path.parent.parent) if path.parent != root else (root,)
    inner = ("", "images", word, f"images/{word}", split, f"images/{split}", f"{split}/images")
    bases = [folder / each for folder in folders for each in inner]
    kind, example = reading.MISSING, f"{name!r} in {path}"
    try:
        file = images.find(name, split, bases) if name else None
    except DataError as error:
        file, kind, example = None, reading.OUTSIDE, f"{error}, in {path}"
    if file is None and (file := reading.find_moved(root, bases, name, shared)):
        notes.add(reading.MOVED, f"{file} for {name!r} in {path}")
        name = "/".join(reading.split_name(name)[len(shared) :])
    if file is None:
        notes.add(kind, example)
        return None
    return file, split, reading.name_below_split(name, file, split)


def _read_shapes(
    path: Path, annotations: list[dict[str, Any]], names: dict[Any, str], notes: Notes
) -> tuple[tuple[Shape, ...], str]:
    """Return an image's shapes, and why the image is unusable or "".

    The order is that of the file, except that crowds are drawn first: their outlines are coarse and lie over single objects.
    """
    shapes: list[Shape] = []
    unusable = ""
    for annotation in sorted(annotations, key=lambda each: not each.get("iscrowd")):
        if isinstance(annotation.get("segments_info"), list):
            shapes += _read_segments(path, annotation, names, notes)
            continue
        where = f"annotation {annotation.get('id')} in {path}"
        segmentation = annotation.get("segmentation")
        if _is_box(segmentation):
            unusable = reading.ONLY_BOXES
            continue
        name = names.get(_id(annotation, "category_id"))
        if not name:
            notes.add(reading.UNKNOWN_CLASS, f"category {annotation.get('category_id')} of {where}")
        figure: Figure | None
        try:
            figure = _make_figure(segmentation, where, notes)
        except (TypeError, ValueError, KeyError, AttributeError):
            figure = Damaged(where)
        if figure:
            shapes.append(Shape(name or None, figure))
    return tuple(shapes), unusable


def _is_box(segmentation: Any) -> bool:
    """Return whether an object has no outline: [], [[]], or the corners of its box as two points, which pycocotools accepts."""
    if not segmentation:
        return True
    rings = _list_rings(segmentation) if isinstance(segmentation, list) else [segmentation]
    return all(isinstance(ring, list) and len(ring) in (0, 4) for ring in rings)


def _list_rings(segmentation: list[Any]) -> list[Any]:
    """Return the polygons of an object, each as a list of x1, y1, x2, y2, ...

    Some tools write one polygon without the list around it, which pycocotools accepts, or points as pairs.
    """
    is_single = not isinstance(segmentation[0], list) or all(isinstance(each, list) and len(each) == 2 for each in segmentation)
    return [_flatten(ring) for ring in ([segmentation] if is_single else segmentation)]


def _flatten(ring: Any) -> Any:
    is_pairs = isinstance(ring, list) and all(isinstance(point, list) for point in ring)
    return [value for point in ring for value in point] if is_pairs else ring


def _make_figure(segmentation: Any, where: str, notes: Notes) -> Figure | None:
    if isinstance(segmentation, dict):
        height, width = segmentation["size"]
        counts = segmentation["counts"]
        return CocoRle((int(height), int(width)), counts if isinstance(counts, str) else tuple(map(int, counts)))
    rings = [pairs(ring) for ring in _list_rings(segmentation)]
    for ring in rings:
        if len(ring) < 3:
            notes.add(reading.FEW_POINTS, where)
    usable = tuple(ring for ring in rings if len(ring) > 2)
    return CocoPolygons(usable) if usable else None


def _read_segments(path: Path, annotation: dict[str, Any], names: dict[Any, str], notes: Notes) -> list[Shape]:
    """Return the segments of a panoptic annotation. Its PNG file is in the folder that is named like the JSON file."""
    file = reading.locate(path.parent, path.parent / path.stem, str(annotation.get("file_name") or ""))
    if file is None or not file.is_file():
        return [Shape(None, Damaged(f"the missing PNG file {annotation.get('file_name')!r} of {path}"))]
    shapes = []
    for segment in annotation["segments_info"]:
        if not isinstance(segment, dict) or not isinstance(segment.get("id"), int):
            return [Shape(None, Damaged(f"a segment without an id of {file}"))]
        name = names.get(_id(segment, "category_id"))
        if not name:
            notes.add(reading.UNKNOWN_CLASS, f"category {segment.get('category_id')} of {file}")
        shapes.append(Shape(name or None, FileRegion(file, segment["id"])))
    return shapes
