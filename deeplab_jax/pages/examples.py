"""What a report shows of a run's predictions: the images with the lowest scores, and which classes are confused."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from deeplab_jax.evaluation import metrics
from deeplab_jax.evaluation.evaluate import EvaluatedImage
from deeplab_jax.evaluation.pictures import colorize
from deeplab_jax.labels import IGNORE, LabelSet
from deeplab_jax.pages import html_page

SIDE = 480  # longest side of a picture on the page
_WRONG = np.array((255, 59, 48), np.uint8)


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """An image with its scores, reduced for a page.

    Attributes:
      name: of the image.
      miou: mean IoU over the classes of its label, 0 to 1.
      pixel_accuracy: 0 to 1.
      worst: class of the label with the lowest IoU.
      image, truth, prediction, errors: pictures; in the last one wrong pixels are red, ignored ones black.
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
    """The images of an evaluation that have the lowest mean IoU.

    Args:
      names: of all images, by position.
      label_set: the classes.
      count: how many to keep.
    """

    def __init__(self, names: Sequence[str], label_set: LabelSet, count: int) -> None:
        self._names, self._label_set, self._count = names, label_set, count
        self._kept: list[tuple[float, int, Example]] = []

    def add(self, each: EvaluatedImage) -> None:
        """Visit an image, for `evaluate`."""
        if not self._count or each.label is None:
            return
        confusion = _count(each.label, each.prediction, self._label_set.num_classes)
        if not confusion.any():
            return
        iou = np.where(confusion.sum(1) > 0, metrics.class_iou(confusion), np.nan)
        rank = (metrics.mean_of_numbers(iou), each.index)
        if len(self._kept) == self._count and rank > self._kept[-1][:2]:
            return
        scores = (rank[0], metrics.pixel_accuracy(confusion), int(np.nanargmin(iou)))
        example = Example(self._names[each.index], *scores, *_pictures(each, each.label, self._label_set))
        self._kept = sorted([*self._kept, (*rank, example)], key=lambda entry: entry[:2])[: self._count]

    def examples(self) -> list[Example]:
        """Return them, the worst one first."""
        return [example for *_, example in self._kept]


def _count(label: UInt8[np.ndarray, "h w"], prediction: UInt8[np.ndarray, "h w"], classes: int) -> Int[np.ndarray, "k k"]:
    counts = label != IGNORE
    cells = label[counts].astype(np.int64) * classes + prediction[counts]
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def _pictures(each: EvaluatedImage, label: UInt8[np.ndarray, "h w"], label_set: LabelSet) -> list[UInt8[np.ndarray, "h w 3"]]:
    image = html_page.reduced(each.image, SIDE)
    truth = html_page.reduced(label, SIDE, labels=True)
    prediction = html_page.reduced(each.prediction, SIDE, labels=True)
    errors = np.repeat(image.mean(-1, keepdims=True) / 2, 3, axis=-1).astype(np.uint8)
    errors[truth != prediction] = _WRONG
    errors[truth == IGNORE] = 0
    return [image, colorize(truth, label_set), colorize(prediction, label_set), errors]


def row_shares(confusion: Int[np.ndarray, "k k"]) -> Float[np.ndarray, "k k"]:
    """Return the share of each class's pixels by prediction; 0 for a class without pixels."""
    return confusion / np.maximum(confusion.sum(1, keepdims=True), 1)


def confusions(confusion: Int[np.ndarray, "k k"], count: int) -> list[tuple[int, int, float]]:
    """Return the `count` largest (class, wrong prediction, share of the class's pixels), largest first."""
    shares = row_shares(confusion)
    np.fill_diagonal(shares, 0)
    order = np.argsort(-shares, axis=None, kind="stable")[:count]
    pairs = [(int(i // len(shares)), int(i % len(shares))) for i in order]
    return [(truth, guess, float(shares[truth, guess])) for truth, guess in pairs if shares[truth, guess] > 0]
