"""Every format that is read, with the same pixels in training, evaluation, `data check`, `data prepare` and `predict`."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
import tifffile
from PIL import Image

from deeplab_jax.data.decode import FormatError, decode_image, decode_mask, read_orientation, read_size
from deeplab_jax.data.image_files import ImageFiles
from deeplab_jax.data.samples import Samples, read_sample

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), np.uint8)
GREY = RGB[..., 0]
DEEP = RNG.integers(0, 2**16, (5, 7, 6), np.uint16)
IDS = RNG.integers(0, 2, (5, 7), np.uint8)


def save(picture, **options):
    file = io.BytesIO()
    picture.save(file, **options)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def png(array, bits, color_type=0):
    """Write a grey or palette-index PNG with 1, 2, 4, 8 or 16 bits per value, from the PNG specification."""
    height, width = array.shape
    packed = [np.packbits(np.unpackbits(row.astype(">u2").view(np.uint8)).reshape(width, 16)[:, 16 - bits :]) for row in array]
    palette = [(b"PLTE", bytes(range(48)))] if color_type == 3 else []
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0))
    chunks = [header, *palette, (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))), (b"IEND", b"")]
    return join_chunks(chunks)


def png_rgb_of_16_bits(array):
    height, width, _ = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return join_chunks([header, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


def join_chunks(chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def bmp(array, bits, colors, header=40, compression=0):
    """Write a bottom-up BMP of palette indices with 1, 4 or 8 bits, from Microsoft's description of the format."""
    (height, width), entry = array.shape, 3 if header == 12 else 4
    values = array[::-1]
    if bits < 8:
        values = np.packbits(np.unpackbits(values[..., None], axis=-1)[..., -bits:].reshape(height, -1), axis=-1)
    if compression:  # RLE8: runs of length 1, and the end of the line after each
        pixels = b"".join(b"".join(b"\1" + bytes([value]) for value in row) + b"\0\0" for row in values) + b"\0\1"
    else:
        pixels = np.pad(values, ((0, 0), (0, -values.shape[1] % 4))).tobytes()
    palette = b"".join(bytes([grey] * 3 + [0])[:entry] for grey in colors)
    start = 14 + header + len(palette)
    sizes = struct.pack("<HHHH", width, height, 1, bits) if header == 12 else struct.pack("<iiHH", width, height, 1, bits)
    rest = b"" if header == 12 else struct.pack("<IIiiII", compression, len(pixels), 0, 0, len(colors), 0)
    return struct.pack("<2sIIII", b"BM", start + len(pixels), 0, start, header) + sizes + rest + palette + pixels


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def in_training(data, tmp_path, channels=3, value_range=(), mask=None, kind="labelIds"):
    """Return the image and the label values that the training pipeline reads, inside tf.data."""
    (tmp_path / "image").write_bytes(data)
    if mask is not None:
        (tmp_path / "mask").write_bytes(mask)
    store = ImageFiles(channels, value_range)
    samples = Samples(str(tmp_path), ("image",), () if mask is None else ("mask",), kind, "", store)
    dataset = tf.data.Dataset.range(1).map(lambda i: tuple(x for x in store.decode(samples, i)[:2] if x is not None))
    return [x.numpy() for x in next(iter(dataset))], samples


palette_picture = Image.fromarray(GREY // 16, "P")
palette_picture.putpalette([(7 * k + c) % 256 for k in range(16) for c in range(3)])
PALETTE_RGB = np.stack([(7 * (GREY // 16).astype(int) + c) % 256 for c in range(3)], -1).astype(np.uint8)
black_and_white = Image.fromarray(IDS, "P")
black_and_white.putpalette([0, 0, 0, 255, 255, 255])
ALPHA = np.dstack([RGB, GREY])
OPAQUE = np.dstack([RGB, np.full_like(GREY, 255)])
grey3 = np.repeat(GREY[..., None], 3, -1)


def several_sizes(subfiletype):
    """Write an image and a smaller one to one file."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(RGB, photometric="rgb")
        writer.write(RGB[:2, :2], photometric="rgb", subfiletype=subfiletype)
    return file.getvalue()


def geotiff(pixels, **options):
    """Write pixels with a reduced copy and a mask of valid pixels, as GDAL does."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(pixels, **options)
        writer.write(pixels[::2, ::2], subfiletype=1, **options)
        writer.write(np.ones(pixels.shape[:2], bool), subfiletype=4, photometric=4)
    return file.getvalue()


# (file, number of channels, value range, expected pixels). None: any decoder of the format, tested only for agreement.
IMAGES = {
    "png rgb": (save(Image.fromarray(RGB), format="PNG"), 3, (), RGB),
    "png grey": (save(Image.fromarray(GREY), format="PNG"), 3, (), grey3),
    "png grey as 1 band": (save(Image.fromarray(GREY), format="PNG"), 1, (), GREY[..., None]),
    "png 1 bit": (png(IDS, 1), 3, (), np.repeat(255 * IDS[..., None], 3, -1)),
    "png 2 bits": (png(GREY // 64, 2), 3, (), np.repeat(85 * (GREY // 64)[..., None], 3, -1)),
    "png 4 bits": (png(GREY // 16, 4), 3, (), np.repeat(17 * (GREY // 16)[..., None], 3, -1)),
    "png grey of 16 bits": (png(DEEP[..., 0], 16), 3, (), np.repeat((DEEP[..., :1] >> 8).astype(np.uint8), 3, -1)),
    "png grey of 16 bits with a range": (png(DEEP[..., 0], 16), 1, (0, 65535), np.rint(DEEP[..., :1] / 257).astype(np.uint8)),
    "png palette": (save(palette_picture, format="PNG"), 3, (), PALETTE_RGB),
    "png rgba": (save(Image.fromarray(ALPHA), format="PNG"), 3, (), RGB),
    "png rgba as 4 bands": (save(Image.fromarray(ALPHA), format="PNG"), 4, (), ALPHA),
    "png grey with transparency": (save(Image.fromarray(RGB[..., :2], "LA"), format="PNG"), 3, (), grey3),
    "png rgb as 1 band": (save(Image.fromarray(RGB), format="PNG"), 1, (), None),
    "jpeg rgb": (save(Image.fromarray(RGB), format="JPEG", quality=90), 3, (), None),
    "jpeg progressive": (save(Image.fromarray(RGB), format="JPEG", progressive=True), 3, (), None),
    "jpeg 4:4:4": (save(Image.fromarray(RGB), format="JPEG", subsampling=0), 3, (), None),
    "jpeg grey": (save(Image.fromarray(GREY), format="JPEG"), 3, (), None),
    "jpeg grey as 1 band": (save(Image.fromarray(GREY), format="JPEG"), 1, (), None),
    "jpeg cmyk": (save(Image.fromarray(RGB).convert("CMYK"), format="JPEG"), 3, (), None),
    "bmp rgb": (save(Image.fromarray(RGB), format="BMP"), 3, (), RGB),
    "bmp palette": (save(palette_picture, format="BMP"), 3, (), PALETTE_RGB),
    "bmp grey": (save(Image.fromarray(GREY), format="BMP"), 3, (), grey3),
    "bmp 1 bit": (save(Image.fromarray(IDS > 0), format="BMP"), 3, (), np.repeat(255 * IDS[..., None], 3, -1)),
    "bmp black and white of 8 bits": (bmp(IDS, 8, (0, 255)), 3, (), np.repeat(255 * IDS[..., None], 3, -1)),
    "bmp black and white of 4 bits as 1 band": (bmp(IDS, 4, (0, 255)), 1, (), 255 * IDS[..., None]),
    "bmp grey of 4 bits": (bmp(GREY // 16, 4, range(16)), 3, (), grey3 // 16),
    "webp lossless": (save(Image.fromarray(RGB), format="WEBP", lossless=True), 3, (), RGB),
    "webp lossy": (save(Image.fromarray(RGB), format="WEBP"), 3, (), None),
    "tiff rgb": (save(Image.fromarray(RGB), format="TIFF"), 3, (), RGB),
    "tiff lzw": (save(Image.fromarray(RGB), format="TIFF", compression="tiff_lzw"), 3, (), RGB),
    "tiff grey": (tiff(GREY), 3, (), grey3),
    "tiff of 16 bits": (tiff(DEEP[..., 0]), 1, (), (DEEP[..., :1] >> 8).astype(np.uint8)),
    "tiff big-endian of 16 bits": (tiff(DEEP[..., 0], byteorder=">"), 1, (), (DEEP[..., :1] >> 8).astype(np.uint8)),
    "tiff 16-bit rgb": (tiff(DEEP[..., :3], photometric="rgb"), 3, (), (DEEP[..., :3] >> 8).astype(np.uint8)),
    "tiff 2 bands": (tiff(RGB[..., :2], planarconfig="contig", photometric="minisblack"), 2, (), RGB[..., :2]),
    "tiff 4 bands": (tiff(ALPHA, photometric="rgb", extrasamples=["unspecified"]), 4, (), ALPHA),
    "tiff 4 bands, called premultiplied": (tiff(ALPHA, photometric="rgb", extrasamples=["assocalpha"]), 4, (), ALPHA),
    "tiff 4 bands as 3, the last opaque": (tiff(OPAQUE, photometric="rgb", extrasamples=["unspecified"]), 3, (), RGB),
    "tiff rgba as 3 bands, opaque": (save(Image.fromarray(OPAQUE), format="TIFF"), 3, (), RGB),
    "tiff with a reduced copy": (several_sizes(1), 3, (), RGB),
    "tiff with a mask of valid pixels": (geotiff(RGB, photometric="rgb"), 3, (), RGB),
    "tiff 6 bands of 16 bits": (
        tiff(DEEP, photometric="minisblack", planarconfig="contig"),
        6,
        (),
        (DEEP >> 8).astype(np.uint8),
    ),
    "tiff 6 planes": (
        tiff(np.moveaxis(DEEP, 2, 0), photometric="minisblack", planarconfig="separate"),
        6,
        (),
        (DEEP >> 8).astype(np.uint8),
    ),
    "tiff 6 pages": (tiff(np.moveaxis(DEEP, 2, 0), photometric="minisblack"), 6, (), (DEEP >> 8).astype(np.uint8)),
    "tiff float with a range": (
        tiff(np.float32([[-1, 0, 0.5], [1, 2, np.nan]])),
        1,
        (0, 1),
        np.uint8([[0, 0, 128], [255, 255, 0]])[..., None],
    ),
    "tiff big-endian float, compressed": (
        tiff(np.float32([[0, 0.25], [0.5, 1]]), byteorder=">", compression="zlib"),
        1,
        (0, 1),
        np.uint8([[0, 64], [128, 255]])[..., None],
    ),
    "tiff 2 planes": (
        tiff(np.moveaxis(RGB[..., :2], 2, 0), photometric="minisblack", planarconfig="separate", extrasamples=["unassalpha"]),
        2,
        (),
        RGB[..., :2],
    ),
    "tiff of 32 bits with a range": (
        tiff(np.uint32([[0, 2**31, 2**32 - 1]])),
        1,
        (0, 2**32 - 1),
        np.uint8([[0, 128, 255]])[..., None],
    ),
    "tiff signed with a range": (tiff(np.int16([[-100, 0, 100]])), 1, (-100, 100), np.uint8([[0, 128, 255]])[..., None]),
}


@pytest.mark.parametrize("name", IMAGES)
def test_every_reader_sees_the_same_pixels(name, tmp_path):
    data, channels, value_range, expected = IMAGES[name]
    pixels = decode_image(data, channels, value_range)
    if expected is not None:
        np.testing.assert_array_equal(pixels, expected, strict=True)
    (trained,), samples = in_training(data, tmp_path, channels, value_range)
    np.testing.assert_array_equal(trained, pixels, strict=True)
    checked, _ = read_sample(samples, 0)
    np.testing.assert_array_equal(checked, pixels, strict=True)
    assert read_size(io.BytesIO(data)) == pixels.shape[:2] == samples.store.size(samples, 0)


COLORS = Image.fromarray(RGB)
MASKS = {
    "png grey": (save(Image.fromarray(GREY), format="PNG"), GREY),
    "png 1 bit": (png(IDS, 1), IDS),
    "png 2 bits": (png(GREY // 64, 2), GREY // 64),
    "png 4 bits": (png(GREY // 16, 4), GREY // 16),
    "png 16 bits": (png(GREY, 16), GREY),
    "png palette": (save(palette_picture, format="PNG"), GREY // 16),
    "png palette of 4 bits": (png(GREY // 16, 4, color_type=3), GREY // 16),
    "png grey as rgb": (save(Image.fromarray(grey3), format="PNG"), GREY),
    "png opaque": (save(Image.fromarray(np.dstack([grey3, np.full_like(GREY, 255)])), format="PNG"), GREY),
    "tiff grey": (tiff(GREY), GREY),
    "tiff lzw": (save(Image.fromarray(GREY), format="TIFF", compression="tiff_lzw"), GREY),
    "tiff 1 bit": (save(Image.fromarray(IDS > 0), format="TIFF"), IDS),
    "tiff 16 bits": (tiff(GREY.astype(np.uint16)), GREY),
    "tiff palette": (save(palette_picture, format="TIFF"), GREY // 16),
    "tiff 32 bits": (tiff(GREY.astype(np.int32)), GREY),
    "tiff big-endian of 16 bits, compressed": (tiff(GREY.astype(np.int16), byteorder=">", compression="zlib"), GREY),
    "tiff big-endian of 32 bits, compressed": (tiff(GREY.astype(np.int32), byteorder=">", compression="zlib"), GREY),
    "bmp grey": (save(Image.fromarray(GREY), format="BMP"), GREY),
    "bmp palette": (save(palette_picture, format="BMP"), GREY // 16),
    "bmp 1 bit": (bmp(IDS, 1, (0, 255)), IDS),
    "bmp 1 bit with a short header": (bmp(IDS, 1, (0, 255), header=12), IDS),
    "bmp black and white of 4 bits": (bmp(IDS, 4, (0, 255)), IDS),
    "bmp black and white of 8 bits": (bmp(IDS, 8, (0, 255)), IDS),
    "bmp white and black of 8 bits": (bmp(IDS, 8, (255, 0)), IDS),
    "bmp black and white, compressed": (bmp(IDS, 8, (0, 255), compression=1), IDS),
    "bmp black and white by Pillow": (save(black_and_white, format="BMP"), IDS),
    "bmp grey of 4 bits": (bmp(GREY // 16, 4, range(16)), GREY // 16),
    "bmp black of 1 bit": (bmp(0 * IDS, 1, (0,)), 0 * IDS),
    "bmp grey of 8 bits with few colours": (bmp(GREY // 64, 8, range(4)), GREY // 64),
    "webp lossless": (save(Image.fromarray(grey3), format="WEBP", lossless=True), GREY),
    "webp lossless with a colour profile": (
        save(Image.fromarray(grey3), format="WEBP", lossless=True, icc_profile=bytes(101)),
        GREY,
    ),
    "gif": (save(palette_picture, format="GIF", optimize=False), GREY // 16),
}


@pytest.mark.parametrize("name", MASKS)
def test_ids_are_read_exactly_and_never_scaled(name, tmp_path):
    data, expected = MASKS[name]
    np.testing.assert_array_equal(decode_mask(data, is_color=False), expected, strict=True)
    (_, trained), _ = in_training(save(COLORS, format="PNG"), tmp_path, mask=data)
    np.testing.assert_array_equal(trained, expected, strict=True)


def test_an_array_of_ids_is_read(tmp_path):
    file = io.BytesIO()
    np.save(file, GREY.astype(np.int64))
    np.testing.assert_array_equal(decode_mask(file.getvalue(), is_color=False), GREY, strict=True)
    file = io.BytesIO()
    np.save(file, np.eye(3, dtype=np.uint8)[IDS])
    with pytest.raises(FormatError, match=r"has the shape \(5, 7, 3\)\. Save one id per pixel.*argmax"):
        decode_mask(file.getvalue(), is_color=False)


@pytest.mark.parametrize("is_color", [False, True])
def test_reduced_copies_and_masks_of_valid_pixels_in_a_mask_are_no_pages(is_color):
    pixels = RGB if is_color else GREY
    data = geotiff(pixels, photometric="rgb" if is_color else "minisblack")
    expected = decode_mask(save(Image.fromarray(pixels), format="PNG"), is_color=is_color)
    np.testing.assert_array_equal(decode_mask(data, is_color=is_color), expected, strict=True)
    with pytest.raises(FormatError, match="has several frames or pages"):
        decode_mask(several_sizes(0), is_color=True)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP"])
def test_colours_are_read_exactly(format, tmp_path):
    data = save(COLORS, format=format)
    expected = RGB.astype(np.int32) @ np.int32([65536, 256, 1])
    np.testing.assert_array_equal(decode_mask(data, is_color=True), expected, strict=True)
    (_, trained), _ = in_training(save(COLORS, format="PNG"), tmp_path, mask=data, kind="color")
    np.testing.assert_array_equal(trained, expected, strict=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (save(COLORS, format="JPEG"), "is a JPEG file. Lossy compression changes label values"),
        (save(COLORS, format="WEBP"), "is a lossy WEBP file"),
        (save(COLORS, format="TIFF", compression="jpeg"), "is a lossy TIFF file"),
        (save(COLORS, format="PNG"), "is not an id image, because it has colours.*label_kind=color"),
        (save(Image.fromarray(ALPHA), format="PNG"), "has transparent pixels"),
        (png(DEEP[..., 0] | 256, 16), r"holds the id \d+\. Ids must be from 0 to 255"),
        (tiff(GREY.astype(np.float32)), "holds float32 values"),
        (npy(np.zeros((0, 7), np.uint8)), r"has the shape \(0, 7\)\. Save one id per pixel"),
        (tiff(np.stack([GREY, GREY]), photometric="minisblack"), "has several frames or pages"),
        (tiff(np.repeat(IDS[..., None], 3, -1).astype(np.uint16), photometric="rgb"), "several bands with 16 bits per value"),
        (png_rgb_of_16_bits(np.repeat(IDS[..., None], 3, -1)), "several bands with 16 bits per value"),
        (tiff(ALPHA, photometric="rgb", extrasamples=["unspecified"]), "has 4 bands"),
    ],
)
def test_masks_that_cannot_hold_ids_say_why(data, message):
    with pytest.raises(FormatError, match=message):
        decode_mask(data, is_color=False)


@pytest.mark.parametrize(
    ("data", "channels", "message"),
    [
        (save(COLORS, format="PNG"), 4, r"has 3 bands, but `data\.channels` is 4"),
        (tiff(DEEP, photometric="minisblack", planarconfig="contig"), 3, r"has 6 bands, but `data\.channels` is 3"),
        (tiff(ALPHA, photometric="rgb", extrasamples=["unspecified"]), 3, "would drop the last one. Set data.channels=4"),
        (tiff(ALPHA, photometric="rgb", extrasamples=["unspecified"]), 1, "would drop the last one. Set data.channels=4"),
        (save(Image.fromarray(ALPHA), format="TIFF"), 3, "has 4 bands, of which .* would drop the last one"),
        (tiff(DEEP[..., :4], photometric="rgb", extrasamples=["unassalpha"]), 3, "would drop the last one"),
        (tiff(RGB[..., :2], planarconfig="contig", photometric="minisblack"), 1, "Set data.channels=2 to read it"),
        (several_sizes(0), 3, "has several pages of different sizes"),
        (tiff(np.float32([[0.5]])), 3, r"holds float32 values, which have no fixed range\. Set data\.value_range"),
        (tiff(np.int16([[5]])), 1, "holds int16 values"),
        (tiff(np.int32([[5]])), 1, "holds int32 values"),
        (tiff(np.uint32([[5]])), 1, "holds uint32 values"),
        (
            tiff(DEEP, planarconfig="contig", photometric="minisblack", extratags=[(274, 3, 1, 3, False)]),
            6,
            "has the orientation 3",
        ),
        (tiff(DEEP[:, :, :5].transpose(2, 0, 1), photometric="minisblack"), 3, "has several pages"),
    ],
)
def test_images_with_other_bands_or_no_range_say_what_to_set(data, channels, message):
    with pytest.raises(FormatError, match=message):
        decode_image(data, channels)


def test_an_image_that_needs_more_than_half_of_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr("deeplab_jax.data.decode.MEMORY_SHARE", 1e-12)
    with pytest.raises(FormatError, match=r"has 7x5 pixels, which need .* GiB of memory"):
        decode_image(save(COLORS, format="PNG"))


def test_an_orientation_is_read_where_the_pixels_are_not_turned_yet():
    exif = Image.Exif()
    exif[274] = 6
    assert read_orientation(io.BytesIO(save(COLORS, format="JPEG", exif=exif))) == 6
    assert read_orientation(io.BytesIO(save(COLORS, format="TIFF", exif=exif))) == 1  # Pillow turns it
    assert read_orientation(io.BytesIO(b"no image")) == 1


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientations_without_a_meaning_are_upright(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    assert read_orientation(io.BytesIO(save(COLORS, format="JPEG", exif=exif))) == 1
    many = tiff(DEEP, planarconfig="contig", photometric="minisblack", extratags=[(274, 3, 1, orientation, False)])
    assert decode_image(many, 6).shape == DEEP.shape
