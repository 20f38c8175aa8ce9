"""Decide when a run evaluates, which evaluation is its best, and when it stops early."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from deeplab_jax.config import Config, TrainConfig, count_by_split
from deeplab_jax.errors import ConfigError, TrainingError
from deeplab_jax.evaluation.metrics import OVERALL_METRICS
from deeplab_jax.labels import LabelSet

_USELESS_STEPS = 100  # a run stops if it learns nothing in so many steps in a row


def is_due(step: int, every: int, steps: int) -> bool:
    """Return whether something that happens `every` so many steps, and at the end of the run, happens at `step`.

    If `every` is 0, it only happens at the end.
    """
    return step == steps or (every > 0 and step % every == 0)


def evaluation_interval(config: Config, images: int) -> int:
    """Return the number of steps between evaluations, or 0 if the run evaluates only at its end.

    Args:
      config: The config.
      images: The number of training images in an epoch.
    """
    epochs = config.train.eval_every_epochs
    return max(1, round(epochs * images / count_by_split(config.data)[0])) if epochs else config.train.eval_every


def is_stalled(ranks: Sequence[float | None], patience: int) -> bool:
    """Return whether none of the last `patience` evaluations is better than all earlier ones.

    Args:
      ranks: The result of `compute_rank` for each evaluation of the run.
      patience: The number of evaluations to wait for a better one. 0 waits forever.
    """
    values = [-math.inf if value is None else value for value in ranks]
    # An evaluation that equals the best one is not better, so the earliest of the best ones counts.
    is_late = 0 < patience < len(values) and values.index(max(values)) < len(values) - patience
    return is_late and max(values) > -math.inf  # without any score, nothing can be said


@dataclasses.dataclass(slots=True)
class LearningCheck:
    """Stops a run that learns nothing, because no pixel is labelled or because no update is finite any more.

    Attributes:
      first: The first step of this start.
      steps: The number of steps of the run.
      has_labels: Whether a batch of this start had a labelled pixel.
      skipped: The number of updates since the last finite one with labels that were not finite.
    """

    first: int
    steps: int
    has_labels: bool = False
    skipped: int = 0

    def check(self, step: int, *, is_labelled: bool, is_finite: bool) -> None:
        """Check a completed step. Call this for every step of this start, in order.

        Args:
          step: The number of the step.
          is_labelled: Whether its batch has a labelled pixel.
          is_finite: Whether its loss and its gradient are finite.

        Raises:
          TrainingError: The run has learned nothing for 100 steps. For labels, only its first steps count, because a run that
            is resumed near its end may have a few batches without labels left, like one that is not interrupted.
        """
        self.has_labels = self.has_labels or is_labelled
        if not is_finite:
            self.skipped += 1
        elif is_labelled:  # the loss of a batch without labels is always finite
            self.skipped = 0
        done = step + 1 - self.first
        if not self.has_labels and done == min(_USELESS_STEPS, self.steps):
            raise TrainingError(
                f"None of the {done} batches since step {self.first} has a labelled pixel, so nothing can be learned. "
                "Check the masks and the label set with `deeplab-jax data check`."
            )
        if self.skipped == _USELESS_STEPS:
            raise TrainingError(
                f"The last {self.skipped} updates, up to step {step}, were not finite and were skipped, so "
                "nothing is learned any more. Move the checkpoints of these steps away, and resume with a lower optim.lr."
            )


def check_metric(config: TrainConfig, labels: LabelSet) -> None:
    """Raise a ConfigError if `train.best_metric` is not the name of a score in the run's log."""
    if config.best_metric not in [*OVERALL_METRICS, *(f"iou/{name}" for name in labels.names)]:
        raise ConfigError(
            f"`train.best_metric` (={config.best_metric!r}) is not a score. Use one of {', '.join(OVERALL_METRICS)}, or the "
            f"IoU of a class, such as iou/{labels.names[0]}."
        )


def compute_rank(scores: Mapping[str, Any], metric: str) -> float | None:
    """Return a number that is larger for better scores, or None if the metric has no value.

    Args:
      scores: The scores from `evaluation.scores.summary`, or their row in the run's log.
      metric: The metric, such as "miou", or the IoU of a class, such as "iou/road".
    """
    value = scores.get(metric, scores.get("iou", {}).get(metric.removeprefix("iou/")))
    if value is None or math.isnan(value):
        return None
    return -value if metric in OVERALL_METRICS and OVERALL_METRICS[metric].lower_is_better else value
