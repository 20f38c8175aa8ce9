"""A data set's check as one HTML page."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from deeplab_jax.evaluation.pictures import overlay
from deeplab_jax.labels import LabelSet
from deeplab_jax.pages import html_page
from deeplab_jax.pages.html_page import chip, table, text

SIDE = 480  # longest side of a picture on the page
LISTED = 20  # problems of a sort that the page lists
Figure = tuple[str, list[str]]  # caption and pictures, as HTML


def draw_examples(
    examples: Iterable[tuple[str, UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"] | None]], labels: LabelSet
) -> Iterator[Figure]:
    """Draw each (caption, image, train ids): the image, and the image under its label's colours where it has a label."""
    for caption, image, label in examples:
        small = html_page.reduced(image, SIDE)
        pictures = [html_page.picture("image", small)]
        if label is not None:
            colored = overlay(small, html_page.reduced(label, SIDE, labels=True), labels, opacity=0.6)
            pictures.append(html_page.picture("labels over the image", colored))
        yield text(caption), pictures


def page(title: str, report: Mapping[str, Any], labels: LabelSet, figures: Iterable[Figure]) -> str:
    """Return the page as text.

    Args:
      title: what was checked.
      report: what check.json holds.
      labels: what the values should mean.
      figures: samples to show.
    """
    problems, splits = report["problems"], report["splits"]
    fails = sum(problem["fails"] for problem in problems)
    verdict = f'<p class="bad">Training would fail: {fails} problems to fix.</p>'
    if not fails:
        verdict = f'<p class="good">Training can read every sample. Notes: {len(problems)}.</p>'
    parts = [
        f"<h1>{text(title)}</h1>{verdict}",
        "<h2>Splits</h2>" + _splits(splits),
        "<h2>Problems</h2>" + (_problems(problems) or '<p class="soft">None.</p>'),
        f"<h2>Classes of {text(labels.name)}</h2>" + _classes(splits, report["class_weights"], labels),
        "<h2>Samples</h2>" + _legend(splits, labels) + html_page.samples(figures),
    ]
    return html_page.document(title, "".join(parts))


def share(part: float, whole: float) -> str:
    """Return a percentage, with as many digits as rare classes need."""
    percent = 100 * part / whole if whole else 0
    return f"{percent:.3f} %" if 0 < percent < 0.1 else f"{percent:.1f} %"


def class_cells(splits: Mapping[str, Any], name: str) -> list[str]:
    """Return the share of the labelled pixels and the number of images with the class, of each split in turn."""
    shares = (share(split["class_pixels"][name], sum(split["class_pixels"].values())) for split in splits.values())
    images = (f"{split['class_images'][name]:,}" for split in splits.values())
    return [cell for pair in zip(shares, images, strict=True) for cell in pair]


def ignored_share(split: Mapping[str, Any]) -> str:
    """Return the percentage of a split's pixels that are ignored."""
    ignored = split["ignored_pixels"]
    return share(ignored, sum(split["class_pixels"].values()) + ignored + split["unknown_pixels"])


def _splits(splits: Mapping[str, Any]) -> str:
    rows = []
    for name, split in splits.items():
        sizes = split["sizes"]
        common = ", ".join(size + f" ({n})" * (len(sizes) > 1) for size, n in list(sizes.items())[:3])
        common += f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""
        modes = [", ".join(split[key]) for key in ("image_modes", "label_modes")]
        cells = (name, f"{split['samples']:,}", f"{sum(sizes.values()):,}", common, *modes, split["source"])
        rows.append([text(cell) for cell in cells])
    return table(("split", "samples", "readable", "sizes", "images", "labels", "from"), rows)


def _problems(problems: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for sort in dict.fromkeys(problem["sort"] for problem in problems):
        same = [problem for problem in problems if problem["sort"] == sort]
        bad = ' class="bad"' if same[0]["fails"] else ""
        items = "".join(f"<li>{text(problem['text'])}</li>" for problem in same[:LISTED])
        rest = f'<p class="soft">and {len(same) - LISTED} more, in check.json</p>' if len(same) > LISTED else ""
        parts.append(f"<details open><summary{bad}>{text(sort)}: {len(same)}</summary><ul>{items}</ul>{rest}</details>")
    return "".join(parts)


def _classes(splits: Mapping[str, Any], class_weights: Mapping[str, Sequence[float]], labels: LabelSet) -> str:
    if not splits:
        return '<p class="soft">No split could be read.</p>'
    # Of one split, or of none.
    first, weights = next(iter(class_weights.items()), ("", ()))
    head = ["class", "id"] + [f"{word} of {split}" for split in splits for word in ("pixels", "images")]
    head += ["weight"] if weights else []
    rows = []
    for k, name in enumerate(labels.names):
        cells = [f"{chip(labels, k)}{text(name)}", text(labels.class_ids[k])]
        rows.append(cells + class_cells(splits, name) + [f"{weight:.3f}" for weight in weights[k : k + 1]])
    ignored = ["ignored, of all pixels", ""]
    for split in splits.values():
        ignored += [ignored_share(split), ""]
    classes = table(head, [*rows, ignored + [""] * bool(weights)])
    if not weights:
        return classes
    command = "--config.loss.class_weights='(" + ",".join(f"{weight:g}" for weight in weights) + ")'"
    why = f"Weights after ENet (arXiv 1606.02147), 1 / ln(1.02 + share of {first}), scaled to a mean of 1 over its pixels:"
    note = f'<p class="soft">{text(why)}</p>'
    return classes + note + f"<pre>{text(command)}</pre>"


def _legend(splits: Mapping[str, Any], labels: LabelSet) -> str:
    seen = [k for k, name in enumerate(labels.names) if any(split["class_pixels"][name] for split in splits.values())]
    return html_page.legend(labels, seen, "ignored, or in no entry of the label set")
