"""Images as callers give them, label maps as they are drawn, and the files of both."""

from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from deeplab_jax.errors import DataError
from deeplab_jax.files import replacing
from deeplab_jax.labels import LabelSet


def require_images(images: Any) -> UInt8[np.ndarray, "n 3 h w"]:
    """Return `images` as an array.

    Raises:
      DataError: Another dtype or shape.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise DataError(f"`images` (={images.dtype} {list(images.shape)}) must be uint8 [n, 3, h, w]: RGB values from 0 to 255")
    return images


def colorize(labels: UInt8[np.ndarray, "h w"], label_set: LabelSet) -> UInt8[np.ndarray, "h w 3"]:
    """Return train ids in the label set's colours; the ignore label is black."""
    return label_set.palette()[labels]


def overlay(
    image: UInt8[np.ndarray, "h w 3"], labels: UInt8[np.ndarray, "h w"], label_set: LabelSet, opacity: float = 0.5
) -> UInt8[np.ndarray, "h w 3"]:
    """Return the image with the colours of its labels laid over it."""
    mixed = np.empty_like(image)
    # By rows: as floating-point numbers a large image would take many times its size.
    for top in range(0, len(image), 256):
        rows = slice(top, top + 256)
        colors = colorize(labels[rows], label_set).astype(np.float32)
        np.round((1 - opacity) * image[rows].astype(np.float32) + opacity * colors, out=colors)
        mixed[rows] = colors
    return mixed


def strip(
    image: UInt8[np.ndarray, "h w 3"],
    label: UInt8[np.ndarray, "h w"],
    prediction: UInt8[np.ndarray, "h w"],
    label_set: LabelSet,
) -> UInt8[np.ndarray, "h w3 3"]:
    """Return image | label | prediction, side by side."""
    return np.concatenate([image, colorize(label, label_set), colorize(prediction, label_set)], axis=1)


def write_pictures(
    output: str,
    name: str,
    label_set: LabelSet,
    prediction: UInt8[np.ndarray, "h w"],
    *,
    image: UInt8[np.ndarray, "h w 3"] | None = None,
    confidence: UInt8[np.ndarray, "h w"] | None = None,
    opacity: float = 0.5,
) -> None:
    """Write `<output>/{train_ids,color}/<name>.png`, also `overlay` given an image and `confidence` given that."""
    drawn = {"train_ids": prediction, "color": colorize(prediction, label_set), "confidence": confidence}
    if image is not None:
        drawn["overlay"] = overlay(image, prediction, label_set, opacity)
    for kind, pixels in drawn.items():
        if pixels is not None:
            with replacing(epath.Path(output) / kind / f"{name}.png") as file:
                # Level 1 takes a third of the time and a tenth more space.
                Image.fromarray(pixels).save(file, "PNG", compress_level=1)
