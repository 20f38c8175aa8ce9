"""The `Layout` class, and helpers for scanning folders.

This module does not read any pixels.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator

from etils import epath

from deeplab_jax.data.decode import IMAGE_SUFFIXES, MASK_SUFFIXES

Pair = tuple[str, str]
# Folders that file managers, notebooks and network drives create.
TOOL_FOLDERS = frozenset(("@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"))
# Files that nobody takes for images.
OTHER_SUFFIXES = frozenset(
    (".csv", ".db", ".ini", ".json", ".lst", ".md", ".npz", ".pdf", ".py", ".txt", ".url", ".xml", ".yaml", ".yml", "")
)


@dataclasses.dataclass(frozen=True, slots=True)
class Pairing:
    """The samples of one split, as a layout finds them.

    Attributes:
      pairs: The (image, label) names relative to the root. The label is "" in a split without labels.
      notes: What the user should know about the choice of files, one sentence or two each.
      why_unlabelled: Why the split has no labels, as the second part of a sentence, or "".
    """

    pairs: tuple[Pair, ...]
    notes: tuple[str, ...] = ()
    why_unlabelled: str = ""


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
      pairs: A function that takes (root, split, label kind) and returns the split's samples.
      label_kind: How the masks encode classes. "auto" means that the kind is inferred from the file names or the header of the
        first label file.
    """

    name: str
    shape: str
    labels: str
    splits: Callable[[epath.Path], list[str]]
    pairs: Callable[[epath.Path, str, str], Pairing]
    label_kind: str = "auto"


def list_folders(parent: epath.Path) -> list[str]:
    """Return the sorted folder names in `parent`, or an empty list if `parent` is not a folder. Hidden folders are left out."""
    if not parent.is_dir():
        return []
    return sorted(path.name for path in parent.iterdir() if is_visible(path.name) and path.is_dir())


def list_images(folder: epath.Path) -> list[epath.Path]:
    """Return the image files in `folder` and its subfolders, sorted by path. Links to folders are followed."""
    return [path for path in list_files(folder) if path.suffix.lower() in IMAGE_SUFFIXES]


def list_masks(folder: epath.Path) -> list[epath.Path]:
    """Return the mask files in `folder` and its subfolders, sorted by path. Links to folders are followed."""
    return [path for path in list_files(folder) if path.suffix.lower() in MASK_SUFFIXES]


def list_files(folder: epath.Path) -> list[epath.Path]:
    """Return all visible files in `folder` and its subfolders, sorted by path."""
    return sorted(_walk(folder)) if folder.is_dir() else []


def is_visible(name: str) -> bool:
    """Return whether a file or folder is neither hidden nor created by a file manager or a similar program."""
    return not name.startswith(".") and name not in TOOL_FOLDERS


def _walk(folder: epath.Path) -> Iterator[epath.Path]:
    is_local = "://" not in str(folder)
    seen = set()
    # A folder can contain a link to a folder above it, which would never end.
    for parent, folders, names in os.walk(folder, followlinks=True) if is_local else folder.walk():
        real = os.path.realpath(parent) if is_local else str(parent)
        if real in seen:
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = filter(is_visible, folders)
        yield from (epath.Path(parent) / name for name in names if is_visible(name))


def note_unread_files(root: epath.Path, folder: epath.Path, suffixes: tuple[str, ...]) -> tuple[str, ...]:
    """Return a note on the files in `folder` that look like images or masks, but cannot be read."""
    unread = [path for path in list_files(folder) if path.suffix.lower() not in (*suffixes, *OTHER_SUFFIXES)]
    if not unread:
        return ()
    count = f"{len(unread)} files were" if len(unread) > 1 else "1 file was"
    return (
        f"{count} left out, because the format cannot be read, such as {unread[0].relative_to(root)}. "
        f"Convert them to one of {', '.join(suffixes)}.",
    )
