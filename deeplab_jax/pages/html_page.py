"""Parts of the HTML pages that commands write: one file, nothing loaded from elsewhere, light and dark, readable on a phone."""

import base64
import html
import io
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from deeplab_jax.labels import LabelSet

STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1a1a1a; --soft: #5c5c5c; --line: #d9d9d9; --ink: #1f6feb;
  --bad: #b3261e; --good: #1b6e3c }
@media (prefers-color-scheme: dark) {
  :root { --back: #16181c; --text: #e8e8e8; --soft: #a5a5a5; --line: #3a3d42; --ink: #6cb0ff; --bad: #ff8a80; --good: #7ddc9a }
}
body { margin: 0 auto; max-width: 70rem; padding: 1rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; overflow-wrap: anywhere } h2 { font-size: 1.2rem; margin-top: 2rem }
p, li, figcaption, summary { overflow-wrap: anywhere }
.bad { color: var(--bad) } .good { color: var(--good) } .soft, figcaption { color: var(--soft) }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
i { display: inline-block; width: .9em; height: .9em; margin-right: .4em; vertical-align: -.1em; border: 1px solid var(--line) }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1rem }
figure { margin: 0 } .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 2px } img { width: 100%; display: block }
.legend span { display: inline-block; margin-right: 1rem } pre { white-space: pre-wrap; overflow-wrap: anywhere }
"""


def document(title: str, body: str, style: str = "") -> str:
    """The whole file; `body` is HTML, `style` CSS besides STYLE."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}{style}</style></head><body>{body}</body></html>\n"
    )


def text(value: object) -> str:
    """`value` as HTML that shows it; what no UTF-8 file can hold, as names of files may, by its number."""
    return html.escape(str(value).encode(errors="backslashreplace").decode())


def table(head: Iterable[object], rows: Iterable[Iterable[str]]) -> str:
    """The cells of rows are HTML, those of the head text."""
    lines = ["".join(f"<th>{text(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    return '<div class="wide"><table>' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"


def chip(labels: LabelSet, k: int) -> str:
    """A square in the colour of class `k`."""
    r, g, b = labels.colors[k]
    return f'<i style="background: rgb({r}, {g}, {b})"></i>'


def legend(labels: LabelSet, classes: Iterable[int], ignored: str) -> str:
    """The colours of `classes` and their names; `ignored` says what is black."""
    spans = "".join(f"<span>{chip(labels, k)}{text(labels.names[k])}</span>" for k in classes)
    return f'<p class="legend">{spans}<span><i style="background: #000"></i>{text(ignored)}</span></p>'


def picture(alt: str, pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """An <img> that holds its own JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return f'<img alt="{text(alt)}" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'


def samples(figures: Iterable[tuple[str, Iterable[str]]]) -> str:
    """A grid of figures, each a caption (HTML) and pictures that stand side by side."""
    parts = (
        f'<figure><div class="pair">{"".join(pictures)}</div><figcaption>{caption}</figcaption></figure>'
        for caption, pictures in figures
    )
    return f'<div class="samples">{"".join(parts)}</div>'


def reduced(pixels: UInt8[np.ndarray, "h w *c"], side: int, *, labels: bool = False) -> UInt8[np.ndarray, "h2 w2 *c"]:
    """Resized so that no side is longer than `side`; `labels` keeps values as they are."""
    height, width = pixels.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = Image.Resampling.NEAREST if labels else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(pixels).resize(size, how))
