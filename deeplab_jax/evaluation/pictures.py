"""Label maps as pictures. Arrays in and out; writing files is the caller's."""

import numpy as np
from jaxtyping import UInt8

from deeplab_jax.labels import LabelSet


def colorize(labels: UInt8[np.ndarray, "h w"], label_set: LabelSet) -> UInt8[np.ndarray, "h w 3"]:
    """Train ids in the label set's colours; the ignore label is black."""
    return label_set.palette()[labels]


def overlay(
    image: UInt8[np.ndarray, "h w 3"], labels: UInt8[np.ndarray, "h w"], label_set: LabelSet, opacity: float = 0.5
) -> UInt8[np.ndarray, "h w 3"]:
    """The image with the colours of its labels laid over it."""
    mixed = (1 - opacity) * image.astype(np.float32) + opacity * colorize(labels, label_set)
    return np.round(mixed).astype(np.uint8)


def strip(
    image: UInt8[np.ndarray, "h w 3"],
    label: UInt8[np.ndarray, "h w"],
    prediction: UInt8[np.ndarray, "h w"],
    label_set: LabelSet,
) -> UInt8[np.ndarray, "h w3 3"]:
    """image | label | prediction, side by side."""
    return np.concatenate([image, colorize(label, label_set), colorize(prediction, label_set)], axis=1)
