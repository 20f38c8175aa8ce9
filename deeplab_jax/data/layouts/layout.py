"""The `Layout` class, and helpers for scanning folders.

This module does not read any pixels.
"""

import dataclasses
from collections.abc import Callable, Iterator

from etils import epath

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
Pair = tuple[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """A way to organize a data set in folders.

    If a layout includes image lists, as Pascal VOC does, the lists define the splits. Otherwise, a split consists of the images
    in its folder, sorted by name. If a label file is missing, its image is still paired with the expected file name, so
    `find_samples` reports the missing file instead of dropping the image.

    Attributes:
      name: The display name.
      shape: The folders and files that make up a split, as shown in messages. "SPLIT" is a placeholder for the split name.
      labels: The name of the matching label set in `labels.LABEL_SETS`, or "" if the layout works with any label set.
      splits: A function that takes a root folder and returns the split names. It returns an empty list if the folder has a
        different layout.
      pairs: A function that takes (root, split, label kind) and returns (image, label) names relative to the root. The label is
        "" in a split without labels.
      label_kind: How the masks encode classes. "auto" means that the kind is inferred from the file names or the header of the
        first label file.
    """

    name: str
    shape: str
    labels: str
    splits: Callable[[epath.Path], list[str]]
    pairs: Callable[[epath.Path, str, str], Iterator[Pair]]
    label_kind: str = "auto"


def list_folders(parent: epath.Path) -> list[str]:
    """Return the sorted folder names in `parent`, or an empty list if `parent` is not a folder."""
    return sorted(path.name for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []


def list_images(folder: epath.Path) -> list[epath.Path]:
    """Return the image files in `folder` and its subfolders, sorted by path."""
    files = (parent / name for parent, _, names in folder.walk() for name in names)
    return sorted(path for path in files if path.suffix.lower() in IMAGE_SUFFIXES)


def pair_by_name(root: epath.Path, images: epath.Path, labels: epath.Path) -> Iterator[Pair]:
    """Yield (image, label) pairs from two folders, matching files by relative path without the suffix.

    An image without a label file is paired with the missing file name, which ends in .png. If the label folder contains no
    images at all, the split has no labels and each label is "".
    """
    paths = {str(path.relative_to(labels).with_suffix("")): path for path in list_images(labels)} if labels.is_dir() else {}
    for image in list_images(images):
        stem = image.relative_to(images).with_suffix("")
        label = paths.get(str(stem), labels / f"{stem}.png") if paths else None
        yield str(image.relative_to(root)), str(label.relative_to(root)) if label else ""
