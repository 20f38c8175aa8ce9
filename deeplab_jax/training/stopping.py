"""Decide when a run evaluates, which evaluation is its best, and when it stops early."""

import math
from collections.abc import Mapping
from typing import Any

from deeplab_jax.config import Config, TrainConfig
from deeplab_jax.errors import ConfigError
from deeplab_jax.evaluation.metrics import CLASS_METRICS, OVERALL_METRICS
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
      images: The number of training images, which determines the length of an epoch.
    """
    epochs = config.train.eval_every_epochs
    return max(1, round(epochs * images / config.data.batch_size)) if epochs else config.train.eval_every


def is_stalled(step: int, best: int | None, every: int, patience: int) -> bool:
    """Return whether the last `patience` evaluations up to `step` did not beat the one of step `best`.

    It depends only on the steps, so a run that is resumed decides as if it had not been interrupted.

    Args:
      step: The step of the latest evaluation.
      best: The best step, or None if no evaluation has a score.
      every: The number of steps between evaluations.
      patience: The number of evaluations to wait for a better one. 0 waits forever.
    """
    return patience > 0 and every > 0 and step // every - (best or 0) // every >= patience


def check_metric(config: TrainConfig, labels: LabelSet) -> None:
    """Raise a ConfigError if `train.best_metric` is not the name of a score."""
    names = [*OVERALL_METRICS, *(f"{metric}/{name}" for metric in CLASS_METRICS for name in labels.names)]
    if config.best_metric not in names:
        raise ConfigError(
            f"`train.best_metric` (={config.best_metric!r}) is not a score. Use one of {', '.join(OVERALL_METRICS)}, or a "
            f"class's score, such as iou/{labels.names[0]}."
        )


def rank(scores: Mapping[str, Any], metric: str) -> float | None:
    """Return a number that is larger for better scores, or None if the metric has no value.

    Args:
      scores: The scores from `evaluation.scores.summary`.
      metric: The metric, such as "miou", or a class's metric, such as "iou/road".
    """
    kind, _, name = metric.partition("/")
    value = scores[kind][name] if name else scores[kind]
    if value is None or math.isnan(value):
        return None
    return -value if kind in OVERALL_METRICS and OVERALL_METRICS[kind].lower_is_better else value
