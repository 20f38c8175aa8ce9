"""What an inspection of a data set returns, and what follows from it for training."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deeplab_jax.data.survey import Survey
from deeplab_jax.labels import LabelSet


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """A problem in a data set.

    Attributes:
      sort: The kind of problem, used as the heading in the report.
      split: The name of the affected split.
      text: A one-line message that names the file, the problem and the fix.
      fails: Whether the problem would stop a training run, or make it learn wrong classes.
    """

    sort: str
    split: str
    text: str
    fails: bool


@dataclasses.dataclass(slots=True)
class Tally:
    """Totals over a split's readable samples.

    Attributes:
      source: Where the sample list comes from.
      samples: The number of samples, including unreadable ones.
      pixels: The pixel count for each train id, int64 [num_classes].
      images: The number of samples that contain each train id, int64 [num_classes].
      survey: The label values.
      sizes: The number of samples for each image (width, height).
      image_modes: The number of images for each Pillow image mode.
      label_modes: The number of label files for each Pillow image mode.
      ignored: The number of ignored pixels.
      unknown: The number of pixels with values outside the label set.
      band_sums: The sum and the sum of squares of each band over all pixels, float64 [2, channels]. None for RGB images, whose
        normalisation follows from the pretrained weights.
    """

    source: str
    samples: int
    pixels: np.ndarray
    images: np.ndarray
    survey: Survey
    sizes: Counter[tuple[int, int]] = dataclasses.field(default_factory=Counter)
    image_modes: Counter[str] = dataclasses.field(default_factory=Counter)
    label_modes: Counter[str] = dataclasses.field(default_factory=Counter)
    ignored: int = 0
    unknown: int = 0
    band_sums: np.ndarray | None = None

    def mean_and_std(self) -> tuple[list[float], list[float]] | None:
        """Return each band's mean and standard deviation over all pixels (0-255), or None for RGB images.

        The standard deviation of a band with only one value, such as an opaque alpha channel, is 1 instead of 0, because images
        are divided by it.
        """
        if self.band_sums is None:
            return None
        count = sum(width * height * number for (width, height), number in self.sizes.items())
        mean, square = self.band_sums / count
        std = np.sqrt(square - mean**2)
        return mean.tolist(), np.where(std == 0, 1.0, std).tolist()


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """The result of `check`.

    Attributes:
      tallies: The totals for each split.
      problems: All problems. Those for which `fails` is set come first.
    """

    tallies: Mapping[str, Tally]
    problems: Sequence[Problem]

    @property
    def fails(self) -> bool:
        """Return whether any problem would stop a training run, or make it learn wrong classes."""
        return any(problem.fails for problem in self.problems)


def compute_class_weights(pixels: np.ndarray) -> tuple[float, ...]:
    """Compute ENet's class weights, 1 / ln(1.02 + share) (arXiv 1606.02147, section 5.2).

    `share` is the fraction of labelled pixels that belong to the class. The weights are scaled to a mean of 1 over all labelled
    pixels, which keeps the loss at the same scale, so the learning rate does not need to change.

    Args:
      pixels: The pixel count for each class.

    Returns:
      The weight for each class, or () if there are no labelled pixels.
    """
    if not pixels.sum():
        return ()
    share = pixels / pixels.sum()
    weights = 1 / np.log(1.02 + share)
    return tuple(round(float(w), 3) for w in weights / (share * weights).sum())


def find_rare_classes(pixels: np.ndarray) -> list[int]:
    """Return the train ids of the classes that have some pixels, but less than a tenth of an even share.

    Args:
      pixels: The pixel count for each class.
    """
    return np.flatnonzero((pixels > 0) & (10 * len(pixels) * pixels < pixels.sum())).tolist()


def as_json(report: Report, labels: LabelSet) -> dict[str, Any]:
    """Return the report as JSON-compatible values, for check.json and the report page."""
    splits = {}
    for split, tally in report.tallies.items():
        splits[split] = {
            "source": tally.source,
            "samples": tally.samples,
            "sizes": {f"{width}x{height}": count for (width, height), count in tally.sizes.most_common()},
            "image_modes": dict(tally.image_modes),
            "label_modes": dict(tally.label_modes),
            "class_pixels": dict(zip(labels.names, tally.pixels.tolist(), strict=True)),
            "class_images": dict(zip(labels.names, tally.images.tolist(), strict=True)),
            "ignored_pixels": tally.ignored,
            "unknown_pixels": tally.unknown,
            "mean_and_std": tally.mean_and_std(),
        }
    # Only training pixels tell how to train. The training split is the first one, unless it cannot be used.
    training = [(split, tally) for split, tally in list(report.tallies.items())[:1] if split not in ("val", "test")]
    weights = {split: compute_class_weights(tally.pixels) for split, tally in training if tally.pixels.any()}
    return {
        "labels": labels.name,
        "training_would_fail": report.fails,
        "splits": splits,
        "class_weights": weights,
        "rare_classes": {split: [labels.names[k] for k in find_rare_classes(tally.pixels)] for split, tally in training},
        "problems": [dataclasses.asdict(problem) for problem in report.problems],
    }
