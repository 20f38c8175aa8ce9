"""Pair images with labels whose file names differ in a fixed part."""

import re
from collections.abc import Sequence

from etils import epath

from deeplab_jax.data.decode import IMAGE_SUFFIXES, MASK_SUFFIXES
from deeplab_jax.data.folders import list_files, select
from deeplab_jax.data.layouts.layout import Pairing, note_unread_files


def pair_by_renaming(root: epath.Path, images: epath.Path, labels: epath.Path, end: str, label_end: str) -> Pairing:
    """Return (image, label) pairs from two folders. A label's relative path is that of its image with a different ending.

    An image without a label file is paired with the missing file name. If the label folder does not exist, the split has no
    labels.

    Args:
      root: The folder that the returned names are relative to.
      images: The folder with the images.
      labels: The folder with the labels.
      end: A regular expression for the end of image names, without the suffix, such as "_leftImg8bit".
      label_end: The end of label names, such as "_gtFine_labelIds.png".
    """
    labelled, files = labels.is_dir(), list_files(images)
    image_folder, label_folder = (str(folder.relative_to(root)) for folder in (images, labels))
    pairs = []
    for image in select(files, IMAGE_SUFFIXES):
        name = re.sub(rf"{end}\.\w+$", label_end, image)
        pairs.append((f"{image_folder}/{image}", f"{label_folder}/{name}" if labelled else ""))
    why = "" if labelled else f"the folder {label_folder} does not exist. Unpack the labels there."
    return Pairing(tuple(pairs), note_unread_files(image_folder, files, IMAGE_SUFFIXES), why)


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
