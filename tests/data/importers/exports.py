"""Write small exports of annotation tools."""

import base64
import io
import json

import numpy as np
from PIL import Image


def write_image(path, width=8, height=8, orientation=1):
    """Write an image with an EXIF orientation. `width` and `height` are those of the stored pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    Image.new("RGB", (width, height), (9, 99, 199)).save(path, exif=exif)
    return path


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def encode_png(array):
    file = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def square(left, top, right, bottom):
    """Return the corners of a square, whose pixels are left..right and top..bottom if the outline belongs to it."""
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def draw(annotation, ids, fill=0, order="file", size=(8, 8)):
    """Return the mask of an annotation as rows of digits."""
    from deeplab_jax.data.importers.write import Drawing, draw_mask

    mask = draw_mask(annotation.shapes, size, Drawing(ids, fill, order))
    return ["".join("#" if value == 255 else str(value) for value in row) for row in mask]
