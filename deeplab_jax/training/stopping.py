"""Decide when a run evaluates, which evaluation is its best, and when it stops early."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from deeplab_jax.config import Config, TrainConfig, count_by_split
from deeplab_jax.errors import ConfigError
from deeplab_jax.evaluation.metrics import OVERALL_METRICS
from deeplab_jax.labels import LabelSet


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
