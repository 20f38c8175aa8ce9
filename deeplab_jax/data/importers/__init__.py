"""Read the exports of annotation tools. Each tool is defined in its own file."""

from collections.abc import Callable
from pathlib import Path

from deeplab_jax.data.importers import coco, cvat, labelme, roboflow, supervisely, yolo
from deeplab_jax.data.importers.annotation import Annotation, AnnotationSet, Notes, Shape

# To add a tool, add a file to this folder and an entry to this table.
IMPORTERS: dict[str, Callable[[Path, Notes], AnnotationSet]] = {
    "labelme": labelme.read,
    "coco": coco.read,
    "yolo": yolo.read,
    "cvat": cvat.read,
    "supervisely": supervisely.read,
    "roboflow": roboflow.read,
}
