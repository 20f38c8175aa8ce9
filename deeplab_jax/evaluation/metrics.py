"""Compute metrics from sums over a split, which `counts` computes on the device."""

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Float, Int

Confusion = Int[np.ndarray, "k k"]  # the pixel count for each (label, prediction) pair
BINS = 15  # the number of confidence bins in Guo et al. 2017


class Calibration(NamedTuple):
    """Sums over the labelled pixels whose confidence lies in each of `BINS` bins of equal width.

    A pixel's confidence is the largest of its class probabilities.

    Attributes:
      pixels: The number of pixels.
      hits: The number of pixels that are predicted correctly.
      confidence: The sum of the confidences.
    """

    pixels: Int[Any, " bins"]
    hits: Int[Any, " bins"]
    confidence: Float[Any, " bins"]


class Totals(NamedTuple):
    """Sums over images: over a batch in JAX arrays of 32 bits, or over a split in NumPy arrays of 64 bits.

    Attributes:
      confusion: The pixel count for each (label, prediction) pair.
      loss: The sum of the cross-entropy over the labelled pixels, in nats.
      boundary: The same as `confusion`, but a pixel only counts as the class on whose boundary it lies (see `boundaries`).
        Class k stands for the pixels on no boundary.
      images: The number of images with a labelled pixel.
      image_iou: The sum of their mean IoUs, each over the classes in the image's label or prediction.
      calibration: The sums over bins of confidence.
    """

    confusion: Int[Any, "k k"]
    loss: Float[Any, ""]
    boundary: Int[Any, "k+1 k+1"]
    images: Int[Any, ""]
    image_iou: Float[Any, ""]
    calibration: Calibration


ClassValues = Float[np.ndarray, " k"]
Value = TypeVar("Value", float, ClassValues)


@dataclasses.dataclass(frozen=True)
class Metric(Generic[Value]):
    """A metric, computed from the sums over a split.

    Attributes:
      title: The name shown to people.
      compute: A function of the sums. What was not counted is nan.
      lower_is_better: Whether a lower value is better.
      is_share: Whether the values are from 0 to 1 and shown in percent.
    """

    title: str
    compute: Callable[[Totals], Value]
    lower_is_better: bool = False
    is_share: bool = True


def empty_totals(num_classes: int) -> Totals:
    """Return the sums over no images."""
    confusion, boundary = (np.zeros((k, k), np.int64) for k in (num_classes, num_classes + 1))
    bins = Calibration(np.zeros(BINS, np.int64), np.zeros(BINS, np.int64), np.zeros(BINS, np.float64))
    return Totals(confusion, np.float64(0), boundary, np.int64(0), np.float64(0), bins)


def add_totals(total: Totals, batch: Totals) -> Totals:
    """Return the sums over all images so far, in 64 bits, after adding a batch's sums."""
    return jax.tree.map(lambda sums, more: sums + np.asarray(more, sums.dtype), total, batch)


def class_iou(confusion: Confusion) -> ClassValues:
    """Return TP / (TP + FP + FN) for each class, or nan for a class absent from both labels and predictions.

    This is the IoU of cityscapesScripts' evalPixelLevelSemanticLabeling.py.
    """
    hits = np.diagonal(confusion).astype(np.float64)
    return _divide(hits, confusion.sum(0) + confusion.sum(1) - hits)


def iou(totals: Totals) -> ClassValues:
    """Return each class's IoU (see `class_iou`)."""
    return class_iou(totals.confusion)


def precision(totals: Totals) -> ClassValues:
    """Return TP / (TP + FP) for each class, or nan for a class that is never predicted."""
    return _divide(np.diagonal(totals.confusion), totals.confusion.sum(0))


def recall(totals: Totals) -> ClassValues:
    """Return TP / (TP + FN) for each class, or nan for a class absent from the labels."""
    return _divide(np.diagonal(totals.confusion), totals.confusion.sum(1))


def f1(totals: Totals) -> ClassValues:
    """Return 2 TP / (2 TP + FP + FN) for each class, or nan for a class absent from both labels and predictions.

    This is the Dice coefficient. It is 0 for a class that is never predicted, whereas mmsegmentation's Fscore is then nan.
    """
    return _divide(2 * np.diagonal(totals.confusion), totals.confusion.sum(0) + totals.confusion.sum(1))


def boundary_iou(totals: Totals) -> ClassValues:
    """Return the IoU of each class's boundaries in labels and predictions, or nan if neither has any (Cheng et al. 2021)."""
    return class_iou(totals.boundary)[:-1]


def mean_over_classes(compute: Callable[[Totals], ClassValues]) -> Callable[[Totals], float]:
    """Return a metric that is the mean of another metric over the classes."""
    return lambda totals: mean_of_numbers(compute(totals))


def mean_of_numbers(values: ClassValues) -> float:
    """Return the mean of the values, ignoring nan. If all values are nan, return nan."""
    numbers = values[~np.isnan(values)]
    return float(np.mean(numbers)) if numbers.size else float("nan")


def pixel_accuracy(totals: Totals) -> float:
    """Return the share of labelled pixels that are predicted correctly, or nan if there are none."""
    total = int(totals.confusion.sum())
    return float(np.trace(totals.confusion)) / total if total else float("nan")


def frequency_weighted_iou(totals: Totals) -> float:
    """Return the mean IoU, weighted by each class's share of the labelled pixels (Long et al. 2015), or nan without any."""
    frequencies = totals.confusion.sum(1)
    total = int(frequencies.sum())
    return float(np.nansum(frequencies * iou(totals))) / total if total else float("nan")


def image_miou(totals: Totals) -> float:
    """Return the mean over images of their mean IoU, or nan if no image has a labelled pixel.

    Each image's mean is over the classes in its label or prediction, as in torchmetrics' segmentation.MeanIoU.
    """
    return float(totals.image_iou) / int(totals.images) if totals.images else float("nan")


def mean_loss(totals: Totals) -> float:
    """Return the mean cross-entropy of the labelled pixels, in nats, or nan if there are none."""
    count = int(totals.confusion.sum())
    return float(totals.loss) / count if count else float("nan")


def calibration_error(totals: Totals) -> float:
    """Return the expected calibration error, or nan if there are no labelled pixels.

    This is the difference between mean confidence and accuracy in each bin, averaged over the pixels (Guo et al. 2017, equation
    3).
    """
    pixels, hits, confidence = totals.calibration
    total = int(pixels.sum())
    return float(np.abs(confidence - hits).sum()) / total if total else float("nan")


# The metrics of each class, keyed by their names in scores.json. To add one, write a function of the totals and add a line.
CLASS_METRICS: dict[str, Metric[ClassValues]] = {
    "iou": Metric("IoU", iou),
    "precision": Metric("precision", precision),
    "recall": Metric("recall", recall),
    "f1": Metric("F1", f1),
    "boundary_iou": Metric("boundary IoU", boundary_iou),
}

# The metrics of a split as a whole, in the same form. Pages, tables and logs show all of them.
OVERALL_METRICS: dict[str, Metric[float]] = {
    "miou": Metric("mIoU", mean_over_classes(iou)),
    "pixel_accuracy": Metric("pixel accuracy", pixel_accuracy),
    "frequency_weighted_iou": Metric("frequency-weighted IoU", frequency_weighted_iou),
    "image_miou": Metric("mIoU per image", image_miou),
    "boundary_miou": Metric("boundary mIoU", mean_over_classes(boundary_iou)),
    "mean_precision": Metric("mean precision", mean_over_classes(precision)),
    "mean_recall": Metric("mean recall", mean_over_classes(recall)),
    "mean_f1": Metric("mean F1", mean_over_classes(f1)),
    "ece": Metric("calibration error", calibration_error, lower_is_better=True),
    "loss": Metric("loss", mean_loss, lower_is_better=True, is_share=False),
}


def _divide(part: Int[np.ndarray, " k"] | ClassValues, whole: Int[np.ndarray, " k"] | ClassValues) -> ClassValues:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
