"""Predictions as the Cityscapes server takes them: a PNG of label ids an image, and one zip of all."""

import re
import zipfile
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.evaluation.cityscapes import is_official
from deeplab_jax.files import replacing
from deeplab_jax.labels import CITYSCAPES, LabelSet

ARCHIVE = "submission.zip"
_LABEL_IDS = np.array(CITYSCAPES.class_ids, np.uint8)


def file_names(images: Sequence[str], label_set: LabelSet) -> tuple[str, ...]:
    """Return `<city>_<sequence>_<frame>_pred_labelIds.png` for each image: what the server and the official script look for.

    Raises:
      ConfigError: The label set is not Cityscapes'.
      DataError: An image's name is not, or two images would give one file.
    """
    if not is_official(label_set):
        raise ConfigError(
            f"`--submission` needs Cityscapes' classes and ids, and `labels` is {label_set.name!r}: "
            f"use a Cityscapes recipe, or --output for pictures"
        )
    first: dict[str, str] = {}
    for image in images:
        # No underscore in the city: the script splits names there.
        match = re.fullmatch(r"([A-Za-z0-9-]+_\d{6}_\d{6})_leftImg8bit\.\w+", epath.Path(image).name)
        if not match:
            raise DataError(f"{image} cannot be submitted: --submission needs <city>_<6 digits>_<6 digits>_leftImg8bit.png")
        name = f"{match[1]}_pred_labelIds.png"
        if name in first:
            raise DataError(f"{first[name]} and {image} would both be submitted as {name}: take one off the list")
        first[name] = image
    return tuple(first)


def write_prediction(folder: str, name: str, prediction: UInt8[np.ndarray, "h w"]) -> None:
    """Write `<folder>/<name>` from a prediction in train ids."""
    with replacing(epath.Path(folder) / name) as file:
        Image.fromarray(_LABEL_IDS[prediction]).save(file, "PNG")


def write_archive(folder: str, names: Sequence[str]) -> epath.Path:
    """Write `<folder>/submission.zip` of `names` and nothing else in the folder; the same files give the same bytes."""
    path = epath.Path(folder) / ARCHIVE
    members = [(epath.Path(folder) / name).read_bytes() for name in names]
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, member in zip(names, members, strict=True):
            entry = zipfile.ZipInfo(name)  # of 1980: the time of writing is no part of the predictions
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, member)
    return path
