"""Render data check results as a single HTML page."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from deeplab_jax.evaluation.pictures import overlay, to_rgb
from deeplab_jax.labels import LabelSet
from deeplab_jax.pages import html_page

MAX_LISTED = 20  # maximum number of problems of each kind to list on the page

# A caption, the image, and the image overlaid with its label colours, which a sample without a label does not have.
Figure = tuple[str, UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"] | None]


def draw_examples(
    examples: Iterable[tuple[str, UInt8[np.ndarray, "h w c"], UInt8[np.ndarray, "h w"] | None]], labels: LabelSet
) -> Iterator[Figure]:
    """Yield the figure of each sample.

    Args:
      examples: One (caption, image, train ids or None) tuple per sample.
      labels: The label set for the train ids.
    """
    for caption, image, label in examples:
        small = html_page.downscale(to_rgb(image))
        colored = None
        if label is not None:
            colored = overlay(small, html_page.downscale(label, labels=True), labels, opacity=0.6)
        yield caption, small, colored


def render_page(title: str, report: Mapping[str, Any], labels: LabelSet, figures: Iterable[Figure]) -> str:
    """Return the HTML page for a data check.

    Args:
      title: The page title, which names the data set.
      report: The contents of check.json.
      labels: The label set used to check the masks.
      figures: The samples to show, from `draw_examples`.
    """
    problems, splits = report["problems"], report["splits"]
    # `class_weights` is either empty or contains the weights for exactly one split.
    weighted, weights = next(iter(report["class_weights"].items()), ("", ()))
    return html_page.render(
        "check.html",
        title=title,
        labels=labels,
        fails=sum(problem["fails"] for problem in problems),
        problems=_group_by_sort(problems),
        most=MAX_LISTED,
        splits=splits,
        split_rows=[_describe_split(name, split) for name, split in splits.items()],
        class_rows=[class_cells(splits, name) for name in labels.names],
        ignored=[ignored_share(split) for split in splits.values()],
        weighted=weighted,
        weights=weights,
        seen=[k for k, name in enumerate(labels.names) if any(split["class_pixels"][name] for split in splits.values())],
        figures=figures,
    )


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


def _describe_split(name: str, split: Mapping[str, Any]) -> list[str]:
    """Return the cells of a split in the table of splits."""
    sizes = split["sizes"]
    common = ", ".join(size + f" ({n})" * (len(sizes) > 1) for size, n in list(sizes.items())[:3])
    common += f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""
    modes = [", ".join(split[key]) for key in ("image_modes", "label_modes")]
    return [name, f"{split['samples']:,}", f"{sum(sizes.values()):,}", common, *modes, split["source"]]


def _group_by_sort(problems: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for problem in problems:
        groups.setdefault(problem["sort"], []).append(problem)
    return groups
