"""Render HTML pages.

Each page is a single file that loads nothing else. It has a light and a dark mode, and is readable on a phone.
"""

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
    """Render a file of `templates/`. Values are escaped unless they are Markup."""
    return _TEMPLATES.get_template(template).render(values)


def encode_jpeg(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """Encode a picture as JPEG and return it as a data URL."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def percent(share: float) -> str:
    """Format a share from 0 to 1 as a percentage without the sign, such as "12.3". Return "-" for NaN."""
    return "-" if math.isnan(share) else f"{100 * share:.1f}"


_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("deeplab_jax.pages"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_TEMPLATES.filters.update(jpeg=encode_jpeg, percent=percent)


def downscale(pixels: UInt8[np.ndarray, "h w *c"], side: int, *, labels: bool = False) -> UInt8[np.ndarray, "h2 w2 *c"]:
    """Shrink a picture so that no side is longer than `side` pixels. Smaller pictures keep their size.

    Args:
      pixels: An image, or a label map.
      side: The longest side allowed, in pixels.
      labels: Whether `pixels` is a label map, which is resized by nearest neighbour. Images are resized bilinearly.
    """
    height, width = pixels.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    filter_ = Image.Resampling.NEAREST if labels else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(pixels).resize(size, filter_))


# The parts of a data check page. A `str` argument is HTML, unless its docstring calls it plain text.


def render_document(title: str, body: str) -> str:
    """Return a complete HTML document. `title` is plain text."""
    return render("document.html", title=title, body=Markup(body))


def escape_text(value: object) -> str:
    """Return the HTML that shows `value` as plain text.

    Characters that UTF-8 cannot encode, which may occur in file names, are shown as backslash escapes.
    """
    return str(escape(str(value).encode(errors="backslashreplace").decode()))


def table(head: Iterable[object], rows: Iterable[Iterable[str]]) -> str:
    """Return an HTML table. The cells of `rows` are HTML, and those of `head` are plain text."""
    return _part("table", head, [map(Markup, row) for row in rows])


def chip(labels: LabelSet, k: int) -> str:
    """Return a small square in the colour of class `k`, as HTML."""
    return _part("chip", labels, k)


def legend(labels: LabelSet, classes: Iterable[int], ignored: str) -> str:
    """Return a colour legend of `classes` as HTML. The plain text `ignored` says what black means."""
    return _part("legend", labels, classes, ignored)


def picture(alt: str, pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """Return an <img> element with an embedded JPEG. `alt` is plain text."""
    return _part("picture", alt, pixels)


def sample_grid(figures: Iterable[tuple[str, Iterable[str]]]) -> str:
    """Return a grid of figures as HTML. Each figure is a caption with pictures side by side."""
    return _part("samples", [(Markup(caption), map(Markup, pictures)) for caption, pictures in figures])


def _part(name: str, *args: Any) -> str:
    return str(getattr(_TEMPLATES.get_template("parts.html").module, name)(*args))
