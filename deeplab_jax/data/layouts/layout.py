"""What a folder layout states, and the scanning that several layouts share. No pixels are read."""

import dataclasses
from collections.abc import Callable, Iterator

from etils import epath

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
Pair = tuple[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """A way to lay out a data set in folders.

    Where a layout has lists of its own (Pascal VOC), they define a split; otherwise the folder's images do, sorted by name. An
    image without its label file is still paired with that file's name: `find_samples` then reports the missing file instead of
    dropping the image.

    Attributes:
      name: what people call it.
      shape: the folders of a split, for messages.
      labels: name of its label set in `labels.LABEL_SETS`; "" where any is possible.
      splits: root -> names of the splits that it holds in this layout; none where it has another layout.
      pairs: (root, split, label kind) -> (image, label) names relative to the root; label "" for a split without labels.
      label_kind: how its masks encode classes; "auto" where their names or the first file's header show it.
    """

    name: str
    shape: str
    labels: str
    splits: Callable[[epath.Path], list[str]]
    pairs: Callable[[epath.Path, str, str], Iterator[Pair]]
    label_kind: str = "auto"


def list_folders(parent: epath.Path) -> list[str]:
    """Return the names of the folders in `parent`, sorted; none where `parent` is no folder."""
    return sorted(path.name for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []


def list_images(folder: epath.Path) -> list[epath.Path]:
    """Return the images in `folder` and its subfolders, sorted."""
    files = (parent / name for parent, _, names in folder.walk() for name in names)
    return sorted(path for path in files if path.suffix.lower() in IMAGE_SUFFIXES)


def pair_by_name(root: epath.Path, images: epath.Path, labels: epath.Path) -> Iterator[Pair]:
    """Pair the images of two folders by their names without the suffix."""
    known = {str(path.relative_to(labels).with_suffix("")): path for path in list_images(labels)} if labels.is_dir() else {}
    for image in list_images(images):
        stem = image.relative_to(images).with_suffix("")
        label = known.get(str(stem), labels / f"{stem}.png") if known else None
        yield str(image.relative_to(root)), str(label.relative_to(root)) if label else ""
