"""Write predictions in the Cityscapes server's format, as one PNG of label ids per image and a zip file of all PNGs."""

import re
import zipfile
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.evaluation.cityscapes import is_official
from deeplab_jax.files import write_atomically
from deeplab_jax.labels import CITYSCAPES, LabelSet

ARCHIVE = "submission.zip"
_LABEL_IDS = np.array(CITYSCAPES.class_ids, np.uint8)


def file_names(images: Sequence[str], label_set: LabelSet) -> tuple[str, ...]:
    """Return each image's submission file name, `<city>_<sequence>_<frame>_pred_labelIds.png`.

    The server and the official script require this pattern.

    Raises:
      ConfigError: The label set does not have the Cityscapes classes and ids.
      DataError: An image name does not follow the Cityscapes pattern, or two images would get the same file name.
    """
    if not is_official(label_set):
        raise ConfigError(
            f"`--submission` requires the Cityscapes classes and ids, but `labels` is {label_set.name!r}. "
            f"Use a Cityscapes recipe, or write images with --output."
        )
    first: dict[str, str] = {}
    for image in images:
        # The city must not contain an underscore, because the official script splits file names at underscores.
        match = re.fullmatch(r"([A-Za-z0-9-]+_\d{6}_\d{6})_leftImg8bit\.\w+", epath.Path(image).name)
        if not match:
            raise DataError(
                f"{image} cannot be submitted. Rename it: --submission requires <city>_<6 digits>_<6 digits>_leftImg8bit.png."
            )
        name = f"{match[1]}_pred_labelIds.png"
        if name in first:
            raise DataError(f"{first[name]} and {image} would both be submitted as {name}. Remove one from the list.")
        first[name] = image
    return tuple(first)


def write_prediction(folder: str, name: str, prediction: UInt8[np.ndarray, "h w"]) -> None:
    """Convert a prediction from train ids to label ids, and write it to `<folder>/<name>` as a PNG."""
    with write_atomically(epath.Path(folder) / name) as file:
        Image.fromarray(_LABEL_IDS[prediction]).save(file, "PNG")


def write_archive(folder: str, names: Sequence[str]) -> epath.Path:
    """Write `<folder>/submission.zip` and return its path.

    The archive contains only the files in `names`. The same files always give a byte-identical archive.
    """
    path = epath.Path(folder) / ARCHIVE
    members = [(epath.Path(folder) / name).read_bytes() for name in names]
    with write_atomically(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, member in zip(names, members, strict=True):
            entry = zipfile.ZipInfo(name)  # always dated 1980, because the current time would change the archive's bytes
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, member)
    return path
