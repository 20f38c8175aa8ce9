"""Find the lowest-scoring images and the most frequently confused classes for a report."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from deeplab_jax.evaluation import metrics
from deeplab_jax.evaluation.evaluate import EvaluatedImage
from deeplab_jax.evaluation.pictures import colorize, to_rgb
from deeplab_jax.labels import IGNORE, LabelSet
from deeplab_jax.pages import html_page

_ERROR_COLOR = np.array((255, 59, 48), np.uint8)


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """An evaluated image, downscaled for an HTML page, and its scores.

    Attributes:
      name: The image name.
      miou: The mean IoU over the classes in the label, from 0 to 1.
      pixel_accuracy: The pixel accuracy, from 0 to 1.
      worst: The train id of the labelled class with the lowest IoU.
      image: The input image.
      truth: The label, drawn in its class colours.
      prediction: The prediction, drawn in its class colours.
      errors: The image in dark grey, with misclassified pixels in red and ignored pixels in black.
    """

    name: str
    miou: float
    pixel_accuracy: float
    worst: int
    image: UInt8[np.ndarray, "h w 3"]
    truth: UInt8[np.ndarray, "h w 3"]
    prediction: UInt8[np.ndarray, "h w 3"]
    errors: UInt8[np.ndarray, "h w 3"]


class WorstImages:
    """Collects the images with the lowest mean IoU in an evaluation.

    Args:
      names: The names of all images, in index order.
      label_set: The label set.
      count: The number of images to keep.
    """

    def __init__(self, names: Sequence[str], label_set: LabelSet, count: int) -> None:
        self._names, self._label_set, self._count = names, label_set, count
        self._kept: list[tuple[float, int, Example]] = []

    def add(self, each: EvaluatedImage) -> None:
        """Keep the image if its mean IoU is among the lowest so far. Pass this method to `evaluate` as a visitor."""
        if not self._count or each.label is None:
            return
        confusion = count_confusion(each.label, each.prediction, self._label_set.num_classes)
        if not confusion.any():
            return
        iou = labelled_iou(confusion)
        rank = (metrics.mean_of_numbers(iou), each.index)
        if len(self._kept) == self._count and rank > self._kept[-1][:2]:
            return
        scores = (rank[0], pixel_accuracy(confusion), int(np.nanargmin(iou)))
        example = Example(self._names[each.index], *scores, *_draw_pictures(each, each.label, self._label_set))
        self._kept = sorted([*self._kept, (*rank, example)], key=lambda entry: entry[:2])[: self._count]

    def examples(self) -> list[Example]:
        """Return the collected images, worst first."""
        return [example for *_, example in self._kept]


def count_confusion(
    label: UInt8[np.ndarray, "h w"], prediction: UInt8[np.ndarray, "h w"], classes: int
) -> Int[np.ndarray, "k k"]:
    """Return the pixel count for each (label, prediction) pair of one image."""
    is_labelled = label != IGNORE
    cells = label[is_labelled].astype(np.int64) * classes + prediction[is_labelled]
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def labelled_iou(confusion: Int[np.ndarray, "k k"]) -> Float[np.ndarray, " k"]:
    """Return each class's IoU in one image, or nan for a class that its label does not have."""
    return np.where(confusion.sum(1) > 0, metrics.class_iou(confusion), np.nan)


def pixel_accuracy(confusion: Int[np.ndarray, "k k"]) -> float:
    """Return the share of an image's labelled pixels that are predicted correctly. There must be some."""
    return float(np.trace(confusion) / confusion.sum())


def darken(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Return an image in dark grey, on which coloured pixels stand out."""
    return np.repeat(image.mean(-1, keepdims=True) / 2, 3, axis=-1).astype(np.uint8)


def _draw_pictures(
    each: EvaluatedImage, label: UInt8[np.ndarray, "h w"], label_set: LabelSet
) -> list[UInt8[np.ndarray, "h w 3"]]:
    image = html_page.downscale(to_rgb(each.image))
    truth = html_page.downscale(label, labels=True)
    prediction = html_page.downscale(each.prediction, labels=True)
    errors = darken(image)
    errors[truth != prediction] = _ERROR_COLOR
    errors[truth == IGNORE] = 0
    return [image, colorize(truth, label_set), colorize(prediction, label_set), errors]


def row_shares(confusion: Int[np.ndarray, "k k"]) -> Float[np.ndarray, "k k"]:
    """Normalise each row of a confusion matrix to sum to 1.

    Returns:
      An array whose entry (i, j) is the share of class i pixels predicted as class j. Rows for classes without pixels stay 0.
    """
    return confusion / np.maximum(confusion.sum(1, keepdims=True), 1)


def list_confusions(confusion: Int[np.ndarray, "k k"], count: int) -> list[tuple[int, int, float]]:
    """Return the most frequent confusions in descending order.

    Args:
      confusion: Pixel counts, indexed by (label, prediction).
      count: The maximum number of confusions to return.

    Returns:
      A (true class, predicted class, share) tuple per confusion. The share is relative to the true class's pixels.
    """
    shares = row_shares(confusion)
    np.fill_diagonal(shares, 0)
    order = np.argsort(-shares, axis=None, kind="stable")[:count]
    pairs = [(int(i // len(shares)), int(i % len(shares))) for i in order]
    return [(truth, guess, float(shares[truth, guess])) for truth, guess in pairs if shares[truth, guess] > 0]
