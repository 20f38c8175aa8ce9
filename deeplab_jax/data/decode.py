"""Decode image and mask files with Pillow, tifffile and NumPy.

Training, evaluation, `data check`, `data prepare` and `predict` all see the pixels that these functions return. TensorFlow
decodes the most frequent formats faster, and `image_files` uses it for those whose pixels are the same.
"""

import io
import math
import os
from typing import IO

import numpy as np
from jaxtyping import Int32, Shaped, UInt8
from PIL import Image, ImageMode, TiffImagePlugin

from deeplab_jax.data.pillow_fixes import correct_decoding

IMAGE_SUFFIXES = (".bmp", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
LOSSY_SUFFIXES = (".avif", ".jfif", ".jp2", ".jpeg", ".jpg")
MASK_SUFFIXES = (".bmp", ".gif", ".npy", ".png", ".tif", ".tiff", ".webp")

# TIFF and EXIF tags
BITS_PER_SAMPLE, ORIENTATION, SAMPLES_PER_PIXEL, PLANES, EXTRA_SAMPLES, SAMPLE_FORMAT = 258, 274, 277, 284, 338, 339
TRANSPOSED = frozenset((5, 6, 7, 8))  # EXIF orientations that swap width and height
LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")
LOSSY_MASKS = (
    "Lossy compression changes label values, so some pixels get the ids of other classes. Converting the file does not restore "
    "them. Export the masks again, as PNG. Only black and white can be restored: set values below 128 to 0 and others to 255."
)
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NPY_SIGNATURE = b"\x93NUMPY"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The fraction of the machine's memory that one decoded image can use.
MEMORY_SHARE = 0.5

# Pillow refuses images with more than 179 million pixels and warns from 89 million on, to protect servers from strangers'
# files. Here the files are the user's own, and `_require_memory` refuses only what does not fit.
Image.MAX_IMAGE_PIXELS = None


class FormatError(ValueError):
    """A file cannot be used. The message continues a sentence that starts with the file name, and says what to do."""


def decode_image(data: bytes, channels: int = 3, value_range: tuple[float, ...] = ()) -> UInt8[np.ndarray, "h w channels"]:
    """Decode an image file.

    A file with `channels` bands is returned as it is. Otherwise, for 3 channels, grey is repeated, transparency is dropped, and
    palette and CMYK colours are converted to RGB. For 1 channel, colours are converted to grey (ITU-R 601 luma, as in Pillow).
    The last band of a TIFF with 2 or 4 bands is dropped only if it is opaque everywhere, because many programs mark an infrared
    band as transparency. Only the first frame of an animation is used. EXIF orientations are not applied, except for TIFF.

    Args:
      data: The file's bytes.
      channels: The number of bands to return, from 1 to 8.
      value_range: The stored values (low, high) that become 0 and 255. Values between them are scaled linearly and rounded, and
        values outside are clipped. If (), the full range of the file's integer type is used: 8-bit values are unchanged, and
        16-bit values are reduced to their upper 8 bits.

    Raises:
      FormatError: The file has the wrong number of bands, or its values have no fixed range.
      Exception: Pillow or tifffile cannot decode the file. They raise many types of errors.
    """
    bands = _read_bands(data, channels, is_exact=bool(value_range))
    count = bands.shape[2]
    if count in (2, 4) and channels in (1, 3):  # grey or colours with transparency
        if data.startswith(TIFF_SIGNATURES):
            _require_opaque(bands[..., -1], count, channels)
        bands = bands[..., :-1]
    pixels = convert_bands(bands, channels, value_range)
    if pixels.shape[2] != channels:
        raise FormatError(
            f"has {count} {'bands' if count > 1 else 'band'}, but `data.channels` is {channels}. "
            "Set data.channels to the number of bands of the images."
        )
    return pixels


def convert_bands(
    bands: Shaped[np.ndarray, "h w c"], channels: int, value_range: tuple[float, ...] = ()
) -> UInt8[np.ndarray, "h w c2"]:
    """Return an image with its values scaled to 0-255. Grey becomes colour if `channels` is 3, and colour grey if it is 1.

    Takes the arguments of `decode_image`.

    Raises:
      FormatError: The values have no fixed range.
    """
    pixels = _scale_to_bytes(bands, value_range)
    if pixels.shape[2] == 1 and channels == 3:
        return np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] == 3 and channels == 1:
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[..., None]
    return pixels


def decode_mask(data: bytes, *, is_color: bool) -> UInt8[np.ndarray, "h w"] | Int32[np.ndarray, "h w"]:
    """Decode a label file.

    Ids are grey values, palette indices, the values of a NumPy array, or RGB values that are equal in all three bands. They are
    never scaled: a file with 4 bits per value has the ids 0 to 15. Transparency is dropped from colours.

    Args:
      data: The file's bytes.
      is_color: Whether the label values are 24-bit colours instead of ids.

    Returns:
      The 24-bit colours, int32, if `is_color`. Otherwise, the ids, uint8.

    Raises:
      FormatError: The format does not keep values exactly, or the values are not ids from 0 to 255.
      Exception: Pillow or tifffile cannot decode the file. They raise many types of errors.
    """
    if data.startswith(NPY_SIGNATURE):
        return _as_colors(_read_npy(data)) if is_color else _as_ids(_read_npy(data))
    picture = _open_picture(io.BytesIO(data))
    if picture is None:
        return _as_colors(_read_tiff(data)) if is_color else _as_ids(_read_tiff(data))
    with picture:
        _require_lossless(picture, data)
        if _count_pages(picture, data) > 1:
            raise FormatError("has several frames or pages. Save one mask per file, with one value per pixel.")
        if isinstance(picture, TiffImagePlugin.TiffImageFile) and _count_tiff_bands(picture) > len(picture.getbands()):
            raise FormatError(f"has {_count_tiff_bands(picture)} bands. Save ids as an 8-bit grey PNG, colours as an RGB PNG.")
        if is_color:
            if count_bits(picture, data) > 8:
                raise FormatError("has more than 8 bits per value. Save colours with 8 bits per value.")
            return _as_colors(np.asarray(picture.convert("RGB")))
        if picture.mode == "P":
            return np.array(picture, np.uint8)
        bits = count_bits(picture, data)
        if bits > 8 and len(picture.getbands()) > 1:  # Pillow would return the upper 8 bits, which are 0 for ids
            raise FormatError(f"has several bands with {bits} bits per value. Save ids as an 8-bit grey PNG.")
        values = np.asarray(picture)
        if picture.mode in ("RGB", "RGBA", "LA") and values.dtype == np.uint8:
            values = _drop_equal_bands(values, has_alpha=picture.mode.endswith("A"))
        if picture.mode == "L" and bits < 8:
            values = values // (255 // (2**bits - 1))  # Pillow scales values with fewer bits to the range 0 to 255
        return _as_ids(values)


def read_size(file: IO[bytes]) -> tuple[int, int]:
    """Return the (height, width) of an image file from its header.

    Raises:
      Exception: Pillow or tifffile cannot read the header. They raise many types of errors.
    """
    picture = _open_picture(file)
    if picture is not None:
        with picture:
            return picture.height, picture.width
    import tifffile

    with tifffile.TiffFile(file) as tiff:
        return tiff.pages.first.imagelength, tiff.pages.first.imagewidth


def find_orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation of an open image, or 1 if it is not from 1 to 8. See `read_orientation`."""
    if picture.format == "TIFF" or (picture.format == "PNG" and "exif" not in picture.info):
        return 1
    orientation = picture.getexif().get(ORIENTATION, 1)
    return int(orientation) if orientation in range(1, 9) else 1  # some programs write 0


def read_orientation(file: IO[bytes]) -> int:
    """Return an image file's EXIF orientation that the pixels do not have yet. 1 means upright.

    EXIF data stored after a PNG's pixels is ignored, because all of the file would have to be decoded. Pillow applies the
    orientation of a TIFF.
    """
    try:
        with Image.open(file) as picture:
            return find_orientation(picture)
    except Exception:  # the metadata can be damaged while the pixels are fine
        return 1


def _open_picture(file: IO[bytes]) -> Image.Image | None:
    """Open a file with Pillow, or return None for a TIFF that only tifffile can read."""
    try:
        picture = Image.open(file)
    except Image.UnidentifiedImageError:
        file.seek(0)
        if file.read(4) in TIFF_SIGNATURES:
            file.seek(0)
            return None
        raise
    _require_memory(picture.width, picture.height, len(picture.getbands()))
    correct_decoding(picture, file)
    return picture


def _require_memory(width: int, height: int, bands: int) -> None:
    needed = 2 * width * height * bands  # the decoder's own buffer, and the array
    if not hasattr(os, "sysconf"):  # Windows does not say how much memory there is
        return
    available = MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        raise FormatError(
            f"has {width}x{height} pixels, which need {needed / 2**30:.1f} GiB of memory, more than half of this machine's. "
            "Cut it into smaller images."
        )


def _read_bands(data: bytes, channels: int, *, is_exact: bool) -> Shaped[np.ndarray, "h w c"]:
    """Return an image's stored values. Palette, CMYK and similar images are converted to RGB or grey first.

    Args:
      data: The file's bytes.
      channels: The number of bands that the caller needs.
      is_exact: Whether values with more than 8 bits must keep all of their bits.
    """
    picture = _open_picture(io.BytesIO(data))
    if picture is None:
        return _read_tiff(data, channels)
    with picture:
        if isinstance(picture, TiffImagePlugin.TiffImageFile) and _is_for_tifffile(picture, data, channels):
            return _read_tiff(data, channels)
        bits = count_bits(picture, data)
        if is_exact and bits > 8 and len(picture.getbands()) > 1:
            raise FormatError(
                f"has {bits} bits per value, of which only 8 can be read. Save it as TIFF to use data.value_range."
            )
        picture.load()
        if picture.mode == "CMYK" and channels == 4 and picture.format == "TIFF":
            return np.asarray(picture)
        if picture.mode == "1":
            picture = picture.convert("L")
        elif picture.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV", "RGBX", "RGBa", "La") and not (
            picture.mode == "RGBX" and channels == 4
        ):
            is_transparent = channels == 4 and (picture.mode == "PA" or "transparency" in picture.info)
            picture = picture.convert("RGBA" if is_transparent else "RGB")
        values = np.asarray(picture)
    if picture.mode == "I":  # Pillow takes unsigned integers of 32 bits for signed ones, which `_read_tiff` reads
        values = values.view(np.uint32)
    return values if values.ndim == 3 else values[..., None]


def _require_opaque(last: Shaped[np.ndarray, "h w"], count: int, channels: int) -> None:
    if last.dtype.kind != "u" or last.min() < np.iinfo(last.dtype).max:
        raise FormatError(
            f"has {count} bands, of which `data.channels` (={channels}) would drop the last one. "
            f"Set data.channels={count} to read it, or save the file without it if it is transparency."
        )


def _is_for_tifffile(picture: TiffImagePlugin.TiffImageFile, data: bytes, channels: int) -> bool:
    """Return whether Pillow would drop bits, signs or bands of a TIFF, divide its colours by the fourth band, or fail."""
    bands, tags = _count_tiff_bands(picture), picture.tag_v2
    is_signed = tags.get(SAMPLE_FORMAT, 1) in (2, (2,))
    is_deep = bands > 1 and _count_tiff_bits(picture) > 8
    is_cut = bands > len(picture.getbands())
    is_divided = channels == 4 and tags.get(EXTRA_SAMPLES) in (1, (1,))
    has_two_planes = bands == 2 and tags.get(PLANES) == 2
    return is_signed or is_deep or is_cut or is_divided or has_two_planes or _count_pages(picture, data) > 1


def _count_pages(picture: Image.Image, data: bytes) -> int:
    """Return the number of frames or pages, without the reduced copies and the masks of valid pixels in a TIFF."""
    if picture.format != "TIFF":
        return getattr(picture, "n_frames", 1)
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        return sum(not (page.aspage().is_reduced or page.aspage().is_mask) for page in file.pages)


def _count_tiff_bands(picture: TiffImagePlugin.TiffImageFile) -> int:
    return int(picture.tag_v2.get(SAMPLES_PER_PIXEL, 1))


def _count_tiff_bits(picture: TiffImagePlugin.TiffImageFile) -> int:
    return int(np.max(picture.tag_v2.get(BITS_PER_SAMPLE, 1)))


def count_bits(picture: Image.Image, data: bytes) -> int:
    """Return the number of bits per stored value, given an open image and the first bytes of its file.

    Pillow's modes do not distinguish fewer than 8 bits, and hide that colours have more.
    """
    if picture.format == "PNG":
        return data[24]
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        return _count_tiff_bits(picture)
    if picture.mode == "1":
        return 1
    return 8 * np.dtype(ImageMode.getmode(picture.mode).typestr).itemsize


def _read_tiff(data: bytes, channels: int = 0) -> Shaped[np.ndarray, "h w c"]:
    """Return the values of a TIFF that Pillow cannot read completely. Pages count as bands if there are `channels` of them."""
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            orientation = file.pages.first.tags.valueof(ORIENTATION, 1)
            if orientation in range(2, 9):
                raise FormatError(f"has the orientation {orientation}, which cannot be applied to it. Save it upright.")
            series = file.series[0]
            # Reduced copies for zooming and masks of valid pixels are not images of their own.
            if len([each for each in file.series if not (each.keyframe.is_reduced or each.keyframe.is_mask)]) > 1:
                raise FormatError("has several pages of different sizes or types. Save one image per file.")
            _require_memory(1, 1, math.prod(series.shape) * series.dtype.itemsize)
            values, axes = series.asarray(), series.axes
    except ValueError as error:
        if "imagecodecs" in str(error):
            message = f"is compressed in a way that needs another package ({error}). Run `pip install imagecodecs`."
            raise FormatError(message) from None
        raise
    if axes == "YX":
        return values[..., None]
    if axes in ("SYX", "CYX") or (len(axes) == 3 and axes.endswith("YX") and len(values) == channels):
        return np.moveaxis(values, 0, 2)
    if axes in ("YXS", "YXC"):
        return values
    raise FormatError(f"has several pages (axes {axes}, shape {values.shape}). Save one image with several bands per file.")


def _read_npy(data: bytes) -> Shaped[np.ndarray, "h w"]:
    values = np.load(io.BytesIO(data), allow_pickle=False)
    if values.ndim != 2 or not values.size:
        raise FormatError(
            f"has the shape {values.shape}. Save one id per pixel, with shape (height, width). "
            "For one-hot masks, take the argmax over the classes."
        )
    return values


def _scale_to_bytes(values: Shaped[np.ndarray, "h w c"], value_range: tuple[float, ...]) -> UInt8[np.ndarray, "h w c"]:
    if value_range:
        low, high = value_range
        scaled = np.nan_to_num((values.astype(np.float64) - low) * 255 / (high - low), nan=0.0)
        return np.rint(scaled.clip(0, 255)).astype(np.uint8)
    if values.dtype == np.uint8:
        return values
    if values.dtype.newbyteorder("=") == np.uint16:
        return (values >> 8).astype(np.uint8)
    raise FormatError(
        f"holds {values.dtype.name} values, which have no fixed range. "
        "Set data.value_range to the values that are black and white."
    )


def _require_lossless(picture: Image.Image, data: bytes) -> None:
    is_lossy_format = picture.format in ("JPEG", "MPO", "JPEG2000", "AVIF")
    is_lossy_file = (picture.format == "WEBP" and not _is_lossless_webp(data)) or (
        picture.format == "TIFF" and picture.info.get("compression") in LOSSY_TIFF
    )
    if is_lossy_format or is_lossy_file:
        name = f"lossy {picture.format}" if is_lossy_file else picture.format
        raise FormatError(f"is a {name} file. {LOSSY_MASKS}")


def _is_lossless_webp(data: bytes) -> bool:
    """Return whether the pixels are in a chunk of the lossless kind. A colour profile can come before it."""
    start = 12  # after the header of the file
    while (name := data[start : start + 4]) not in (b"VP8L", b"VP8 ", b""):
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        start += 8 + size + size % 2
    return name == b"VP8L"


def _drop_equal_bands(values: UInt8[np.ndarray, "h w c"], *, has_alpha: bool) -> UInt8[np.ndarray, "h w"]:
    """Return the first band of a grey image that is stored as RGB."""
    if has_alpha:
        if values[..., -1].min() < 255:
            raise FormatError("has transparent pixels, which ids cannot have. Save it as an 8-bit grey PNG.")
        values = values[..., :-1]
    if (values != values[..., :1]).any():
        raise FormatError(
            "is not an id image, because it has colours. If its colours are the labels, set data.label_kind=color."
        )
    return values[..., 0]


def _as_ids(values: Shaped[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "h w"]:
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim != 2:
        raise FormatError(f"has {values.shape[-1]} bands. Save ids as an 8-bit grey PNG.")
    if values.dtype == np.uint8 or values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype.kind not in "iu":
        raise FormatError(f"holds {values.dtype.name} values. Save ids as an 8-bit grey PNG.")
    for extreme in (values.min(), values.max()) if values.size else ():
        if not 0 <= extreme <= 255:
            raise FormatError(f"holds the id {extreme}. Ids must be from 0 to 255: renumber them, with 255 for no class.")
    return values.astype(np.uint8)


def _as_colors(values: Shaped[np.ndarray, "h w *c"]) -> Int32[np.ndarray, "h w"]:
    if values.ndim != 3 or values.shape[2] != 3 or values.dtype != np.uint8:
        raise FormatError("is not an RGB image with 8 bits per value. Save colours as an RGB PNG.")
    codes = values.astype(np.int32)
    return codes[..., 0] << 16 | codes[..., 1] << 8 | codes[..., 2]
