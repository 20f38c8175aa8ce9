"""Count confusions and compute metrics from the counts, as cityscapesScripts' evalPixelLevelSemanticLabeling.py does."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from deeplab_jax.labels import IGNORE

Confusion = Int[np.ndarray, "k k"]  # the pixel count for each (label, prediction) pair


def valid_pixels(labels: UInt8[Array, "n h w"], valid: Bool[Array, " n"]) -> Bool[Array, "n h w"]:
    """Return a mask of the pixels whose label is not 255, excluding images that only pad the batch."""
    return (labels != IGNORE) & valid[:, None, None]


def confusion_counts(
    labels: UInt8[Array, "n h w"], predictions: UInt8[Array, "n h w"], mask: Bool[Array, "n h w"], num_classes: int
) -> Int[Array, "k k"]:
    """Count the pixels selected by `mask` for each (label, prediction) pair, on the device.

    The counts are int32, so a batch must have fewer than 2**31 pixels. Sum over batches in int64 on the host.
    """
    cell = labels.astype(jnp.int32) * num_classes + predictions.astype(jnp.int32)
    cell = jnp.where(mask, cell, num_classes * num_classes)
    counts = jnp.bincount(cell.reshape(-1), length=num_classes * num_classes + 1)
    return counts[:-1].reshape(num_classes, num_classes)


def loss_sum(logits: Float[Array, "n h w k"], labels: UInt8[Array, "n h w"], mask: Bool[Array, "n h w"]) -> Float[Array, ""]:
    """Return the sum of the cross-entropy, in nats, over the pixels selected by `mask`."""
    classes = jnp.where(mask, labels, 0).astype(jnp.int32)[..., None]
    # Comparing instead of gathering lets XLA compute the sums without keeping the logits in memory.
    is_chosen = classes == jax.lax.broadcasted_iota(jnp.int32, logits.shape, 3)
    chosen = jnp.sum(jnp.where(is_chosen, logits, 0), axis=-1)
    return jnp.sum(jnp.where(mask, jax.nn.logsumexp(logits, axis=-1) - chosen, 0))


class Totals(NamedTuple):
    """The sums over a split.

    Attributes:
      confusion: The pixel count for each (label, prediction) pair.
      loss: The sum of the cross-entropy over the labelled pixels, in nats.
    """

    confusion: Confusion
    loss: float


def class_iou(confusion: Confusion) -> Float[np.ndarray, " k"]:
    """Return TP / (TP + FP + FN) for each class, or nan for a class absent from both labels and predictions."""
    hits = np.diagonal(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)


def mean_iou(confusion: Confusion) -> float:
    """Return the mean IoU over all classes whose IoU is not nan, or nan if there are none."""
    return mean_of_numbers(class_iou(confusion))


def mean_of_numbers(values: Float[np.ndarray, " k"]) -> float:
    """Return the mean of the values, ignoring nan. If all values are nan, return nan."""
    numbers = values[~np.isnan(values)]
    return float(np.mean(numbers)) if numbers.size else float("nan")


def pixel_accuracy(confusion: Confusion) -> float:
    """Return the share of counted pixels that are predicted correctly, or nan if no pixels were counted."""
    total = int(confusion.sum())
    return float(np.trace(confusion)) / total if total else float("nan")


# The metrics that pages, tables and logs show in addition to per-class scores, keyed by their names in scores.json. To add a
# metric, write a function of the confusion counts that returns nan if no pixels were counted, and add it here.
OVERALL_METRICS: dict[str, Callable[[Confusion], float]] = {
    "miou": mean_iou,
    "pixel_accuracy": pixel_accuracy,
}


def format_metric_name(metric: str) -> str:
    """Return a metric's display name, such as "mIoU" for "miou"."""
    return metric.replace("_", " ").replace("iou", "IoU")
