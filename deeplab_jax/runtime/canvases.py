"""Choose a few canvas sizes for images of many sizes, because every array size needs a program of its own.

Images on one canvas share a program (see `models.extent`). Larger canvases mean fewer programs but more padding. A canvas that
holds images of one size only is that size, and has no padding at all.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, Shaped

Size = tuple[int, int]  # a height and width, in pixels

MAX_PROGRAMS = 8
# A canvas has at most this many times the pixels of the largest image, so that padding does not exhaust the memory.
MAX_GROWTH = 1.5
# Every canvas's height and width are multiples of this number, and so divisible by the strides of every network.
UNIT = 32
# The heights and widths of the standard canvases, up to the first factor of two. Each is about a quarter more than the last.
STANDARD_SIDES = (256, 320, 416)
MAX_SIDES = 24  # the largest number of heights, and of widths, that are tried
_NO_CANVAS = 1e15  # the cost of an image that no canvas holds


def choose_canvases(counts: Mapping[Size, int], *, compile_pixels: int, limit: int = MAX_PROGRAMS) -> dict[Size, Size]:
    """Return the canvas for each image size, chosen to take little time.

    The number of canvases is at most `limit`, unless that would need a canvas of more than MAX_GROWTH times the pixels of the
    largest image. (Sides are rounded up to a multiple of UNIT first.)

    Args:
      counts: The number of images of each size.
      compile_pixels: How many pixels are processed in the time that it takes to compile a program.
      limit: The largest number of canvases.
    """
    sizes = np.array(list(counts))
    candidates = np.array(list(itertools.product(_choose_sides(sizes[:, 0]), _choose_sides(sizes[:, 1]))), float)
    candidates = candidates[candidates.prod(1) <= MAX_GROWTH * (-(-sizes // UNIT) * UNIT).prod(1).max()]
    holds = (candidates[:, None] >= sizes[None]).all(2)
    costs = np.where(holds, candidates.prod(1)[:, None], _NO_CANVAS) * np.array(list(counts.values()))
    chosen = _choose_rows(costs, compile_pixels, limit)
    groups: dict[Any, list[Size]] = {}
    for size, row, cost in zip(counts, costs[chosen].argmin(0).tolist(), costs[chosen].min(0), strict=True):
        groups.setdefault(row if cost < _NO_CANVAS else size, []).append(size)
    return {size: _bound(group) for group in groups.values() for size in group}


def choose_standard_canvases(counts: Mapping[Size, int], *, compile_pixels: int, limit: int = MAX_PROGRAMS) -> dict[Size, Size]:
    """Return the canvas for each image size, so that the next images of other sizes have the same canvases.

    The programs of standard canvases are therefore likely to be in the compilation cache already. A size for which its standard
    canvas would cost more than a program of its own gets its own program.

    Args:
      counts: The number of images of each size.
      compile_pixels: See `choose_canvases`.
      limit: The largest number of standard canvases.
    """
    standard: dict[Size, int] = {}
    for size, count in counts.items():
        standard[standard_canvas(size)] = standard.get(standard_canvas(size), 0) + count
    chosen = choose_canvases(standard, compile_pixels=0, limit=limit)
    canvases = {size: chosen[standard_canvas(size)] for size in counts}
    for canvas in set(canvases.values()):
        sizes = [size for size in counts if canvases[size] == canvas]
        padding = canvas[0] * canvas[1] - sizes[0][0] * sizes[0][1]
        if len(sizes) == 1 and counts[sizes[0]] * padding > compile_pixels:
            canvases[sizes[0]] = sizes[0]
    return canvases


def standard_canvas(size: Size) -> Size:
    """Return the smallest standard canvas that holds an image."""
    return _standard_side(size[0]), _standard_side(size[1])


def list_standard_canvases(max_pixels: int) -> list[Size]:
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

    canvases = [canvas for canvas in itertools.product(sides, sides) if is_used(*canvas)]
    return sorted(canvases, key=lambda canvas: (canvas[0] * canvas[1], canvas))


def place_images(
    images: Sequence[Shaped[np.ndarray, "_ _ c"]] | Shaped[np.ndarray, "n _ _ c"], canvas: Size
) -> tuple[Shaped[np.ndarray, "n h w c"], Int32[np.ndarray, "n 2"]]:
    """Return an array with each image in the top left corner of a canvas, and the images' heights and widths."""
    sizes = np.array([image.shape[:2] for image in images], np.int32)
    placed = np.zeros((len(images), *canvas, images[0].shape[2]), images[0].dtype)
    for row, image in zip(placed, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    return placed, sizes


def describe_canvases(counts: Mapping[Size, int], canvases: Mapping[Size, Size]) -> str:
    """Return a sentence with the number of programs and the share of padding, or "" for images of one size."""
    if len(counts) == 1:
        return ""
    pixels = sum(count * height * width for (height, width), count in counts.items())
    padded = sum(count * canvases[size][0] * canvases[size][1] for size, count in counts.items())
    programs = len(set(canvases.values()))
    plural = "s" if programs > 1 else ""
    return (
        f"The {len(counts)} image sizes need {programs} compiled program{plural}. "
        f"{1 - pixels / padded:.0%} of the processed pixels are padding, which does not change the results."
    )


def _bound(sizes: Iterable[Size]) -> Size:
    """Return the canvas for images of these sizes."""
    sizes = set(sizes)
    if len(sizes) == 1:
        return sizes.pop()
    height, width = (max(lengths) for lengths in zip(*sizes, strict=True))
    return -(-height // UNIT) * UNIT, -(-width // UNIT) * UNIT


def _choose_sides(lengths: np.ndarray) -> list[int]:
    """Return the possible sides of canvases: the images' own, rounded up, or MAX_SIDES of them."""
    sides = np.unique(-(-lengths // UNIT) * UNIT)
    return sides[np.unique(np.linspace(0, len(sides) - 1, min(len(sides), MAX_SIDES)).round().astype(int))].tolist()


def _choose_rows(costs: np.ndarray, cost_of_row: float, limit: int) -> list[int]:
    """Return the rows of `costs` whose elementwise minimum has a small sum, at `cost_of_row` for each row.

    Rows are added one by one and then exchanged one by one, as long as that lowers the sum.
    """
    chosen: list[int] = []

    def find_best(others: list[int]) -> tuple[int, float]:
        lowest = costs[others].min(0) if others else np.full(costs.shape[1], np.inf)
        sums = np.minimum(costs, lowest[None]).sum(1)
        return int(sums.argmin()), float(sums.min())

    total = np.inf
    while True:
        row, lower = find_best(chosen)
        is_worth_it = lower < total if total >= _NO_CANVAS else total - lower > cost_of_row and len(chosen) < limit
        if not is_worth_it:
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
