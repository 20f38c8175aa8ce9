"""Read Cityscapes instanceIds files, which are stored next to the label files.

The files are read on the host with Pillow.
"""

import re
from collections.abc import Set

import numpy as np
from etils import epath
from jaxtyping import UInt16
from PIL import Image

from deeplab_jax.data.find import KINDS, find_missing_files
from deeplab_jax.data.image_files import ImageFiles
from deeplab_jax.data.samples import Samples
from deeplab_jax.errors import DataError, one_line


def instance_file(label: str) -> str:
    """Return the instanceIds file name for a label file named `..._gtFine_<kind>.png`, or "" for any other name."""
    name, count = re.subn(rf"_gtFine_({'|'.join(KINDS)})\.png$", "_gtFine_instanceIds.png", label)
    return name if count else ""


def explain_missing_instances(samples: Samples) -> str:
    """Return the reason why a split has no instance ids, or "" if all its instanceIds files exist."""
    if not isinstance(samples.store, ImageFiles):
        return f"instanceIds files are not available from {samples.source}. Evaluate on the original data set to get iIoU."
    files = [instance_file(label) for label in samples.labels]
    if "" in files:
        return f"{samples.labels[files.index('')]} is not named <image>_gtFine_<kind>.png"
    missing = find_missing_files(epath.Path(samples.root), files)
    return f"{len(missing)} of {len(files)} instanceIds files are missing, such as {missing[0]}" if missing else ""


def read_instances(samples: Samples, instance_labels: Set[int], index: int, size: tuple[int, int]) -> UInt16[np.ndarray, "h w"]:
    """Read one sample's instance ids.

    Args:
      samples: A split for which `explain_missing_instances` returns "".
      instance_labels: The label ids that are allowed to have instances. Instance k of label id n is stored as 1000 * n + k.
      index: The sample's position in the list.
      size: The image's (height, width).

    Raises:
      DataError: The file is unreadable, is not a 16-bit image, differs in size from its image, or contains instances for a
        label id that is not in `instance_labels`.
    """
    path = epath.Path(samples.root) / instance_file(samples.labels[index])
    try:
        with path.open("rb") as file, Image.open(file) as picture:
            mode, values = picture.mode, np.array(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({one_line(error)}). Replace the file, or remove it to evaluate without iIoU."
        ) from None
    if mode not in ("I;16", "I"):  # the mode depends on the Pillow version
        raise DataError(
            f"{path} is not a 16-bit grey image (mode {mode}). "
            "Replace it with the original instanceIds file, or remove it to evaluate without iIoU."
        )
    if values.shape != size:
        sizes = " and ".join(f"{width}x{height}" for height, width in (values.shape, size))
        raise DataError(
            f"{path} and its image {samples.images[index]} differ in size ({sizes} pixels). Make both the same size."
        )
    unknown = sorted(set(np.unique(values[values > 1000] // 1000).tolist()) - instance_labels)
    if unknown:
        raise DataError(
            f"{path} contains instances of label id {unknown[0]} (pixel values {1000 * unknown[0]} and up), "
            "but this label cannot have instances. Fix the file."
        )
    return values.astype(np.uint16)
