"""The `Layout` class, and what a layout finds in its folders.

This module does not read any pixels.
"""

import dataclasses
from collections.abc import Callable, Sequence

from etils import epath

from deeplab_jax.data.folders import suffix_of

Pair = tuple[str, str]
# The suffixes of files that are clearly not images.
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
    """A way to organise a data set in folders.

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
      reads_lists: Whether `SPLIT.txt` in the root folder lists the images of a split.
    """

    name: str
    shape: str
    labels: str
    splits: Callable[[epath.Path], list[str]]
    pairs: Callable[[epath.Path, str, str], Pairing]
    label_kind: str = "auto"
    reads_lists: bool = False


def note_unread_files(folder: str, names: Sequence[str], suffixes: tuple[str, ...]) -> tuple[str, ...]:
    """Return a note on the files that look like images or masks, but cannot be read.

    Args:
      folder: The folder, relative to the root.
      names: All files in the folder. See `folders.list_files`.
      suffixes: The suffixes of files that can be read.
    """
    read = {*suffixes, *OTHER_SUFFIXES}
    unread = [name for name in names if suffix_of(name) not in read]
    if not unread:
        return ()
    count = f"{len(unread)} files were" if len(unread) > 1 else "1 file was"
    return (
        f"{count} left out, because the format cannot be read, such as {folder}/{unread[0]}. "
        f"Convert them to one of {', '.join(suffixes)}.",
    )
