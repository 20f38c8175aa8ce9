"""HTML pages: one file each, nothing loaded from elsewhere, light and dark, readable on a phone."""

import base64
import io
import math
from collections.abc import Iterable
from typing import Any

import jinja2
import numpy as np
from jaxtyping import UInt8
from markupsafe import Markup, escape
from PIL import Image

from deeplab_jax.labels import LabelSet


def render(template: str, **values: Any) -> str:
    """Return a page of `templates/`; values are escaped unless they are Markup."""
    return _TEMPLATES.get_template(template).render(values)


def encode_jpeg(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """Return a picture as the URL that holds it."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def percent(share: float) -> str:
    """Return a share in per cent; - for nan."""
    return "-" if math.isnan(share) else f"{100 * share:.1f}"


_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("deeplab_jax.pages"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_TEMPLATES.filters.update(jpeg=encode_jpeg, percent=percent)


def reduced(pixels: UInt8[np.ndarray, "h w *c"], side: int, *, labels: bool = False) -> UInt8[np.ndarray, "h2 w2 *c"]:
    """Return the picture resized so that no side is longer than `side`; `labels` keeps values as they are."""
    height, width = pixels.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = Image.Resampling.NEAREST if labels else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(pixels).resize(size, how))


# What the check's page is put together from; strings are HTML unless they say text.


def document(title: str, body: str) -> str:
    """Return the whole file; `title` is text."""
    return render("document.html", title=title, body=Markup(body))


def text(value: object) -> str:
    """Return HTML that shows `value`; what no UTF-8 file can hold, as names of files may, by its number."""
    return str(escape(str(value).encode(errors="backslashreplace").decode()))


def table(head: Iterable[object], rows: Iterable[Iterable[str]]) -> str:
    """Return a table; the cells of rows are HTML, those of the head text."""
    return _part("table", head, [map(Markup, row) for row in rows])


def chip(labels: LabelSet, k: int) -> str:
    """Return a square in the colour of class `k`."""
    return _part("chip", labels, k)


def legend(labels: LabelSet, classes: Iterable[int], ignored: str) -> str:
    """Return the colours of `classes` with their names; the text `ignored` says what is black."""
    return _part("legend", labels, classes, ignored)


def picture(alt: str, pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """Return an <img> that holds its own JPEG; `alt` is text."""
    return _part("picture", alt, pixels)


def samples(figures: Iterable[tuple[str, Iterable[str]]]) -> str:
    """Return a grid of figures, each a caption and pictures that stand side by side."""
    return _part("samples", [(Markup(caption), map(Markup, pictures)) for caption, pictures in figures])


def _part(name: str, *args: Any) -> str:
    return str(getattr(_TEMPLATES.get_template("parts.html").module, name)(*args))
