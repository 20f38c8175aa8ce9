"""Pair images with labels whose file names differ in a fixed part."""

import re
from collections.abc import Sequence

from etils import epath

from deeplab_jax.data.decode import IMAGE_SUFFIXES, MASK_SUFFIXES
from deeplab_jax.data.layouts.layout import Pairing, list_images, note_unread_files


def pair_by_renaming(root: epath.Path, images: epath.Path, labels: epath.Path, end: str, label_end: str) -> Pairing:
    """Return (image, label) pairs from two folders. A label's relative path is that of its image with a different end.

    An image without a label file is paired with the missing file name. If the label folder does not exist, the split has no
    labels.

    Args:
      root: The folder that the returned names are relative to.
      images: The folder with the images.
      labels: The folder with the labels.
      end: A regular expression for the end of image names, without the suffix, such as "_leftImg8bit".
      label_end: The end of label names, such as "_gtFine_labelIds.png".
    """
    labelled = labels.is_dir()
    pairs = []
    for image in list_images(images):
        name = re.sub(rf"{end}\.\w+$", label_end, str(image.relative_to(images)))
        pairs.append((str(image.relative_to(root)), str((labels / name).relative_to(root)) if labelled else ""))
    why = "" if labelled else f"the folder {labels.relative_to(root)} does not exist. Unpack the labels there."
    return Pairing(tuple(pairs), note_unread_files(root, images, IMAGE_SUFFIXES), why)


def join(pairings: Sequence[Pairing]) -> Pairing:
    """Return the samples of several folders that form one split."""
    return Pairing(
        tuple(pair for pairing in pairings for pair in pairing.pairs),
        tuple(note for pairing in pairings for note in pairing.notes),
        next((pairing.why_unlabelled for pairing in pairings if pairing.why_unlabelled), ""),
    )


def remove_suffix(name: str) -> str:
    """Return a file name without its suffix. Other dots, as in "frame.0.1", are part of the name."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot + suffix.lower() in (*IMAGE_SUFFIXES, *MASK_SUFFIXES) else name
