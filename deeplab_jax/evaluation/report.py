"""Scores as people read them."""

import math
from typing import Any

import numpy as np
from jaxtyping import Int
from rich.table import Table

from deeplab_jax import metrics
from deeplab_jax.labels import LabelSet


def summary(confusion: Int[np.ndarray, "k k"], label_set: LabelSet) -> dict[str, Any]:
    """{"miou", "pixel_accuracy", "iou": {class: value}} as JSON values; null where nothing was counted."""

    def number(x: float) -> float | None:
        return None if math.isnan(x) else float(x)

    iou = dict(zip(label_set.names, map(number, metrics.class_iou(confusion)), strict=True))
    return {
        "miou": number(metrics.mean_iou(confusion)),
        "pixel_accuracy": number(metrics.pixel_accuracy(confusion)),
        "iou": iou,
    }


def table(confusion: Int[np.ndarray, "k k"], label_set: LabelSet) -> Table:
    """Per-class IoU and share of the labelled pixels, then the means, in per cent."""
    scores, total = summary(confusion, label_set), max(int(confusion.sum()), 1)
    rows = Table("class", "IoU %", "pixels %", title="Evaluation")
    for column in rows.columns[1:]:
        column.justify = "right"
    for i, (name, iou) in enumerate(scores["iou"].items()):
        rows.add_row(name, _percent(iou), _percent(confusion[i].sum() / total))
    rows.add_section()
    rows.add_row("mIoU", _percent(scores["miou"]), "")
    rows.add_row("pixel accuracy", _percent(scores["pixel_accuracy"]), "")
    return rows


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
