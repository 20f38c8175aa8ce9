"""The description of a folder layout, and functions that several layouts use to scan folders.

No pixels are read here.
"""

import dataclasses
from collections.abc import Callable, Iterator

from etils import epath

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
Pair = tuple[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """A way to organize a data set in folders.

    If a layout includes lists of images (Pascal VOC), the lists define the splits. Otherwise a split consists of the images in
    its folder, sorted by name. An image whose label file is missing is still paired with the name of that file, so
    `find_samples` reports the missing file instead of dropping the image.

    Attributes:
      name: The common name of the layout.
      shape: A description of the folders of a split, for messages. "SPLIT" stands for the name of the split.
      labels: The name of the label set in `labels.LABEL_SETS` that belongs to the layout, or "" if it can have any label set.
      splits: A function that returns the names of the splits that a root folder has in this layout. The list is empty if the
        folder has a different layout.
      pairs: A function that takes (root, split, label kind) and returns the (image, label) names relative to the root. The
        label is "" in a split without labels.
      label_kind: How the masks encode classes. "auto" means that the file names or the header of the first file show the kind.
    """

    name: str
    shape: str
    labels: str
    splits: Callable[[epath.Path], list[str]]
    pairs: Callable[[epath.Path, str, str], Iterator[Pair]]
    label_kind: str = "auto"


def list_folders(parent: epath.Path) -> list[str]:
    """Return the sorted names of the folders in `parent`, or an empty list if `parent` is not a folder."""
    return sorted(path.name for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []


def list_images(folder: epath.Path) -> list[epath.Path]:
    """Return the image files in `folder` and its subfolders, sorted by path."""
    files = (parent / name for parent, _, names in folder.walk() for name in names)
    return sorted(path for path in files if path.suffix.lower() in IMAGE_SUFFIXES)


def pair_by_name(root: epath.Path, images: epath.Path, labels: epath.Path) -> Iterator[Pair]:
    """Yield the (image, label) pairs of two folders whose paths within the folders are the same, apart from the suffix.

    An image without a label file is paired with the name that its PNG label would have. If the label folder contains no images
    at all, the split has no labels and each label is "".
    """
    paths = {str(path.relative_to(labels).with_suffix("")): path for path in list_images(labels)} if labels.is_dir() else {}
    for image in list_images(images):
        stem = image.relative_to(images).with_suffix("")
        label = paths.get(str(stem), labels / f"{stem}.png") if paths else None
        yield str(image.relative_to(root)), str(label.relative_to(root)) if label else ""
