"""Confusion counts and what is derived from them, as cityscapesScripts' evalPixelLevelSemanticLabeling.py computes it."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8


def confusion_counts(
    labels: UInt8[Array, "n h w"], predictions: UInt8[Array, "n h w"], mask: Bool[Array, "n h w"], num_classes: int
) -> Int[Array, "k k"]:
    """Pixels by (label, prediction), over `mask` alone, on the device.

    int32: one batch must stay below 2**31 pixels; add batches up as int64 on the host.
    """
    cell = labels.astype(jnp.int32) * num_classes + predictions.astype(jnp.int32)
    cell = jnp.where(mask, cell, num_classes * num_classes)
    counts = jnp.bincount(cell.reshape(-1), length=num_classes * num_classes + 1)
    return counts[:-1].reshape(num_classes, num_classes)


def class_iou(confusion: Int[np.ndarray, "k k"]) -> Float[np.ndarray, " k"]:
    """TP / (TP + FP + FN) a class; nan for a class in neither labels nor predictions."""
    hits = np.diagonal(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)


def mean_iou(confusion: Int[np.ndarray, "k k"]) -> float:
    """Mean over the classes whose IoU is a number; nan if there is none."""
    return mean_of_numbers(class_iou(confusion))


def mean_of_numbers(values: Float[np.ndarray, " k"]) -> float:
    """Mean over what is not nan; nan if all is."""
    numbers = values[~np.isnan(values)]
    return float(np.mean(numbers)) if numbers.size else float("nan")


def pixel_accuracy(confusion: Int[np.ndarray, "k k"]) -> float:
    """Share of counted pixels that are right; nan if none was counted."""
    total = int(confusion.sum())
    return float(np.trace(confusion)) / total if total else float("nan")
