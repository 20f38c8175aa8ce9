"""Choose a few canvas sizes for images of many sizes, because every array size needs a program of its own.

Images on one canvas share a program (see `models.extent`). Larger canvases mean fewer programs but more padding. A canvas that
holds images of one size only is that size, and has no padding at all.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Shaped

Size = tuple[int, int]  # a height and width, in pixels

MAX_PROGRAMS = 8
# A canvas has at most this many times the pixels of the largest image, so that padding does not exhaust the memory.
MAX_GROWTH = 1.5
# Every canvas's height and width are multiples of this number, and so divisible by the strides of every network.
UNIT = 32
# Larger images have programs of their own, because sampling positions on canvases are 32-bit integers.
MAX_SIDE = 2**13
# The heights and widths of the standard canvases, up to the first factor of two. Each is about a quarter more than the last.
STANDARD_SIDES = (256, 320, 416)
MAX_TRIED = 24  # the largest number of heights, and of widths, that are tried
_NO_CANVAS = 1e15  # the cost of an image that a canvas does not hold


class Canvas(NamedTuple):
    """The arrays of a batch.

    Attributes:
      size: The height and width of the arrays.
      is_exact: Whether all images have this size, so that the program needs no sizes. Otherwise, the images have different
        sizes and lie in the top left corners.
    """

    size: Size
    is_exact: bool

    def holds(self, size: Size) -> bool:
        """Return whether an image of the given height and width belongs in these arrays."""
        return size == self.size if self.is_exact else size[0] <= self.size[0] and size[1] <= self.size[1]


def choose_canvases(counts: Mapping[Size, int], compile_pixels: int) -> dict[Size, Canvas]:
    """Return the canvas for each image size, chosen to take little time.

    There are at most MAX_PROGRAMS canvases. This does not count images with sides above MAX_SIDE, nor images so long that a
    canvas for them and others would have more than MAX_GROWTH times the pixels of the largest image. Each of these sizes has a
    program of its own.

    Args:
      counts: The number of images of each size.
      compile_pixels: How many pixels are processed in the time that it takes to compile a program.
    """
    sizes = np.array(list(counts))
    candidates = np.array(list(itertools.product(_choose_sides(sizes[:, 0]), _choose_sides(sizes[:, 1]))), float)
    candidates = candidates[candidates.prod(1) <= MAX_GROWTH * (-(-sizes // UNIT) * UNIT).prod(1).max()]
    holds = (candidates[:, None] >= sizes[None]).all(2)
    is_held = holds.any(0) & (sizes.max(1) <= MAX_SIDE)
    canvases = {size: Canvas(size, True) for size in counts}
    if is_held.any():
        held = [size for size, each in zip(counts, is_held, strict=True) if each]
        costs = np.where(holds, candidates.prod(1)[:, None], _NO_CANVAS)[:, is_held] * np.array([counts[size] for size in held])
        chosen = costs[_choose_rows(costs, compile_pixels, MAX_PROGRAMS)].argmin(0).tolist()
        for row in set(chosen):
            group = [size for size, each in zip(held, chosen, strict=True) if each == row]
            canvases |= dict.fromkeys(group, _bound(group))
    return canvases


def choose_standard_canvases(counts: Mapping[Size, int], compile_pixels: int) -> dict[Size, Canvas]:
    """Return the canvas for each image size, so that the next images of other sizes have the same canvases.

    The programs of standard canvases are therefore likely to be in the compilation cache already. A size for which its standard
    canvas would cost more than a program of its own gets its own program.

    Args:
      counts: The number of images of each size.
      compile_pixels: See `choose_canvases`. There are also at most MAX_PROGRAMS canvases, with the same exceptions.
    """
    standard: dict[Size, int] = {}
    for size, count in counts.items():
        standard[standard_canvas(size).size] = standard.get(standard_canvas(size).size, 0) + count
    chosen = choose_canvases(standard, compile_pixels=0)
    canvases = {}
    for size, count in counts.items():
        canvas = chosen[standard_canvas(size).size].size
        padding = canvas[0] * canvas[1] - size[0] * size[1]
        is_exact = count * padding > compile_pixels or max(size) > MAX_SIDE
        canvases[size] = Canvas(size, True) if is_exact else Canvas(canvas, False)
    return canvases


def standard_canvas(size: Size) -> Canvas:
    """Return the smallest standard canvas that holds an image.

    If its sides are above 256 pixels, it has at most 1.7 times the pixels of the image.
    """
    if max(size) > MAX_SIDE:
        return Canvas(size, True)
    return Canvas((_standard_side(size[0]), _standard_side(size[1])), False)


def list_standard_canvases(max_pixels: int) -> list[Canvas]:
    """Return the standard canvases for usual photos, smallest first.

    Args:
      max_pixels: The largest number of pixels of a photo. Its longer side is at most twice its shorter side.
    """
    sides = [STANDARD_SIDES[0]]
    while sides[-1] < math.sqrt(2 * max_pixels):
        sides.append(_standard_side(sides[-1] + 1))
    previous = dict(zip(sides[1:], sides, strict=False))

    def is_used(height: int, width: int) -> bool:
        """Return whether a photo within these limits has this canvas."""
        shortest = (previous.get(height, 0) + 1, previous.get(width, 0) + 1)
        return shortest[0] * shortest[1] <= max_pixels and shortest[0] <= 2 * width and shortest[1] <= 2 * height

    used = [size for size in itertools.product(sides, sides) if is_used(*size)]
    return [Canvas(size, False) for size in sorted(used, key=lambda size: (size[0] * size[1], size))]


def place_images(
    images: Sequence[Shaped[np.ndarray, "_ _ c"]] | Shaped[np.ndarray, "n _ _ c"], canvas: Size
) -> tuple[Shaped[np.ndarray, "n h w c"], Int32[np.ndarray, "n 2"]]:
    """Return an array with each image in the top left corner of a canvas, and the images' heights and widths."""
    sizes = np.array([image.shape[:2] for image in images], np.int32)
    placed = np.zeros((len(images), *canvas, images[0].shape[2]), images[0].dtype)
    for row, image in zip(placed, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    return placed, sizes


def describe_canvases(counts: Mapping[Size, int], canvases: Mapping[Size, Canvas]) -> str:
    """Return a sentence with the number of programs and the share of padding, or "" for images of one size."""
    if len(counts) == 1:
        return ""
    pixels = sum(count * height * width for (height, width), count in counts.items())
    padded = sum(count * math.prod(canvases[size].size) for size, count in counts.items())
    programs = len(set(canvases.values()))
    plural = "s" if programs > 1 else ""
    return (
        f"The {len(counts)} image sizes need {programs} compiled program{plural}. "
        f"{1 - pixels / padded:.0%} of the processed pixels are padding, which does not change the results."
    )


def _bound(sizes: Sequence[Size]) -> Canvas:
    """Return the canvas for images of these sizes."""
    if len(sizes) == 1:
        return Canvas(sizes[0], True)
    height, width = (max(lengths) for lengths in zip(*sizes, strict=True))
    return Canvas((-(-height // UNIT) * UNIT, -(-width // UNIT) * UNIT), False)


def _choose_sides(lengths: np.ndarray) -> list[int]:
    """Return the possible sides of canvases: the images' own, rounded up, or MAX_TRIED of them."""
    sides = np.unique(-(-lengths // UNIT) * UNIT)
    return sides[np.unique(np.linspace(0, len(sides) - 1, min(len(sides), MAX_TRIED)).round().astype(int))].tolist()


def _choose_rows(costs: np.ndarray, cost_of_row: float, limit: int) -> list[int]:
    """Return the rows of `costs` whose elementwise minimum has a small sum, at `cost_of_row` for each row.

    Rows are added one by one and then exchanged one by one, as long as that lowers the sum. More than `limit` rows are only
    returned where that many are needed to avoid _NO_CANVAS.
    """
    chosen: list[int] = []

    def find_best(others: list[int]) -> tuple[int, float]:
        lowest = costs[others].min(0) if others else np.full(costs.shape[1], np.inf)
        sums = np.minimum(costs, lowest[None]).sum(1)
        return int(sums.argmin()), float(sums.min())

    total = np.inf
    while True:
        row, lower = find_best(chosen)
        is_worth_it = total - lower > cost_of_row and len(chosen) < limit
        if total < _NO_CANVAS and not is_worth_it:
            return chosen
        chosen, total = [*chosen, row], lower
        improves = True
        while improves:
            improves = False
            for i in range(len(chosen)):
                row, lower = find_best(chosen[:i] + chosen[i + 1 :])
                if lower < total:
                    chosen[i], total, improves = row, lower, True


def _standard_side(length: int) -> int:
    if length <= STANDARD_SIDES[0]:
        return max(-(-length // 64) * 64, 64)
    side = next((side for side in STANDARD_SIDES if length <= side), 0)
    return side or 2 * _standard_side(-(-length // 2))
