"""Correct how Pillow is about to decode an open picture, for files that it would misread without an error."""

from typing import IO

from PIL import BmpImagePlugin, Image, ImagePalette, TiffImagePlugin


def correct_decoding(picture: Image.Image, file: IO[bytes]) -> None:
    """Let Pillow decode the values that a file holds.

    Args:
      picture: The open picture, whose pixels are not loaded yet.
      file: Its file.
    """
    if isinstance(picture, BmpImagePlugin.BmpImageFile):
        _correct_bits(picture, file)
    elif isinstance(picture, TiffImagePlugin.TiffImageFile):
        _correct_byte_order(picture)


def _correct_bits(picture: BmpImagePlugin.BmpImageFile, file: IO[bytes]) -> None:
    """Read the palette indices of a BMP with the bits that its header gives.

    Pillow reads 1 bit if the palette is black and white, and 8 bits if the colours are the indices.
    """
    file.seek(0)
    header = file.read(30)
    bits = int.from_bytes(header[24:26] if header[14] == 12 else header[28:30], "little")
    if (picture.mode, bits) not in (("1", 4), ("1", 8), ("L", 1), ("L", 4)):
        return
    tile, greys = picture.tile[0], (0, 255) if picture.mode == "1" else range(2**bits)
    picture._mode, picture.palette = "P", ImagePalette.raw("RGB", bytes(grey for grey in greys for _ in range(3)))
    picture.tile = [tile._replace(args=(BmpImagePlugin.BIT2MODE[bits][1], *(tile.args or ())[1:]))]


def _correct_byte_order(picture: TiffImagePlugin.TiffImageFile) -> None:
    """Read the values of a compressed TIFF in this machine's byte order, in which libtiff returns them.

    Pillow reads floats and signed integers in the byte order of the file.
    """
    tile = picture.tile[0]
    native = {"F;32BF": "F;32NF", "I;16BS": "I;16NS", "I;32BS": "I;32NS"}
    if tile.codec_name == "libtiff" and isinstance(tile.args, tuple) and tile.args[0] in native:
        picture.tile = [tile._replace(args=(native[tile.args[0]], *tile.args[1:]))]
