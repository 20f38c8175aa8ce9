"""Regions of an image, and the only code that turns them into pixels.

A figure draws itself as the tool that it comes from would draw it, because tools disagree about the pixels on an outline:

- `Outline`, `Rectangle` and `Circle` draw with Pillow, as LabelMe does. The pixels on the outline belong to the figure.
- `CocoPolygons` and `CocoRle` draw with pycocotools, which COCO, CVAT and Roboflow use.
- `Ellipse`, `Bitmap` and `EncodedBitmap` are the same for all tools.

Coordinates are (x, y) in pixels from the top left corner of the image.
"""

import dataclasses
import functools
import io
import warnings
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw

from deeplab_jax.data.importers.extra import import_extra
from deeplab_jax.errors import DataError, one_line

Point = tuple[float, float]
Ring = tuple[Point, ...]
Extent = tuple[float, float, float, float]


class Figure(Protocol):
    """A region of an image."""

    def extent(self) -> Extent | None:
        """Return the smallest and largest coordinates (left, top, right, bottom), or None if they are always in the image."""

    def draw(self, height: int, width: int) -> np.ndarray:
        """Return the region's pixels, bool [h, w]. What lies beyond the image is cut off.

        Raises:
          DataError: The figure is damaged or belongs to an image of a different size.
        """


@dataclasses.dataclass(frozen=True, slots=True)
class Outline:
    """A polygon with holes, drawn with Pillow. The pixels on the outline of a hole belong to the hole."""

    points: Ring
    holes: tuple[Ring, ...] = ()

    def extent(self) -> Extent | None:
        """See `Figure.extent`."""
        return _extent(self.points)

    def draw(self, height: int, width: int) -> np.ndarray:
        """See `Figure.draw`."""
        canvas, pen = _canvas(height, width)
        pen.polygon(list(self.points), outline=1, fill=1)
        for hole in self.holes:
            pen.polygon(list(hole), outline=0, fill=0)
        return np.array(canvas, bool)


@dataclasses.dataclass(frozen=True, slots=True)
class Rectangle:
    """An upright rectangle given by two opposite corners or all four, drawn with Pillow."""

    corners: Ring

    def extent(self) -> Extent | None:
        """See `Figure.extent`."""
        return _extent(self.corners)

    def draw(self, height: int, width: int) -> np.ndarray:
        """See `Figure.draw`."""
        canvas, pen = _canvas(height, width)
        pen.rectangle(_extent(self.corners), outline=1, fill=1)
        return np.array(canvas, bool)


@dataclasses.dataclass(frozen=True, slots=True)
class Circle:
    """A circle, drawn with Pillow."""

    center: Point
    radius: float

    def extent(self) -> Extent:
        """See `Figure.extent`."""
        (x, y), r = self.center, self.radius
        return x - r, y - r, x + r, y + r

    def draw(self, height: int, width: int) -> np.ndarray:
        """See `Figure.draw`."""
        canvas, pen = _canvas(height, width)
        pen.ellipse(self.extent(), outline=1, fill=1)
        return np.array(canvas, bool)


@dataclasses.dataclass(frozen=True, slots=True)
class Ellipse:
    """An ellipse that is turned clockwise by `rotation` degrees.

    As in CVAT's export of masks, the centre and the radii are rounded to whole pixels.
    """

    center: Point
    radii: Point
    rotation: float = 0.0

    def extent(self) -> Extent | None:
        """See `Figure.extent`."""
        (x, y), (rx, ry) = self.center, self.radii
        turn = np.deg2rad(self.rotation)
        dx, dy = np.hypot(rx * np.cos(turn), ry * np.sin(turn)), np.hypot(rx * np.sin(turn), ry * np.cos(turn))
        return float(x - dx), float(y - dy), float(x + dx), float(y + dy)

    def draw(self, height: int, width: int) -> np.ndarray:
        """See `Figure.draw`."""
        y, x = np.ogrid[:height, :width]
        dx, dy = x - round(self.center[0]), y - round(self.center[1])
        turn = np.deg2rad(self.rotation)
        along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
        # Half a pixel more, so that the pixels at the ends of the axes are inside, as in OpenCV.
        rx, ry = (round(radius) + 0.5 for radius in self.radii)
        return np.asarray((along / rx) ** 2 + (across / ry) ** 2 <= 1)


@dataclasses.dataclass(frozen=True, slots=True)
class CocoPolygons:
    """The union of polygons, drawn with pycocotools."""

    rings: tuple[Ring, ...]

    def extent(self) -> Extent | None:
        """See `Figure.extent`."""
        return _extent(tuple(point for ring in self.rings for point in ring))

    def draw(self, height: int, width: int) -> np.ndarray:
        """See `Figure.draw`."""
        coco = _import_coco()
        rings = [[coordinate for point in ring for coordinate in point] for ring in self.rings]
        return _decode_coco(coco, coco.merge(coco.frPyObjects(rings, height, width)))


@dataclasses.dataclass(frozen=True, slots=True)
class CocoRle:
    """COCO's run lengths.

    Attributes:
      size: The image's (height, width).
      counts: The run lengths, column by column and beginning with the background, or pycocotools' compressed form of them.
    """

    size: tuple[int, int]
    counts: tuple[int, ...] | str

    def extent(self) -> Extent | None:
        """See `Figure.extent`."""
        return None

    def draw(self, height: int, width: int) -> np.ndarray:
        """See `Figure.draw`."""
        if self.size != (height, width):
            raise DataError(f"run lengths for {self.size[1]}x{self.size[0]} pixels on an image of {width}x{height}")
        counts = decompress_runs(self.counts) if isinstance(self.counts, str) else self.counts
        return decode_runs(counts, width, height).T


@dataclasses.dataclass(frozen=True, slots=True)
class Bitmap:
    """A bitmap, bool [h, w], whose first pixel lies at the column `left` and the row `top` of the image."""

    mask: np.ndarray
    left: int = 0
    top: int = 0

    def extent(self) -> Extent | None:
        """See `Figure.extent`."""
        height, width = self.mask.shape
        return self.left, self.top, self.left + width, self.top + height

    def draw(self, height: int, width: int) -> np.ndarray:
        """See `Figure.draw`."""
        canvas = np.zeros((height, width), bool)
        top, left = max(self.top, 0), max(self.left, 0)
        inside = self.mask[top - self.top :, left - self.left :][: max(height - top, 0), : max(width - left, 0)]
        canvas[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        return canvas


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedBitmap:
    """A bitmap in an image file's bytes. With a transparent channel, this channel is the bitmap. It is decoded when drawn.

    Attributes:
      data: The bytes of a PNG file.
      left: The column of the bitmap's first pixel in the image.
      top: The row of the bitmap's first pixel in the image.
      size: The (height, width) that the bitmap must have, or None for any.
    """

    data: bytes
    left: int = 0
    top: int = 0
    size: tuple[int, int] | None = None

    def extent(self) -> Extent | None:
        """See `Figure.extent`."""
        return self._decode().extent()

    def draw(self, height: int, width: int) -> np.ndarray:
        """See `Figure.draw`."""
        return self._decode().draw(height, width)

    def _decode(self) -> Bitmap:
        try:
            with Image.open(io.BytesIO(self.data)) as picture:
                values: np.ndarray = np.array(picture)
        except Exception as error:  # Pillow raises many error types
            raise DataError(f"a bitmap that cannot be decoded ({one_line(error)})") from None
        if values.ndim == 3:
            values = values[..., -1] if values.shape[-1] in (2, 4) else values.max(-1)
        if self.size and values.shape != self.size:
            shapes = f"{values.shape[1]}x{values.shape[0]} pixels in a box of {self.size[1]}x{self.size[0]}"
            raise DataError(f"a bitmap of {shapes}")
        return Bitmap(values.astype(bool), self.left, self.top)


@dataclasses.dataclass(frozen=True, slots=True)
class FileRegion:
    """The pixels of an image file that have one value: a grey value or palette index, or 65536 b + 256 g + r."""

    path: Path
    value: int

    def extent(self) -> Extent | None:
        """See `Figure.extent`."""
        return None

    def draw(self, height: int, width: int) -> np.ndarray:
        """See `Figure.draw`."""
        values = read_mask_values(self.path)
        if values.shape != (height, width):
            shapes = f"{values.shape[1]}x{values.shape[0]} pixels for an image of {width}x{height}"
            raise DataError(f"the mask {self.path} has {shapes}")
        region = values == self.value
        if not region.any():  # for example, because red and blue are swapped
            raise DataError(f"the mask {self.path} has no pixels with the id {self.value}")
        return np.asarray(region)


@dataclasses.dataclass(frozen=True, slots=True)
class Damaged:
    """A shape that could not be read. Drawing it fails, so that its image is left out."""

    where: str

    def extent(self) -> Extent | None:
        """See `Figure.extent`."""
        return None

    def draw(self, height: int, width: int) -> np.ndarray:
        """See `Figure.draw`."""
        raise DataError(self.where)


@functools.lru_cache(maxsize=1)  # an image's regions follow each other
def read_mask_values(path: Path) -> np.ndarray:
    """Read a file of grey values or palette indices, or of colours as 65536 b + 256 g + r (COCO panoptic), int [h, w].

    Raises:
      DataError: The file cannot be read.
    """
    try:
        with Image.open(path) as picture:
            values = np.array(picture if picture.mode in ("L", "P", "1", "RGB") else picture.convert("RGB"), np.int64)
    except Exception as error:  # Pillow raises many error types
        raise DataError(f"the mask {path} cannot be read ({one_line(error)})") from None
    return values if values.ndim == 2 else values @ np.array([1, 256, 65536])


def decode_runs(counts: tuple[int, ...], height: int, width: int) -> np.ndarray:
    """Return the bitmap, bool [h, w], of run lengths that go row by row and begin with the background.

    Raises:
      DataError: The lengths do not add up to h * w.
    """
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise DataError(f"run lengths that add up to {sum(counts)} pixels instead of {height * width}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)


def decompress_runs(text: str) -> tuple[int, ...]:
    """Return the run lengths of pycocotools' compressed form, which pycocotools itself would decode without any check.

    A character holds 5 bits, and a 6th that is set if the number continues. From the fourth number on, a number is the
    difference from the one two places before it.

    Raises:
      DataError: The text is not in this form.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise DataError(f"run lengths with the character {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) and 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise DataError("run lengths that are cut off")
    return tuple(counts)


def pairs(values: Any) -> Ring:
    """Return a flat sequence x1, y1, x2, y2, ... as points.

    Raises:
      ValueError: The number of values is odd, or a value is not a finite number.
    """
    numbers = [float(value) for value in values]
    if len(numbers) % 2 or not np.isfinite(numbers).all():
        raise ValueError("coordinates that are not pairs of numbers")
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def _import_coco() -> Any:
    return import_extra("pycocotools.mask", "Polygons and run lengths of this tool")


def _decode_coco(coco: Any, rle: Any) -> np.ndarray:
    with warnings.catch_warnings():
        # pycocotools 2.0.11 does not know NumPy 2's copy keyword, which changes nothing.
        warnings.simplefilter("ignore", DeprecationWarning)
        return coco.decode(rle).astype(bool)


def _canvas(height: int, width: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.new("L", (width, height))
    return canvas, ImageDraw.Draw(canvas)


def _extent(points: Ring) -> Extent:
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)
