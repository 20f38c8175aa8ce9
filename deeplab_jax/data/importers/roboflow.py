"""Roboflow: the exports "COCO Segmentation" and "Semantic Segmentation Masks".

The first has train/_annotations.coco.json, and the second has x.jpg with x_mask.png and _classes.csv in each folder.
"""

from pathlib import Path

from deeplab_jax.data.decode import IMAGE_SUFFIXES
from deeplab_jax.data.importers import coco, reading
from deeplab_jax.data.importers.annotation import Annotation, AnnotationSet, Notes, Shape
from deeplab_jax.data.importers.figures import FileRegion, read_mask_values
from deeplab_jax.errors import DataError
from deeplab_jax.labels import Color

CLASSES = "_classes.csv"
MASK = "_mask.png"


def read(root: Path, notes: Notes) -> AnnotationSet:
    """Read a Roboflow export. The splits are the folders train, valid and test.

    Args:
      root: The folder, as an absolute path.
      notes: Receives what could not be used.

    Raises:
      DataError: The folder contains neither of the two exports.
    """
    if reading.find_files(root, [".coco.json"]):
        return coco.read(root, notes)
    tables = reading.find_files(root, [CLASSES])
    if not tables:
        is_yolo = any((root / name).exists() for name in ("data.yaml", "data.yml"))
        advice = "Import it with `--from yolo`." if is_yolo else "Export it as `COCO Segmentation` and unpack the archive."
        raise DataError(f"{root} contains neither _annotations.coco.json nor {CLASSES}. {advice}")
    classes: dict[str, Color | None] = {}
    annotations: list[Annotation] = []
    for path in tables:
        names = _read_classes(path)
        classes |= dict.fromkeys(names.values())
        for image in reading.find_files(path.parent, IMAGE_SUFFIXES):
            if image.name.endswith(MASK) and _find_image(image):
                continue
            annotation = _read_image(root, image, names, notes)
            if annotation:
                annotations.append(annotation)
    return AnnotationSet(classes, annotations)


def _read_classes(path: Path) -> dict[int, str]:
    """Return the class names by their values in the masks."""
    rows = reading.read_table(path)
    try:
        names = {int(row["Pixel Value"]): row["Class"] for row in rows}
    except (KeyError, ValueError):
        raise DataError(f"{path} needs the columns `Pixel Value` and `Class`. Export the data set again.") from None
    if not names:
        raise DataError(f"{path} contains no classes. Export the data set again.")
    return names


def _find_image(mask: Path) -> Path | None:
    stem = mask.name.removesuffix(MASK)
    return next((file for suffix in reading.LIKELY_SUFFIXES if (file := mask.with_name(stem + suffix)).is_file()), None)


def _read_image(root: Path, image: Path, names: dict[int, str], notes: Notes) -> Annotation | None:
    split, name = reading.split_path(image, root)
    mask = image.with_name(image.stem + MASK)
    if not mask.is_file():
        return Annotation(image, split, name, ())
    try:
        values = read_mask_values(mask)
    except DataError as error:
        notes.add(reading.UNREADABLE, error)
        return None
    shapes = []
    for value in sorted({*values.ravel().tolist()}):
        if value not in names:
            notes.add(reading.UNKNOWN_CLASS, f"the value {value} in {mask}")
        shapes.append(Shape(names.get(value), FileRegion(mask, value)))
    return Annotation(image, split, name, tuple(shapes), (values.shape[0], values.shape[1]))
