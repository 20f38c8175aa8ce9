"""Find the parts of an image file that are not used: transparency, bits and frames, and values beyond `data.value_range`."""

from collections.abc import Iterator
from typing import IO

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from deeplab_jax.data.decode import count_bits

WRONG_RANGE = "images that do not fit data.value_range"
MAX_CLIPPED = 0.5  # a larger share of black and white values is reported
MIN_LEVELS = 8  # fewer of the 256 grey levels are reported
DEEP = "images of 16 bits"
DEEP_TEXT = (
    "has 16 bits per value, of which only the upper 8 are used. "
    "Set data.value_range (--value-range) if the values stay far below 65535."
)


def find_omissions(file: IO[bytes], channels: int, value_range: tuple[float, ...]) -> dict[str, str]:
    """Return what `decode.decode_image` leaves out of an image file, or {} if it uses everything or the file is unreadable.

    Only images with transparency are decoded, to see whether they use it.

    Args:
      file: The open file.
      channels: See `decode.decode_image`.
      value_range: See `decode.decode_image`.

    Returns:
      A dict that maps a heading to a sentence, which starts with the file name.
    """
    try:
        head = file.read(32)
        file.seek(0)
        with Image.open(file) as picture:
            return dict(_find(picture, head, channels, value_range))
    except Image.UnidentifiedImageError:
        return {} if value_range else _find_in_tiff(file)
    except Exception:  # not a problem, because training reads the file in another way
        return {}


def _find(picture: Image.Image, head: bytes, channels: int, value_range: tuple[float, ...]) -> Iterator[tuple[str, str]]:
    # An MPO is a JPEG photo with other views of the same scene.
    frames = 1 if picture.format in ("TIFF", "MPO") else getattr(picture, "n_frames", 1)
    if frames > 1:
        yield "images with several frames", f"has {frames} frames, of which only the first is used. Save one image per file."
    bits = count_bits(picture, head)
    if value_range:
        yield from _compare_with_range(picture, bits, *value_range)
    elif 8 < bits <= 16:  # those with more cannot be read without a range
        yield DEEP, DEEP_TEXT
    if channels in (1, 3) and picture.format != "TIFF" and has_transparent_pixels(picture):
        text = "has transparent pixels. The transparency is ignored, so they show the colours stored below it."
        yield "images with transparent pixels", text


def _find_in_tiff(file: IO[bytes]) -> dict[str, str]:
    """Do the same for an image with many bands, which Pillow cannot open."""
    import tifffile

    try:
        file.seek(0)
        with tifffile.TiffFile(file) as tiff:
            is_deep = tiff.pages.first.dtype == np.uint16
    except Exception:  # decoding it reports the problem
        return {}
    return {DEEP: DEEP_TEXT} if is_deep else {}


def _compare_with_range(picture: Image.Image, bits: int, low: float, high: float) -> Iterator[tuple[str, str]]:
    if bits <= 8 and high > 255:
        text = f"has values up to 255, but data.value_range (=({low:g},{high:g})) goes further, so the image becomes too dark."
        yield WRONG_RANGE, f"{text} Save all images with the same number of bits."
    elif picture.mode != "F" and high - low <= 1:
        text = f"holds whole numbers, of which data.value_range (=({low:g},{high:g})) keeps at most two."
        yield WRONG_RANGE, f"{text} Use the lowest and the highest value in the files, such as (0,255)."


def find_clipping(image: UInt8[np.ndarray, "h w c"], value_range: tuple[float, ...]) -> dict[str, str]:
    """Return what a value range does to a decoded image, in the form of `find_omissions`, or {} if it fits."""
    if not value_range:
        return {}
    name = f"data.value_range (=({value_range[0]:g},{value_range[1]:g}))"
    levels, share = int(np.ptp(image)) + 1, np.mean((image == 0) | (image == 255))
    if levels < MIN_LEVELS:
        text = f"has at most {levels} of 256 levels of grey with {name}."
    elif share > MAX_CLIPPED:
        text = f"becomes black or white in {share:.0%} of its values, because {name} clips those outside."
    else:
        return {}
    return {WRONG_RANGE: f"{text} Use the lowest and the highest value in the files."}


def has_transparent_pixels(picture: Image.Image) -> bool:
    """Return whether a pixel of an open image is not opaque. Only images with transparency are decoded."""
    if not picture.has_transparency_data:
        return False
    alpha = picture.convert("RGBA").getchannel("A").getextrema()[0]
    return isinstance(alpha, (int, float)) and alpha < 255
