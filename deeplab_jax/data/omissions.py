"""Find the parts of an image file that are not used: transparency, bits and frames."""

from collections.abc import Iterator
from typing import IO

from PIL import Image

from deeplab_jax.data.decode import count_bits


def find_omissions(file: IO[bytes], channels: int, value_range: tuple[float, ...]) -> dict[str, str]:
    """Return what `decode.decode_image` leaves out of an image file, or {} if it uses everything or Pillow cannot read it.

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
    except Exception:  # not a problem, because training reads the file in another way
        return {}


def _find(picture: Image.Image, head: bytes, channels: int, value_range: tuple[float, ...]) -> Iterator[tuple[str, str]]:
    # An MPO is a JPEG photo with other views of the same scene.
    frames = 1 if picture.format in ("TIFF", "MPO") else getattr(picture, "n_frames", 1)
    if frames > 1:
        yield "images with several frames", f"has {frames} frames, of which only the first is used. Save one image per file."
    if count_bits(picture, head) > 8 and not value_range:
        yield (
            "images of 16 bits",
            "has 16 bits per value, of which only the upper 8 are used. "
            "Set data.value_range (--value-range) if the values stay far below 65535.",
        )
    if channels in (1, 3) and picture.format != "TIFF" and has_transparent_pixels(picture):
        text = "has transparent pixels. The transparency is ignored, so they show the colours stored below it."
        yield "images with transparent pixels", text


def has_transparent_pixels(picture: Image.Image) -> bool:
    """Return whether a pixel of an open image is not opaque. Only images with transparency are decoded."""
    if not picture.has_transparency_data:
        return False
    alpha = picture.convert("RGBA").getchannel("A").getextrema()[0]
    return isinstance(alpha, (int, float)) and alpha < 255
