"""Render HTML pages.

Each page is a single self-contained file that supports light and dark mode and is readable on a phone.
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
    """Render a template from `templates/`. Values are HTML-escaped unless they are Markup."""
    return _TEMPLATES.get_template(template).render(values)


def encode_jpeg(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """Encode an image as a JPEG data URL."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def percent(share: float) -> str:
    """Format a share from 0 to 1 as a percentage without the % sign, such as "12.3". NaN becomes "-"."""
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
    """Shrink an image so that no side is longer than `side` pixels. Smaller images keep their size.

    Args:
      pixels: An image or a label map.
      side: The maximum side length, in pixels.
      labels: Whether `pixels` is a label map. Label maps use nearest-neighbour interpolation, whereas images use bilinear.
    """
    height, width = pixels.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    filter_ = Image.Resampling.NEAREST if labels else Image.Resampling.BILINEAR
    if pixels.ndim == 2 or pixels.shape[2] == 3:
        return np.asarray(Image.fromarray(pixels).resize(size, filter_))
    # Pillow has no images with any number of bands, and would mix alpha into the others.
    bands = [Image.fromarray(np.ascontiguousarray(band)).resize(size, filter_) for band in np.moveaxis(pixels, 2, 0)]
    return np.stack([np.asarray(band) for band in bands], axis=2)


# The functions below build data check pages. Their `str` arguments are HTML unless the docstring calls them plain text.


def render_document(title: str, body: str) -> str:
    """Return a complete HTML document around `body`. `title` is plain text."""
    return render("document.html", title=title, body=Markup(body))


def escape_text(value: object) -> str:
    """Escape `value` for display as plain text on an HTML page.

    File names can contain characters that UTF-8 cannot encode. These become backslash escapes.
    """
    return str(escape(str(value).encode(errors="backslashreplace").decode()))


def table(head: Iterable[object], rows: Iterable[Iterable[str]]) -> str:
    """Return an HTML table. The cells in `rows` are HTML, and those in `head` are plain text."""
    return _part("table", head, [map(Markup, row) for row in rows])


def chip(labels: LabelSet, k: int) -> str:
    """Return HTML for a small square in class `k`'s colour."""
    return _part("chip", labels, k)


def legend(labels: LabelSet, classes: Iterable[int], ignored: str) -> str:
    """Return an HTML colour legend for `classes`, plus a black entry captioned with the plain text `ignored`."""
    return _part("legend", labels, classes, ignored)


def picture(alt: str, pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """Return an <img> element that embeds the image as a JPEG. `alt` is plain text."""
    return _part("picture", alt, pixels)


def sample_grid(figures: Iterable[tuple[str, Iterable[str]]]) -> str:
    """Return an HTML grid of figures, each showing its images side by side above a caption."""
    return _part("samples", [(Markup(caption), map(Markup, pictures)) for caption, pictures in figures])


def _part(name: str, *args: Any) -> str:
    return str(getattr(_TEMPLATES.get_template("parts.html").module, name)(*args))
