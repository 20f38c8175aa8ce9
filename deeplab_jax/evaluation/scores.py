"""Format scores as tables and as the contents of scores.json."""

import math
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from deeplab_jax.evaluation.cityscapes import Scores
from deeplab_jax.evaluation.metrics import CLASS_METRICS, OVERALL_METRICS, Metric, Totals
from deeplab_jax.labels import LabelSet


def summary(totals: Totals, label_set: LabelSet, official: Scores | None = None) -> dict[str, Any]:
    """Return the contents of scores.json.

    It has the OVERALL_METRICS, and the CLASS_METRICS as dicts keyed by class name. Values are None (null in JSON) where nothing
    was counted, and for a loss that is not finite.

    Args:
      totals: The sums over the split.
      label_set: The label set, for the class names.
      official: The official scores from `cityscapes.scores`, to store under "cityscapes".
    """
    scores: dict[str, Any] = {name: metric.compute(totals) for name, metric in OVERALL_METRICS.items()}
    for name, metric in CLASS_METRICS.items():
        scores[name] = dict(zip(label_set.names, metric.compute(totals).tolist(), strict=True))
    return _keep_finite(scores | ({"cityscapes": official} if official else {}))


def warn_of_infinite_logits(scores: Mapping[str, Any]) -> str:
    """Return a warning if the `summary` of labelled pixels has no loss, because logits are not finite, or "" otherwise."""
    if scores["loss"] is not None or scores["pixel_accuracy"] is None:
        return ""
    return "WARNING: Some logits are infinite or not a number, so the loss is not finite and the scores mean nothing."


def tables(totals: Totals, label_set: LabelSet, official: Scores | None = None) -> list[Table]:
    """Return a table of the CLASS_METRICS and each class's share of the labelled pixels, and a table of the OVERALL_METRICS.

    If `official` is given, the tables also have the Cityscapes instance scores, and a third one has the category scores.
    """
    scores = summary(totals, label_set, official)
    extra = scores.get("cityscapes", {})
    instance_column = ["iIoU"] if "classInstScores" in extra else []
    pixels = totals.confusion.sum(1) / max(int(totals.confusion.sum()), 1)

    def instance_cell(scores: dict[str, Any], name: str) -> list[str]:
        return [percent(scores.get(name))] if instance_column else []

    titles = [metric.title for metric in CLASS_METRICS.values()]
    classes = make_table("Scores by class, in %", "class", *titles, *instance_column, "pixels")
    for name, share in zip(label_set.names, pixels, strict=True):
        values = [percent(scores[metric][name]) for metric in CLASS_METRICS]
        classes.add_row(escape(name), *values, *instance_cell(extra.get("classInstScores", {}), name), percent(share))
    overall = make_table("Overall scores", "metric", "value")
    for name, metric in OVERALL_METRICS.items():
        overall.add_row(metric.title, format_score(metric, scores[name]))
    if not extra:
        return [classes, overall]
    if instance_column:
        overall.add_row("mean iIoU", f"{percent(extra['averageScoreInstClasses'])} %")
    categories = make_table("Scores by category, in %", "category", "IoU", *instance_column)
    for name, iou in extra["categoryScores"].items():
        categories.add_row(escape(name), percent(iou), *instance_cell(extra.get("categoryInstScores", {}), name))
    categories.add_section()
    mean_of_instances = [percent(extra["averageScoreInstCategories"])] if instance_column else []
    categories.add_row("mean", percent(extra["averageScoreCategories"]), *mean_of_instances)
    return [classes, overall, categories]


def format_score(metric: Metric[Any], value: float | None) -> str:
    """Return a metric's value as text: a share in percent with two decimals, others with four decimals, and no value as "-"."""
    if not metric.is_share:
        return "-" if value is None or math.isnan(value) else f"{value:.4f}"
    return f"{percent(value)} %"


def make_table(title: str, *columns: str) -> Table:
    """Return an empty table. The first column is for names and the others are for numbers."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):  # with iIoU, the table by class fits into 80 columns
        table.add_column(column, justify="right" if i else "left", no_wrap=not i)
    return table


def percent(share: float | None) -> str:
    """Return a share in percent with two decimals, without the sign, or "-" for None."""
    return "-" if share is None else f"{100 * share:.2f}"


def _keep_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _keep_finite(x) for name, x in value.items()}
    return float(value) if math.isfinite(value) else None
