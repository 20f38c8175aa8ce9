"""Cityscapes' instanceIds files, which lie beside the labels. Read on the host with Pillow."""

import re
from collections.abc import Set

import numpy as np
from etils import epath
from jaxtyping import UInt16
from PIL import Image

from deeplab_jax.data.find import KINDS, missing_files
from deeplab_jax.data.image_files import ImageFiles
from deeplab_jax.data.samples import Samples
from deeplab_jax.errors import DataError, one_line


def instance_file(label: str) -> str:
    """Return the instanceIds file of a label `..._gtFine_<kind>.png`; "" for any other name."""
    name, changed = re.subn(rf"_gtFine_({'|'.join(KINDS)})\.png$", "_gtFine_instanceIds.png", label)
    return name if changed else ""


def why_no_instances(samples: Samples) -> str:
    """Return what keeps the split's instances from being read: a name or a missing file; "" if nothing does."""
    if not isinstance(samples.store, ImageFiles):
        return f"{samples.source} hold no instanceIds files; those of the data set do"
    files = [instance_file(label) for label in samples.labels]
    if "" in files:
        return f"{samples.labels[files.index('')]} is not named <image>_gtFine_<kind>.png"
    missing = missing_files(epath.Path(samples.root), files)
    return f"{len(missing)} of {len(files)} instanceIds files are missing, such as {missing[0]}" if missing else ""


def read_instances(samples: Samples, numbered: Set[int], index: int, size: tuple[int, int]) -> UInt16[np.ndarray, "h w"]:
    """Read the instance ids of one sample.

    Args:
      samples: a split for which `why_no_instances` has nothing to say.
      numbered: label ids whose instances may be numbered (values above 1000).
      index: position in the list.
      size: (height, width) of its image.

    Raises:
      DataError: the file cannot be read, is no 16-bit image, has another size, or numbers instances of another label.
    """
    path = epath.Path(samples.root) / instance_file(samples.labels[index])
    try:
        with path.open("rb") as file, Image.open(file) as picture:
            mode, values = picture.mode, np.array(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({one_line(error)}): replace it, or remove it to go without iIoU") from None
    if mode not in ("I;16", "I"):  # which of the two, depends on Pillow's version
        raise DataError(f"{path} is no 16-bit grey image (mode {mode}): instanceIds files are")
    if values.shape != size:
        shown = " and ".join(f"{width}x{height}" for height, width in (values.shape, size))
        raise DataError(f"{path} and its image {samples.images[index]} differ in size ({shown} pixels): make them the same")
    unknown = sorted(set(np.unique(values[values > 1000] // 1000).tolist()) - numbered)
    if unknown:
        raise DataError(
            f"{path} numbers instances of label id {unknown[0]} ({1000 * unknown[0]} and on), which has none: correct the file"
        )
    return values.astype(np.uint16)
