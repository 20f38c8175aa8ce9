"""Find the images that one run predicts better than the others."""

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from deeplab_jax.evaluation import metrics
from deeplab_jax.evaluation.evaluate import EvaluatedImage
from deeplab_jax.evaluation.pictures import colorize, to_rgb
from deeplab_jax.labels import IGNORE, LabelSet
from deeplab_jax.pages import html_page
from deeplab_jax.pages.examples import count_confusion, darken, labelled_iou, pixel_accuracy

# The colours of pixels that only one of two runs predicts correctly, as of the runs' lines in templates/compare.css.
_ONLY_FIRST, _ONLY_SECOND = np.array([(31, 111, 235), (230, 145, 56)], np.uint8)
_DISPUTED = np.array((230, 145, 56), np.uint8)


@dataclasses.dataclass(frozen=True, slots=True)
class Disagreement:
    """An image with the predictions of all runs, downscaled for an HTML page.

    Attributes:
      name: The image name.
      miou: Each run's mean IoU over the classes in the label, from 0 to 1.
      accuracy: Each run's pixel accuracy, from 0 to 1.
      image: The input image.
      truth: The label, drawn in its class colours.
      predictions: Each run's prediction, drawn in its class colours.
      differences: The image in dark grey, with the pixels that some runs predict correctly and others do not in colour.
    """

    name: str
    miou: list[float]
    accuracy: list[float]
    image: UInt8[np.ndarray, "h w 3"]
    truth: UInt8[np.ndarray, "h w 3"]
    predictions: list[UInt8[np.ndarray, "h w 3"]]
    differences: UInt8[np.ndarray, "h w 3"]


class Disagreements:
    """Collects, for each run, the images whose mean IoU is highest with this run and furthest above the lowest one.

    Evaluate the runs one after the other, on the same images. The predictions of all but the last are kept compressed.

    Args:
      names: The names of all images, in index order.
      label_set: The label set.
      runs: The number of runs.
      count: The number of images to keep, over all runs.
    """

    def __init__(self, names: Sequence[str], label_set: LabelSet, runs: int, count: int) -> None:
        self._names, self._label_set, self._runs = names, label_set, runs
        self._count = count
        self._earlier: dict[int, list[bytes]] = {}
        self._kept: list[list[tuple[float, int, Disagreement]]] = [[] for _ in range(runs)]

    def add(self, each: EvaluatedImage) -> None:
        """Add one run's prediction. Pass this method to `evaluate` as a visitor, for each run."""
        if each.label is None:
            return
        earlier = self._earlier.setdefault(each.index, [])
        if len(earlier) + 1 < self._runs:
            earlier.append(zlib.compress(each.prediction.tobytes(), 1))
            return
        shape = each.prediction.shape
        predictions = [np.frombuffer(zlib.decompress(data), np.uint8).reshape(shape) for data in self._earlier.pop(each.index)]
        self._compare(each, each.label, [*predictions, each.prediction])

    def by_winner(self) -> list[list[Disagreement]]:
        """Return for each run the images that it predicts better than others, the largest difference first.

        Every run has the same share of the images, if it has so many. The largest other differences fill the rest.
        """
        share = self._count // self._runs
        first = [entry for kept in self._kept for entry in kept[:share]]
        others = sorted((entry for kept in self._kept for entry in kept[share:]), key=_rank)
        shown = {entry[1] for entry in [*first, *others[: self._count - len(first)]]}
        return [[image for _, index, image in kept if index in shown] for kept in self._kept]

    def _compare(
        self, each: EvaluatedImage, label: UInt8[np.ndarray, "h w"], predictions: Sequence[UInt8[np.ndarray, "h w"]]
    ) -> None:
        confusions = [count_confusion(label, prediction, self._label_set.num_classes) for prediction in predictions]
        if not confusions[0].any():
            return
        miou = [metrics.mean_of_numbers(labelled_iou(confusion)) for confusion in confusions]
        winner, gap = int(np.argmax(miou)), max(miou) - min(miou)
        kept = self._kept[winner]
        rank = (-gap, each.index)
        if gap == 0 or (len(kept) == self._count and rank > kept[-1][:2]):
            return
        accuracy = [pixel_accuracy(confusion) for confusion in confusions]
        entry = self._draw(self._names[each.index], miou, accuracy, each, label, predictions)
        self._kept[winner] = sorted([*kept, (*rank, entry)], key=_rank)[: self._count]

    def _draw(
        self,
        name: str,
        miou: list[float],
        accuracy: list[float],
        each: EvaluatedImage,
        label: UInt8[np.ndarray, "h w"],
        predictions: Sequence[UInt8[np.ndarray, "h w"]],
    ) -> Disagreement:
        image = html_page.downscale(to_rgb(each.image))
        truth, *guesses = (html_page.downscale(labels, labels=True) for labels in (label, *predictions))
        differences = darken(image)
        is_right = [(guess == truth) & (truth != IGNORE) for guess in guesses]
        for mask, color in _disputed_pixels(is_right):
            differences[mask] = color
        pictures = [colorize(labels, self._label_set) for labels in (truth, *guesses)]
        return Disagreement(name, miou, accuracy, image, pictures[0], pictures[1:], differences)


def _rank(entry: tuple[float, int, Disagreement]) -> tuple[float, int]:
    return entry[:2]


def _disputed_pixels(
    is_right: Sequence[Bool[np.ndarray, "h w"]],
) -> list[tuple[Bool[np.ndarray, "h w"], UInt8[np.ndarray, " 3"]]]:
    """Return the pixels that some runs predict correctly and others do not, with their colours."""
    if len(is_right) == 2:
        first, second = is_right
        return [(first & ~second, _ONLY_FIRST), (second & ~first, _ONLY_SECOND)]
    return [(np.any(is_right, axis=0) & ~np.all(is_right, axis=0), _DISPUTED)]
