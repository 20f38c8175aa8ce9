"""Pair images with labels whose file names differ in a fixed part."""

import re
from collections.abc import Iterator

from etils import epath

from deeplab_jax.data.layouts.layout import IMAGE_SUFFIXES, Pair, list_images


def pair_by_renaming(root: epath.Path, images: epath.Path, labels: epath.Path, end: str, label_end: str) -> Iterator[Pair]:
    """Yield (image, label) pairs from two folders, where the label's relative path is that of the image with a different end.

    An image without a label file is paired with the missing file name. If the label folder does not exist, the split has no
    labels and each label is "".

    Args:
      root: The folder that the yielded names are relative to.
      images: The folder with the images.
      labels: The folder with the labels.
      end: A regular expression for the end of image names, without the suffix, such as "_leftImg8bit".
      label_end: The end of label names, such as "_gtFine_labelIds.png".
    """
    labelled = labels.is_dir()
    for image in list_images(images):
        name = re.sub(rf"{end}\.\w+$", label_end, str(image.relative_to(images)))
        yield str(image.relative_to(root)), str((labels / name).relative_to(root)) if labelled else ""


def remove_suffix(name: str) -> str:
    """Return a file name without its suffix. Other dots, as in "frame.0.1", are part of the name."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot + suffix.lower() in IMAGE_SUFFIXES else name
