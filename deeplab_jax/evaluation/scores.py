"""Format scores as a table and as the contents of scores.json."""

import math
from typing import Any

from rich.table import Table

from deeplab_jax.evaluation.cityscapes import Scores
from deeplab_jax.evaluation.metrics import OVERALL_METRICS, Totals, class_iou, format_metric_name
from deeplab_jax.labels import LabelSet


def summary(totals: Totals, label_set: LabelSet, official: Scores | None = None) -> dict[str, Any]:
    """Return the contents of scores.json.

    It has the OVERALL_METRICS keyed by name, the per-class IoU under "iou", and the mean cross-entropy over the labelled
    pixels, in nats, under "loss". The metrics are numbers from 0 to 1. All values are None (null in JSON) if no pixels were
    counted.

    Args:
      totals: The confusion counts and the loss.
      label_set: The label set, for the class names.
      official: The official scores from `cityscapes.scores`, to store under "cityscapes".
    """
    confusion, loss = totals
    scores: dict[str, Any] = {name: metric(confusion) for name, metric in OVERALL_METRICS.items()}
    scores["loss"] = loss / count if (count := int(confusion.sum())) else math.nan
    scores["iou"] = dict(zip(label_set.names, class_iou(confusion).tolist(), strict=True))
    return _nan_to_null(scores | ({"cityscapes": official} if official else {}))


def table(totals: Totals, label_set: LabelSet, official: Scores | None = None) -> Table:
    """Return a table of the scores in percent.

    The table lists each class's IoU and share of the labelled pixels, followed by OVERALL_METRICS. If `official` is given, the
    Cityscapes instance and category scores are added.
    """
    confusion, scores = totals.confusion, summary(totals, label_set, official)
    total = max(int(confusion.sum()), 1)
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
        add(format_metric_name(name), scores[name], extra.get("averageScoreInstClasses") if name == "miou" else None)
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
