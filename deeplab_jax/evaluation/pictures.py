"""Check input images, draw label maps in colour, and write predictions as PNG files."""

from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from deeplab_jax.errors import DataError
from deeplab_jax.files import write_atomically
from deeplab_jax.labels import LabelSet


def require_images(images: Any) -> UInt8[np.ndarray, "n 3 h w"]:
    """Return `images` as an array after checking its dtype and shape.

    Raises:
      DataError: The dtype or shape is wrong, or the array is empty.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise DataError(
            f"`images` (={images.dtype} {list(images.shape)}) is not usable. Give RGB images as uint8 [n, 3, h, w]."
        )
    return images


def colorize(labels: UInt8[np.ndarray, "h w"], label_set: LabelSet) -> UInt8[np.ndarray, "h w 3"]:
    """Return train ids as an RGB image in the label set's colours. Ignored pixels are black."""
    return label_set.palette()[labels]


def overlay(
    image: UInt8[np.ndarray, "h w 3"], labels: UInt8[np.ndarray, "h w"], label_set: LabelSet, opacity: float = 0.5
) -> UInt8[np.ndarray, "h w 3"]:
    """Return the image blended with its label colours."""
    mixed = np.empty_like(image)
    # Blend 256 rows at a time, because a floating-point copy of a large image would take several times as much memory.
    for top in range(0, len(image), 256):
        rows = slice(top, top + 256)
        colors = colorize(labels[rows], label_set).astype(np.float32)
        np.round((1 - opacity) * image[rows].astype(np.float32) + opacity * colors, out=colors)
        mixed[rows] = colors
    return mixed


def draw_comparison(
    image: UInt8[np.ndarray, "h w 3"],
    label: UInt8[np.ndarray, "h w"],
    prediction: UInt8[np.ndarray, "h w"],
    label_set: LabelSet,
) -> UInt8[np.ndarray, "h w3 3"]:
    """Return the image, the label and the prediction side by side."""
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
    """Write an image's prediction as PNG files.

    The files are `<output>/train_ids/<name>.png` and `<output>/color/<name>.png`. If `image` is given, an overlay is
    written to `<output>/overlay` as well. If `confidence` is given, it is written to `<output>/confidence`.
    """
    drawn = {"train_ids": prediction, "color": colorize(prediction, label_set), "confidence": confidence}
    if image is not None:
        drawn["overlay"] = overlay(image, prediction, label_set, opacity)
    for kind, pixels in drawn.items():
        if pixels is not None:
            with write_atomically(epath.Path(output) / kind / f"{name}.png") as file:
                # Compression level 1 takes a third as long as the default level, and the files are only a tenth larger.
                Image.fromarray(pixels).save(file, "PNG", compress_level=1)
