"""Render HTML pages.

Each page is a single self-contained file that supports light and dark mode and is readable on a phone.
"""

import base64
import io
import math
from typing import Any

import jinja2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

MAX_SIDE = 480  # maximum side length of the images on a page, in pixels


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


def downscale(
    pixels: UInt8[np.ndarray, "h w *c"], side: int = MAX_SIDE, *, labels: bool = False
) -> UInt8[np.ndarray, "h2 w2 *c"]:
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
