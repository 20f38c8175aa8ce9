"""Confusion counts and what is derived from them, as cityscapesScripts' evalPixelLevelSemanticLabeling.py computes it."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from deeplab_jax.labels import IGNORE

Confusion = Int[np.ndarray, "k k"]  # pixels by (label, prediction)


def valid_pixels(labels: UInt8[Array, "n h w"], valid: Bool[Array, " n"]) -> Bool[Array, "n h w"]:
    """Return True where the label is not 255 and the image is no padding."""
    return (labels != IGNORE) & valid[:, None, None]


def confusion_counts(
    labels: UInt8[Array, "n h w"], predictions: UInt8[Array, "n h w"], mask: Bool[Array, "n h w"], num_classes: int
) -> Int[Array, "k k"]:
    """Count pixels by (label, prediction), over `mask` alone, on the device.

    int32: one batch must stay below 2**31 pixels; add batches up as int64 on the host.
    """
    cell = labels.astype(jnp.int32) * num_classes + predictions.astype(jnp.int32)
    cell = jnp.where(mask, cell, num_classes * num_classes)
    counts = jnp.bincount(cell.reshape(-1), length=num_classes * num_classes + 1)
    return counts[:-1].reshape(num_classes, num_classes)


def class_iou(confusion: Confusion) -> Float[np.ndarray, " k"]:
    """Return TP / (TP + FP + FN) of each class; nan for a class in neither labels nor predictions."""
    hits = np.diagonal(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)


def mean_iou(confusion: Confusion) -> float:
    """Return the mean over the classes whose IoU is a number; nan if there is none."""
    return mean_of_numbers(class_iou(confusion))


def mean_of_numbers(values: Float[np.ndarray, " k"]) -> float:
    """Return the mean over what is not nan; nan if everything is."""
    numbers = values[~np.isnan(values)]
    return float(np.mean(numbers)) if numbers.size else float("nan")


def pixel_accuracy(confusion: Confusion) -> float:
    """Return the share of counted pixels that are right; nan if none was counted."""
    total = int(confusion.sum())
    return float(np.trace(confusion)) / total if total else float("nan")


# What a page, a table and a log show of an evaluation besides the classes, by the name in scores.json. A new metric is a
# function of the confusion counts, nan where nothing was counted, and a line here.
OVERALL_METRICS: dict[str, Callable[[Confusion], float]] = {
    "miou": mean_iou,
    "pixel_accuracy": pixel_accuracy,
}


def title_of(metric: str) -> str:
    """Return the name of a metric for people: "mIoU" for "miou"."""
    return metric.replace("_", " ").replace("iou", "IoU")
