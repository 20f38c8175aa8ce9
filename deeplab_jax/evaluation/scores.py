"""Scores as people and scores.json read them."""

import math
from typing import Any

from rich.table import Table

from deeplab_jax.evaluation.cityscapes import Scores
from deeplab_jax.evaluation.metrics import OVERALL_METRICS, Confusion, class_iou, title_of
from deeplab_jax.labels import LabelSet


def summary(confusion: Confusion, label_set: LabelSet, official: Scores | None = None) -> dict[str, Any]:
    """Return OVERALL_METRICS by name, and "iou" by class, as JSON values: 0 to 1, null where nothing was counted.

    Args:
      confusion: pixels by (label, prediction).
      label_set: the classes.
      official: what `cityscapes.scores` returns, put under "cityscapes".
    """
    scores: dict[str, Any] = {name: metric(confusion) for name, metric in OVERALL_METRICS.items()}
    scores["iou"] = dict(zip(label_set.names, class_iou(confusion).tolist(), strict=True))
    return _nan_to_null(scores | ({"cityscapes": official} if official else {}))


def table(confusion: Confusion, label_set: LabelSet, official: Scores | None = None) -> Table:
    """Return IoU and share of labelled pixels by class, OVERALL_METRICS, and Cityscapes' scores if given."""
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
    for name in OVERALL_METRICS:
        add(title_of(name), scores[name], extra.get("averageScoreInstClasses") if name == "miou" else None)
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
