"""The page of a report: from what was gathered to HTML. Nothing is read or computed here."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from deeplab_jax.config import Config, to_dict
from deeplab_jax.evaluation import metrics
from deeplab_jax.labels import LabelSet
from deeplab_jax.pages import charts, html_page
from deeplab_jax.pages.examples import Example, confusions, row_shares
from deeplab_jax.pages.html_page import chip, table, text

MATRIX_CLASSES = 30  # a larger confusion matrix cannot be read
LISTED = 10  # confusions that are told in words

STYLE = (
    charts.STYLE
    + """
.facts { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 1rem 0 } .facts div { color: var(--soft) }
.facts b { display: block; font-size: 1.4rem; color: var(--text) }
.bar { display: grid; grid-template-columns: minmax(7rem, 11rem) 1fr 3.5rem; gap: .5rem; align-items: center }
.bar u { display: block; height: .8em; border: 1px solid var(--line) } .bar span:last-child { text-align: right }
.four { display: grid; grid-template-columns: repeat(4, 1fr); gap: 2px } .worst figure { margin: 0 0 1.2rem }
@media (max-width: 40rem) { .four { grid-template-columns: 1fr 1fr } }
.matrix td, .matrix th { padding: .2rem .35rem; font-size: .8rem } .matrix th { color: var(--soft); font-weight: normal }
.matrix tr:first-child th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; vertical-align: top }
"""
)


@dataclasses.dataclass(frozen=True, slots=True)
class Scored:
    """An evaluation of the run's checkpoint.

    Attributes:
      split: that was evaluated.
      images: how many it has.
      confusion: pixels by (label, prediction).
      worst: the images to show, worst first.
    """

    split: str
    images: int
    confusion: Int[np.ndarray, "k k"]
    worst: Sequence[Example]


def page(
    title: str,
    config: Config,
    train: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
    scored: Scored,
    versions: Mapping[str, str],
) -> str:
    """The report as HTML.

    Args:
      title: names the run and its step.
      config: of the run, with the protocol of this evaluation.
      train, evaluations: rows of the run's log, may be empty.
      scored: of this evaluation.
      versions: that the run was trained with.
    """
    parts = [
        f"<h1>{text(title)}</h1>" + _facts(config, train, scored),
        "<h2>Training</h2>"
        + (_curves(train, evaluations) or '<p class="soft">There is no log: the weights came from elsewhere.</p>'),
        "<h2>IoU by class</h2>" + _bars(scored.confusion, config.labels),
        "<h2>What is taken for what</h2>" + _confusion(scored.confusion, config.labels),
        "<h2>Worst images first</h2>" + _worst(scored, config.labels),
        "<h2>Config and versions</h2>" + _config(config, versions),
    ]
    return html_page.document(title, "".join(parts), STYLE)


def _facts(config: Config, train: Sequence[Mapping[str, Any]], scored: Scored) -> str:
    facts = {
        f"mIoU on {scored.split}, {scored.images:,} images": _percent(metrics.mean_iou(scored.confusion)),
        "pixel accuracy": _percent(metrics.pixel_accuracy(scored.confusion)),
        "backbone": f"{config.model.backbone}, output stride {config.eval.output_stride or config.model.output_stride}",
    }
    if train:
        facts["steps"] = f"{train[-1]['step']:,}"
    return '<div class="facts">' + "".join(f"<div><b>{text(v)}</b>{text(k)}</div>" for k, v in facts.items()) + "</div>"


def _curves(train: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> str:
    def points(rows: Sequence[Mapping[str, Any]], name: str, factor: float = 1) -> charts.Points:
        return [(row["step"], factor * row[name]) for row in rows if row.get(name) is not None]

    scores = {"mIoU": points(evaluations, "miou", 100), "pixel accuracy": points(evaluations, "pixel_accuracy", 100)}
    drawn = [
        charts.lines("loss in training", {"loss": points(train, "loss")}),
        charts.lines("evaluations, %", scores, dots=True),
        charts.lines("learning rate", {"learning rate": points(train, "lr")}),
        charts.lines("images a second", {"images a second": points(train, "images_per_second")}),
    ]
    return f'<div class="charts">{"".join(drawn)}</div>' if any(drawn) else ""


def _bars(confusion: Int[np.ndarray, "k k"], labels: LabelSet) -> str:
    rows = []
    for k, iou in enumerate(metrics.class_iou(confusion).tolist()):
        r, g, b = labels.colors[k]
        width = 0 if np.isnan(iou) else 100 * iou
        bar = f'<u style="width: {width:.2f}%; background: rgb({r}, {g}, {b})"></u>' if width else "<span></span>"
        rows.append(f'<div class="bar"><span>{text(labels.names[k])}</span>{bar}<span>{_percent(iou)}</span></div>')
    return "".join(rows) + '<p class="soft">In per cent; - is a class in neither labels nor predictions.</p>'


def _confusion(confusion: Int[np.ndarray, "k k"], labels: LabelSet) -> str:
    found = confusions(confusion, LISTED)
    items = [
        f"<li>{share:.1%} of {_named(labels, truth)} is taken for {_named(labels, prediction)}</li>"
        for truth, prediction, share in found
    ]
    listed = f"<ul>{''.join(items)}</ul>" if items else '<p class="soft">Nothing: every pixel is right.</p>'
    if labels.num_classes > MATRIX_CLASSES:
        return listed
    shares = row_shares(confusion)
    rows = ["".join(f"<th>{text(name)}</th>" for name in ("", *labels.names))]
    for k in range(labels.num_classes):
        cells = "".join(_cell(share, hit=j == k) for j, share in enumerate(shares[k].tolist()))
        rows.append(f"<th>{_named(labels, k)}</th>" + (cells if confusion[k].any() else "<td></td>" * len(shares)))
    note = "A row is a class of the labels: the share of its pixels, in per cent, by what they were predicted as."
    matrix = f'<table class="matrix">{"".join(f"<tr>{row}</tr>" for row in rows)}</table>'
    return f'{listed}<p class="soft">{note}</p><div class="wide">{matrix}</div>'


def _named(labels: LabelSet, k: int) -> str:
    return chip(labels, k) + text(labels.names[k])


def _cell(share: float, *, hit: bool) -> str:
    shown = f"{100 * share:.0f}" if share >= 0.005 else ""
    color = "good" if hit else "bad"
    return f'<td style="background: color-mix(in srgb, var(--{color}) {70 * share:.0f}%, transparent)">{shown}</td>'


def _worst(scored: Scored, labels: LabelSet) -> str:
    figures = []
    for each in scored.worst:
        pictures = (("image", each.image), ("truth", each.truth), ("prediction", each.prediction), ("errors", each.errors))
        shown = "".join(html_page.picture(f"{word} of {each.name}", pixels) for word, pixels in pictures)
        caption = (
            f"mIoU {_percent(each.miou)}, pixel accuracy {_percent(each.pixel_accuracy)}, worst at {labels.names[each.worst]}"
        )
        figures.append(
            f'<figure><figcaption>{text(each.name)}: {text(caption)}</figcaption><div class="four">{shown}</div></figure>'
        )
    note = "image | truth | prediction | errors (red; black is ignored). The mIoU of an image is over the classes of its label."
    seen = np.flatnonzero(scored.confusion.sum(0) + scored.confusion.sum(1)).tolist()
    return f'<p class="soft">{note}</p>{html_page.legend(labels, seen, "ignored")}<div class="worst">{"".join(figures)}</div>'


def _config(config: Config, versions: Mapping[str, str]) -> str:
    values = json.dumps(to_dict(config), indent=1)
    rows = [(text(name), text(version)) for name, version in versions.items() if version]
    found = table(("trained with", ""), rows) if rows else '<p class="soft">The run keeps no versions.</p>'
    return f"{found}<details><summary>config</summary><pre>{text(values)}</pre></details>"


def _percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{100 * share:.1f}"
