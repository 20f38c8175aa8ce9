"""YOLO segmentation: data.yaml, and a text file of normalised polygons for each image.

See https://docs.ultralytics.com/datasets/segment. The pixels are those of pycocotools, because coordinates between 0 and 1
measure the image's area as COCO's do, and data sets in this format are often converted from COCO.
"""

from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from deeplab_jax.data.decode import TRANSPOSED, find_orientation
from deeplab_jax.data.importers import reading
from deeplab_jax.data.importers.annotation import Annotation, AnnotationSet, Notes, Shape
from deeplab_jax.data.importers.extra import import_extra
from deeplab_jax.data.importers.figures import CocoPolygons, Damaged, pairs
from deeplab_jax.data.split_names import SPLITS
from deeplab_jax.errors import DataError, one_line

SPLIT_KEYS = ("train", "val", "valid", "test")
OTHER_YAML = "YAML files that were not used"
# As fractions of the size. Shapes can reach beyond the image, but pixels and percentages are far larger.
LARGEST = 2.0
NO_FOLDER = "folders and lists of data.yaml that do not exist"


def read(root: Path, notes: Notes) -> AnnotationSet:
    """Read the data set described by the YAML file in a folder.

    Args:
      root: The folder, as an absolute path.
      notes: Receives what could not be used.

    Raises:
      DataError: There is no YAML file with class names, it cannot be read or describes keypoints, or no image has labels.
    """
    path, content = _find_description(root, notes)
    if content.get("kpt_shape"):
        shape = str(content["kpt_shape"]).replace("'", "")
        raise DataError(
            f"{path} has `kpt_shape` (={shape}): its lines are boxes with keypoints, which have no outlines. "
            "Export polygons, or remove `kpt_shape` if the lines are polygons."
        )
    names = _read_names(path, content.get("names"))
    for name in reading.find_repeated(names.values()):
        notes.add(reading.REPEATED, f"{name!r} in {path}")
    annotations: list[Annotation] = []
    for key in SPLIT_KEYS:
        entries = content.get(key) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            place = _find_place(root, path, str(content.get("path") or ""), str(entry))
            if place is None:
                notes.add(NO_FOLDER, f"{key}: {entry} in {path}")
                continue
            for image, name in _list_images(root, place, notes):
                annotations.append(_read_image(image, SPLITS[key], name, names, notes))
    if annotations and not any(_label_file(each.image).is_file() for each in annotations):
        image = annotations[0].image
        raise DataError(
            f"None of the {len(annotations)} images of {path} has a label file. The labels of {image} must be in "
            f"{_label_file(image)}."
        )
    return AnnotationSet(dict.fromkeys(names.values()), annotations, is_turned=True)


def _find_description(root: Path, notes: Notes) -> tuple[Path, dict[str, Any]]:
    """Return the YAML file with class names that is closest to the root, and its content."""
    yaml = import_extra("yaml", "YOLO data sets")
    descriptions: list[tuple[Path, dict[str, Any]]] = []
    for path in sorted(reading.find_files(root, [".yaml", ".yml"]), key=lambda each: (len(each.parts), each)):
        try:
            # As text, because YAML would change class names: yes to True, 010 to 8 and 3.10 to 3.1.
            content = yaml.load(reading.read_text(path), Loader=yaml.BaseLoader)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise DataError(f"{path} is not valid YAML ({one_line(error)}). Correct it or remove it.") from None
        if isinstance(content, dict) and content.get("names"):
            descriptions.append((path, content))
    for path, _ in descriptions[1:]:
        notes.add(OTHER_YAML, f"{path}, next to {descriptions[0][0]}")
    if not descriptions:
        raise DataError(
            f"{root} has no YAML file with class `names`. Add the data.yaml of the export, or write one with `names: [FIRST, "
            "SECOND]`, in the order of classes.txt, and `train: FOLDER` with the images."
        )
    return descriptions[0]


def _read_names(path: Path, names: Any) -> dict[int, str]:
    """Return the class names by index. YAML files have a list of names, or a mapping from indices to names."""
    try:
        items = list(names.items() if isinstance(names, dict) else enumerate(names))
        if isinstance(names, str) or any(isinstance(name, (list, dict)) for _, name in items):
            raise TypeError
        return {int(index): str(name) for index, name in items}
    except (TypeError, ValueError):
        raise DataError(f"`names` (={names!r}) in {path} is neither a list nor a mapping from numbers. Correct it.") from None


def _find_place(root: Path, path: Path, base: str, entry: str) -> Path | None:
    """Return the folder or list of a split.

    The entry is relative to `path:` in the YAML file, which is often that of another machine, or to the YAML file. Roboflow
    writes ../train/images for train/images.
    """
    stripped = entry
    while stripped.startswith("../"):
        stripped = stripped[3:]
    folders = [root / base, path.parent / base, path.parent / PurePosixPath(base).name, path.parent, root]
    places = (reading.locate(root, folder, each) for each in (entry, stripped) for folder in folders)
    return next((place for place in places if place and place.exists()), None)


def _list_images(root: Path, place: Path, notes: Notes) -> list[tuple[Path, str]]:
    """Return the images of a split, and their names below the split's folder of images."""
    if place.is_dir():
        # The folder is a split or its images. With the split, the folder of images is not part of the name.
        parent = place / "images" if (place / "images").is_dir() else place
        return [(path, path.relative_to(parent).as_posix()) for path in reading.find_files(parent, reading.IMAGE_SUFFIXES)]
    images = []
    lines = list(filter(None, map(str.strip, reading.read_text(place).splitlines())))
    shared = reading.shared_folder(lines)
    folders = (place.parent, root, root / "images", root / "images" / place.stem)
    for line in lines:
        paths = [reading.locate(root, folder, line) for folder in (place.parent, root)]
        path = next((each for each in paths if each and each.is_file()), None)
        if path is None and (path := reading.find_moved(root, folders, line, shared)):
            notes.add(reading.MOVED, f"{path} for {line!r} in {place}")
        if path:
            images.append((path, _name_in_list(path, root)))
        else:
            notes.add(reading.MISSING if any(paths) else reading.OUTSIDE, f"{line!r} in {place}")
    return images


def _name_in_list(path: Path, root: Path) -> str:
    """Return an image's name without the folders images and train, val or test with which its path begins."""
    parts = path.relative_to(root).parts
    while len(parts) > 1 and (parts[0] == "images" or reading.find_split_in_name(parts[0])):
        parts = parts[1:]
    return "/".join(parts)


def _label_file(image: Path) -> Path:
    """Return the label file: the last folder `images` in the path becomes `labels`, as in Ultralytics."""
    parts = list(image.parts)
    places = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _read_image(image: Path, split: str, name: str, names: dict[int, str], notes: Notes) -> Annotation:
    path = _label_file(image)
    if not path.is_file():  # as in Ultralytics, an image without a label file has no objects
        return Annotation(image, split, name, ())
    try:
        lines = reading.read_text(path).splitlines()
    except DataError as error:
        notes.add(reading.UNREADABLE, error)
        return Annotation(image, split, name, (), unusable=reading.UNREADABLE)
    size = _read_turned_size(image)
    if size is None:
        return Annotation(image, split, name, (), unusable=reading.BAD_IMAGE)
    shapes, unusable = [], ""
    for number, line in enumerate(lines, 1):
        words, where = line.split(), f"line {number} of {path}"
        if not words:
            continue
        if len(words) == 5:
            unusable = reading.ONLY_BOXES
            continue
        shape = _read_line(words, size, names, where, notes)
        if shape:
            shapes.append(shape)
    return Annotation(image, split, name, tuple(shapes), size, unusable)


def _read_line(words: list[str], size: tuple[int, int], names: dict[int, str], where: str, notes: Notes) -> Shape | None:
    height, width = size
    try:
        number, points = float(words[0]), pairs(words[1:])
        index = int(number)
    except (ValueError, OverflowError):
        return Shape(None, Damaged(where))
    if index != number:
        return Shape(None, Damaged(f"the class {words[0]} in {where}"))
    if any(not -LARGEST < value < LARGEST for point in points for value in point):
        return Shape(None, Damaged(f"coordinates that are not fractions of the image's size in {where}"))
    if len(points) < 3:
        notes.add(reading.FEW_POINTS, where)
        return None
    if index not in names:
        notes.add(reading.UNKNOWN_CLASS, f"class {index} in {where}")
    return Shape(names.get(index), CocoPolygons((tuple((x * width, y * height) for x, y in points),)))


def _read_turned_size(image: Path) -> tuple[int, int] | None:
    """Return the (height, width) of an image as its EXIF orientation turns it, or None if it cannot be read."""
    try:
        with Image.open(image) as picture:
            is_sideways = find_orientation(picture) in TRANSPOSED
            return (picture.width, picture.height) if is_sideways else (picture.height, picture.width)
    except Exception:  # Pillow raises many error types
        return None
