"""The layouts of Mapillary Vistas 1.2 and 2.0: training/images/ is paired with training/labels/ or training/v2.0/labels/.

The masks are palette images, whose indices are the ids.
"""

import functools

from etils import epath

from deeplab_jax.data.layouts.layout import Layout, Pairing
from deeplab_jax.data.layouts.pairing import pair_by_name

FOLDERS = {"train": "training", "val": "validation", "test": "testing"}
# The label folder of each version, relative to the folder of a split.
VERSION_1 = ("v1.2/labels", "labels")
VERSION_2 = ("v2.0/labels",)
# Vistas 2.0 also contains the labels of version 1.2. The names of these splits end with this suffix.
SPLIT_SUFFIX = "_v1.2"


def _list_splits(root: epath.Path, version: tuple[str, ...]) -> list[str]:
    suffix = SPLIT_SUFFIX if version == VERSION_1 and _has_labels(root, VERSION_2) else ""
    names = [split for split, folder in FOLDERS.items() if (root / folder / "images").is_dir()]
    return [split + suffix for split in names] if _has_labels(root, version) else []


def _list_pairs(root: epath.Path, split: str, kind: str, version: tuple[str, ...]) -> Pairing:
    folder = root / FOLDERS[split.removesuffix(SPLIT_SUFFIX)]
    labels = next((folder / name for name in version if (folder / name).is_dir()), folder / version[-1])
    return pair_by_name(root, folder / "images", labels)


def _has_labels(root: epath.Path, version: tuple[str, ...]) -> bool:
    return any((root / folder / name).is_dir() for folder in FOLDERS.values() for name in version)


def _describe(name: str, shape: str, labels: str, version: tuple[str, ...]) -> Layout:
    splits = functools.partial(_list_splits, version=version)
    pairs = functools.partial(_list_pairs, version=version)
    return Layout(name, shape=shape, labels=labels, splits=splits, pairs=pairs, label_kind="labelIds")


MAPILLARY = _describe("Mapillary Vistas 1.2", "training/images/ with training/labels/", "mapillary", VERSION_1)
MAPILLARY2 = _describe("Mapillary Vistas 2.0", "training/images/ with training/v2.0/labels/", "mapillary2", VERSION_2)
