"""Render data check results as a single HTML page."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from deeplab_jax.evaluation.pictures import overlay, to_rgb
from deeplab_jax.labels import LabelSet
from deeplab_jax.pages import html_page
from deeplab_jax.pages.html_page import chip, escape_text, table

MAX_SIDE = 480  # maximum side length of the images on the page, in pixels
MAX_LISTED = 20  # maximum number of problems of each kind to list on the page
Figure = tuple[str, list[str]]  # an HTML caption and the HTML of its images


def draw_examples(
    examples: Iterable[tuple[str, UInt8[np.ndarray, "h w c"], UInt8[np.ndarray, "h w"] | None]], labels: LabelSet
) -> Iterator[Figure]:
    """Yield one figure per sample. It shows the image and, for labelled samples, a second copy overlaid with the label colours.

    Args:
      examples: One (caption, image, train ids or None) tuple per sample.
      labels: The label set for the train ids.
    """
    for caption, image, label in examples:
        small = html_page.downscale(to_rgb(image), MAX_SIDE)
        pictures = [html_page.picture("image", small)]
        if label is not None:
            colored = overlay(small, html_page.downscale(label, MAX_SIDE, labels=True), labels, opacity=0.6)
            pictures.append(html_page.picture("labels over the image", colored))
        yield escape_text(caption), pictures


def render_page(title: str, report: Mapping[str, Any], labels: LabelSet, figures: Iterable[Figure]) -> str:
    """Return the HTML page for a data check.

    Args:
      title: The page title, which names the data set.
      report: The contents of check.json.
      labels: The label set used to check the masks.
      figures: The sample figures to show.
    """
    problems, splits = report["problems"], report["splits"]
    fails = sum(problem["fails"] for problem in problems)
    verdict = f'<p class="bad">Training would fail or learn wrong classes. Problems to fix: {fails}.</p>'
    if not fails:
        verdict = f'<p class="good">Training can read every sample. Notes: {len(problems)}.</p>'
    parts = [
        f"<h1>{escape_text(title)}</h1>{verdict}",
        "<h2>Splits</h2>" + _splits_table(splits),
        "<h2>Problems</h2>" + (_problem_lists(problems) or '<p class="soft">None.</p>'),
        f"<h2>{escape_text(labels.name)} classes</h2>" + _classes_table(splits, report["class_weights"], labels),
        "<h2>Samples</h2>" + _legend(splits, labels) + html_page.sample_grid(figures),
    ]
    return html_page.render_document(title, "".join(parts))


def format_share(part: float, whole: float) -> str:
    """Format `part / whole` as a percentage. Values below 0.1 % get three decimals, so rare classes do not show as zero."""
    percent = 100 * part / whole if whole else 0
    return f"{percent:.3f} %" if 0 < percent < 0.1 else f"{percent:.1f} %"


def class_cells(splits: Mapping[str, Any], name: str) -> list[str]:
    """Return the table cells for class `name`, two per split.

    The first cell is the class's share of the labelled pixels. The second is the number of images containing the class.
    """
    shares = (format_share(split["class_pixels"][name], sum(split["class_pixels"].values())) for split in splits.values())
    images = (f"{split['class_images'][name]:,}" for split in splits.values())
    return [cell for pair in zip(shares, images, strict=True) for cell in pair]


def ignored_share(split: Mapping[str, Any]) -> str:
    """Return the percentage of a split's pixels that are ignored."""
    ignored = split["ignored_pixels"]
    return format_share(ignored, sum(split["class_pixels"].values()) + ignored + split["unknown_pixels"])


def _splits_table(splits: Mapping[str, Any]) -> str:
    rows = []
    for name, split in splits.items():
        sizes = split["sizes"]
        common = ", ".join(size + f" ({n})" * (len(sizes) > 1) for size, n in list(sizes.items())[:3])
        common += f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""
        modes = [", ".join(split[key]) for key in ("image_modes", "label_modes")]
        cells = (name, f"{split['samples']:,}", f"{sum(sizes.values()):,}", common, *modes, split["source"])
        rows.append([escape_text(cell) for cell in cells])
    return table(("split", "samples", "readable", "image sizes", "image modes", "label modes", "source"), rows)


def _problem_lists(problems: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for sort in dict.fromkeys(problem["sort"] for problem in problems):
        same = [problem for problem in problems if problem["sort"] == sort]
        bad = ' class="bad"' if same[0]["fails"] else ""
        items = "".join(f"<li>{escape_text(problem['text'])}</li>" for problem in same[:MAX_LISTED])
        rest = f'<p class="soft">and {len(same) - MAX_LISTED} more, in check.json</p>' if len(same) > MAX_LISTED else ""
        parts.append(f"<details open><summary{bad}>{escape_text(sort)}: {len(same)}</summary><ul>{items}</ul>{rest}</details>")
    return "".join(parts)


def _classes_table(splits: Mapping[str, Any], class_weights: Mapping[str, Sequence[float]], labels: LabelSet) -> str:
    if not splits:
        return '<p class="soft">No split could be read.</p>'
    # `class_weights` is either empty or contains the weights for exactly one split.
    first, weights = next(iter(class_weights.items()), ("", ()))
    head = ["class", "id"] + [f"{word} in {split}" for split in splits for word in ("pixels", "images")]
    head += ["weight"] if weights else []
    rows = []
    for k, name in enumerate(labels.names):
        cells = [f"{chip(labels, k)}{escape_text(name)}", escape_text(", ".join(map(str, labels.ids_by_class[k])))]
        rows.append(cells + class_cells(splits, name) + [f"{weight:.3f}" for weight in weights[k : k + 1]])
    ignored = ["ignored (share of all pixels)", ""]
    for split in splits.values():
        ignored += [ignored_share(split), ""]
    classes = table(head, [*rows, ignored + [""] * bool(weights)])
    if not weights:
        return classes
    command = "--config.loss.class_weights='(" + ",".join(f"{weight:g}" for weight in weights) + ")'"
    why = (
        "Class weights as in ENet (arXiv 1606.02147): 1 / ln(1.02 + the class's share of the labelled pixels), "
        f"scaled to a mean of 1 over these pixels. They are computed from {first}."
    )
    note = f'<p class="soft">{escape_text(why)}</p>'
    return classes + note + f"<pre>{escape_text(command)}</pre>"


def _legend(splits: Mapping[str, Any], labels: LabelSet) -> str:
    seen = [k for k, name in enumerate(labels.names) if any(split["class_pixels"][name] for split in splits.values())]
    return html_page.legend(labels, seen, "ignored or not in the label set")
