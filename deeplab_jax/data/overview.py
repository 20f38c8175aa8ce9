"""A data set's check as one HTML page: nothing is loaded from elsewhere, light and dark, readable on a phone."""

import base64
import dataclasses
import html
import io
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

from deeplab_jax.data.check import Problem, Report, class_weights, share
from deeplab_jax.data.lists import Samples, value_table
from deeplab_jax.data.sources import read_sample
from deeplab_jax.errors import DataError
from deeplab_jax.evaluation.pictures import overlay
from deeplab_jax.labels import IGNORE, LabelSet

SIDE = 480  # longest side of a picture on the page
LISTED = 20  # problems of a sort that the page lists

STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1a1a1a; --soft: #5c5c5c; --line: #d9d9d9;
  --bad: #b3261e; --good: #1b6e3c }
@media (prefers-color-scheme: dark) {
  :root { --back: #16181c; --text: #e8e8e8; --soft: #a5a5a5; --line: #3a3d42; --bad: #ff8a80; --good: #7ddc9a }
}
body { margin: 0 auto; max-width: 70rem; padding: 1rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2rem }
p, li, figcaption { overflow-wrap: anywhere }
.bad { color: var(--bad) } .good { color: var(--good) } .soft, figcaption { color: var(--soft) }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
i { display: inline-block; width: .9em; height: .9em; margin-right: .4em; vertical-align: -.1em; border: 1px solid var(--line) }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1rem }
figure { margin: 0 } .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 2px } img { width: 100%; display: block }
.legend span { display: inline-block; margin-right: 1rem } pre { white-space: pre-wrap; overflow-wrap: anywhere }
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """A sample to show: JPEG files of the image and of the image under its label's colours ("" without a label)."""

    caption: str
    image: bytes
    colored: bytes


def pictures(sets: Mapping[str, Samples], labels: LabelSet, count: int = 8) -> list[Picture]:
    """Up to `count` samples of each split, spread evenly over its list; those that cannot be read are left out."""
    shown = []
    for split, samples in sets.items():
        table = value_table(samples.kind, labels)
        for i in np.unique(np.linspace(0, len(samples) - 1, count).round().astype(int)).tolist():
            try:
                image, values = read_sample(samples, i)
            except DataError:
                continue
            shown.append(_picture(f"{split}: {samples.images[i]}", image, values, table, labels))
    return shown


def _picture(caption: str, image: np.ndarray, values: np.ndarray | None, table: np.ndarray, labels: LabelSet) -> Picture:
    height, width = image.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    if values is None:
        return Picture(caption, _jpeg(small), b"")
    train_ids = np.where(table[values] < 0, IGNORE, table[values]).astype(np.uint8)
    label = np.asarray(Image.fromarray(train_ids).resize(size, Image.Resampling.NEAREST))
    return Picture(caption, _jpeg(small), _jpeg(overlay(small, label, labels, opacity=0.6)))


def _jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=85)
    return file.getvalue()


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
        f"<h1>{_text(title)}</h1>{verdict}",
        "<h2>Splits</h2>" + _splits(report),
        "<h2>Problems</h2>" + (_problems(report.problems) or '<p class="soft">None.</p>'),
        f"<h2>Classes of {_text(labels.name)}</h2>" + _classes(report, labels),
        "<h2>Samples</h2>" + _legend(labels, report) + '<div class="samples">' + "".join(map(_figure, shown)) + "</div>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _text(value: object) -> str:
    # What no UTF-8 file can hold, as names of files may.
    return html.escape(str(value).encode(errors="backslashreplace").decode())


def _table(head: Iterable[object], rows: Iterable[Iterable[str]]) -> str:
    """Rows hold HTML."""
    lines = ["".join(f"<th>{_text(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    return '<div class="wide"><table>' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"


def _splits(report: Report) -> str:
    rows = []
    for split, tally in report.tallies.items():
        sizes = tally.sizes.most_common(3)
        common = ", ".join(f"{w}x{h}" + f" ({n})" * (len(tally.sizes) > 1) for (w, h), n in sizes)
        common += f" and {len(tally.sizes) - 3} more" if len(tally.sizes) > 3 else ""
        modes = [", ".join(counter) for counter in (tally.image_modes, tally.label_modes)]
        cells = (split, f"{tally.samples:,}", f"{sum(tally.sizes.values()):,}", common, *modes, tally.source)
        rows.append([_text(cell) for cell in cells])
    return _table(("split", "samples", "readable", "sizes", "images", "labels", "from"), rows)


def _problems(problems: Sequence[Problem]) -> str:
    parts = []
    for sort in dict.fromkeys(problem.sort for problem in problems):
        same = [problem for problem in problems if problem.sort == sort]
        bad = ' class="bad"' if same[0].fails else ""
        items = "".join(f"<li>{_text(problem.text)}</li>" for problem in same[:LISTED])
        rest = f'<p class="soft">and {len(same) - LISTED} more, in check.json</p>' if len(same) > LISTED else ""
        parts.append(f"<details open><summary{bad}>{_text(sort)}: {len(same)}</summary><ul>{items}</ul>{rest}</details>")
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
        cells = [f"{_chip(labels, k)}{_text(name)}", _text(labels.class_ids[k])]
        for tally in report.tallies.values():
            cells += [share(tally.pixels[k], tally.pixels.sum()), f"{tally.images[k]:,}"]
        rows.append(cells + [f"{weight:.3f}" for weight in weights[k : k + 1]])
    ignored = ["ignored, of all pixels", ""]
    for tally in report.tallies.values():
        ignored += [share(tally.ignored, tally.pixels.sum() + tally.ignored + tally.unknown), ""]
    table = _table(head, [*rows, ignored + [""] * bool(weights)])
    if not weights:
        return table
    command = "--config.loss.class_weights='(" + ",".join(f"{weight:g}" for weight in weights) + ")'"
    text = f"Weights after ENet (arXiv 1606.02147), 1 / ln(1.02 + share of {first}), scaled to a mean of 1 over its pixels:"
    note = f'<p class="soft">{_text(text)}</p>'
    return table + note + f"<pre>{_text(command)}</pre>"


def _chip(labels: LabelSet, k: int) -> str:
    r, g, b = labels.colors[k]
    return f'<i style="background: rgb({r}, {g}, {b})"></i>'


def _legend(labels: LabelSet, report: Report) -> str:
    seen = sum((tally.pixels for tally in report.tallies.values()), np.zeros(labels.num_classes, np.int64))
    spans = "".join(f"<span>{_chip(labels, k)}{_text(labels.names[k])}</span>" for k in np.flatnonzero(seen).tolist())
    return (
        f'<p class="legend">{spans}<span>{"<i style=background:#000></i>"}ignored, or in no entry of the label set</span></p>'
    )


def _figure(picture: Picture) -> str:
    files = [data for data in (picture.image, picture.colored) if data]
    words = ("image", "labels over the image")
    images = "".join(
        f'<img alt="{word}" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'
        for word, data in zip(words, files, strict=False)
    )
    return f'<figure><div class="pair">{images}</div><figcaption>{_text(picture.caption)}</figcaption></figure>'
