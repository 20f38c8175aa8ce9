"""Scores as people read them."""

import math
from typing import Any

import numpy as np
from jaxtyping import Int
from rich.table import Table

from deeplab_jax.evaluation import metrics
from deeplab_jax.evaluation.cityscapes import Scores
from deeplab_jax.labels import LabelSet


def summary(confusion: Int[np.ndarray, "k k"], label_set: LabelSet, official: Scores | None = None) -> dict[str, Any]:
    """{"miou", "pixel_accuracy", "iou": {class: value}} as JSON values; null where nothing was counted.

    Args:
      confusion: pixels by (label, prediction).
      label_set: the classes.
      official: what `cityscapes.scores` returns, put under "cityscapes".
    """
    scores = {
        "miou": metrics.mean_iou(confusion),
        "pixel_accuracy": metrics.pixel_accuracy(confusion),
        "iou": dict(zip(label_set.names, metrics.class_iou(confusion).tolist(), strict=True)),
    }
    return _nan_to_null(scores | ({"cityscapes": official} if official else {}))


def table(confusion: Int[np.ndarray, "k k"], label_set: LabelSet, official: Scores | None = None) -> Table:
    """Per-class IoU and share of the labelled pixels, then the means, in per cent; Cityscapes' iIoU and categories if given."""
    scores, total = summary(confusion, label_set, official), max(int(confusion.sum()), 1)
    extra = scores.get("cityscapes", {})
    has_instances = "classInstScores" in extra
    rows = Table("class", "IoU %", *(["iIoU %"] if has_instances else []), "pixels %", title="Evaluation")
    for column in rows.columns[1:]:
        column.justify = "right"

    def add(name: str, iou: float | None, instance_iou: float | None, pixels: str = "") -> None:
        rows.add_row(name, _percent(iou), *([_percent(instance_iou)] if has_instances else []), pixels)

    for i, (name, iou) in enumerate(scores["iou"].items()):
        add(name, iou, extra.get("classInstScores", {}).get(name), _percent(confusion[i].sum() / total))
    rows.add_section()
    add("mIoU", scores["miou"], extra.get("averageScoreInstClasses"))
    add("pixel accuracy", scores["pixel_accuracy"], None)
    if extra:
        rows.add_section()
        for name, iou in extra["categoryScores"].items():
            add(name, iou, extra.get("categoryInstScores", {}).get(name))
        rows.add_section()
        add("category mIoU", extra["averageScoreCategories"], extra.get("averageScoreInstCategories"))
    return rows


def _nan_to_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _nan_to_null(x) for name, x in value.items()}
    return None if math.isnan(value) else float(value)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
