"""A data set's check as one HTML page."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from deeplab_jax.data.inspection import Problem, Report, class_weights, share
from deeplab_jax.data.lists import Samples, value_table
from deeplab_jax.data.sources import read_sample
from deeplab_jax.errors import DataError
from deeplab_jax.evaluation.pictures import overlay
from deeplab_jax.labels import IGNORE, LabelSet
from deeplab_jax.pages import html_page
from deeplab_jax.pages.html_page import chip, table, text

SIDE = 480  # longest side of a picture on the page
LISTED = 20  # problems of a sort that the page lists


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """A sample to show: the image, and the image under its label's colours where it has a label."""

    caption: str
    image: UInt8[np.ndarray, "h w 3"]
    colored: UInt8[np.ndarray, "h w 3"] | None

    def html(self) -> tuple[str, list[str]]:
        """The caption and the pictures."""
        shown = [html_page.picture("image", self.image)]
        if self.colored is not None:
            shown.append(html_page.picture("labels over the image", self.colored))
        return text(self.caption), shown


def pictures(sets: Mapping[str, Samples], labels: LabelSet, count: int = 8) -> list[Picture]:
    """Up to `count` samples of each split, spread evenly over its list; those that cannot be read are left out."""
    shown = []
    for split, samples in sets.items():
        train_ids = value_table(samples.kind, labels)
        for i in np.unique(np.linspace(0, len(samples) - 1, count).round().astype(int)).tolist():
            try:
                image, values = read_sample(samples, i)
            except DataError:
                continue
            shown.append(_picture(f"{split}: {samples.images[i]}", image, values, train_ids, labels))
    return shown


def _picture(caption: str, image: np.ndarray, values: np.ndarray | None, train_ids: np.ndarray, labels: LabelSet) -> Picture:
    small = html_page.reduced(image, SIDE)
    if values is None:
        return Picture(caption, small, None)
    label = np.where(train_ids[values] < 0, IGNORE, train_ids[values]).astype(np.uint8)
    return Picture(caption, small, overlay(small, html_page.reduced(label, SIDE, labels=True), labels, opacity=0.6))


def page(title: str, report: Report, labels: LabelSet, shown: Sequence[Picture]) -> str:
    """The page as text.

    Args:
      title: what was checked.
      report: what was found.
      labels: what the values should mean.
      shown: samples to look at.
    """
    fails = sum(problem.fails for problem in report.problems)
    verdict = f'<p class="bad">Training would fail: {fails} problems to mend.</p>'
    if not report.fails:
        verdict = f'<p class="good">Training can read every sample. Notes: {len(report.problems)}.</p>'
    parts = [
        f"<h1>{text(title)}</h1>{verdict}",
        "<h2>Splits</h2>" + _splits(report),
        "<h2>Problems</h2>" + (_problems(report.problems) or '<p class="soft">None.</p>'),
        f"<h2>Classes of {text(labels.name)}</h2>" + _classes(report, labels),
        "<h2>Samples</h2>" + _legend(labels, report) + html_page.samples(each.html() for each in shown),
    ]
    return html_page.document(title, "".join(parts))


def _splits(report: Report) -> str:
    rows = []
    for split, tally in report.tallies.items():
        sizes = tally.sizes.most_common(3)
        common = ", ".join(f"{w}x{h}" + f" ({n})" * (len(tally.sizes) > 1) for (w, h), n in sizes)
        common += f" and {len(tally.sizes) - 3} more" if len(tally.sizes) > 3 else ""
        modes = [", ".join(counter) for counter in (tally.image_modes, tally.label_modes)]
        cells = (split, f"{tally.samples:,}", f"{sum(tally.sizes.values()):,}", common, *modes, tally.source)
        rows.append([text(cell) for cell in cells])
    return table(("split", "samples", "readable", "sizes", "images", "labels", "from"), rows)


def _problems(problems: Sequence[Problem]) -> str:
    parts = []
    for sort in dict.fromkeys(problem.sort for problem in problems):
        same = [problem for problem in problems if problem.sort == sort]
        bad = ' class="bad"' if same[0].fails else ""
        items = "".join(f"<li>{text(problem.text)}</li>" for problem in same[:LISTED])
        rest = f'<p class="soft">and {len(same) - LISTED} more, in check.json</p>' if len(same) > LISTED else ""
        parts.append(f"<details open><summary{bad}>{text(sort)}: {len(same)}</summary><ul>{items}</ul>{rest}</details>")
    return "".join(parts)


def _classes(report: Report, labels: LabelSet) -> str:
    if not report.tallies:
        return '<p class="soft">No split could be read.</p>'
    first = next(iter(report.tallies))
    weights = class_weights(report.tallies[first].pixels)
    head = ["class", "id"] + [f"{word} of {split}" for split in report.tallies for word in ("pixels", "images")]
    head += ["weight"] if weights else []
    rows = []
    for k, name in enumerate(labels.names):
        cells = [f"{chip(labels, k)}{text(name)}", text(labels.class_ids[k])]
        for tally in report.tallies.values():
            cells += [share(tally.pixels[k], tally.pixels.sum()), f"{tally.images[k]:,}"]
        rows.append(cells + [f"{weight:.3f}" for weight in weights[k : k + 1]])
    ignored = ["ignored, of all pixels", ""]
    for tally in report.tallies.values():
        ignored += [share(tally.ignored, tally.pixels.sum() + tally.ignored + tally.unknown), ""]
    classes = table(head, [*rows, ignored + [""] * bool(weights)])
    if not weights:
        return classes
    command = "--config.loss.class_weights='(" + ",".join(f"{weight:g}" for weight in weights) + ")'"
    why = f"Weights after ENet (arXiv 1606.02147), 1 / ln(1.02 + share of {first}), scaled to a mean of 1 over its pixels:"
    note = f'<p class="soft">{text(why)}</p>'
    return classes + note + f"<pre>{text(command)}</pre>"


def _legend(labels: LabelSet, report: Report) -> str:
    seen = sum((tally.pixels for tally in report.tallies.values()), np.zeros(labels.num_classes, np.int64))
    return html_page.legend(labels, np.flatnonzero(seen).tolist(), "ignored, or in no entry of the label set")
