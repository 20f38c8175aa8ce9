"""Which values or colours the label files of a data set hold, and a label set to begin with."""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from etils import epath
from PIL import Image

from deeplab_jax.data.lists import Samples
from deeplab_jax.data.read import reason
from deeplab_jax.errors import DataError
from deeplab_jax.labels import IGNORE, Color, LabelSet, color_of, voc_color
from deeplab_jax.runtime.machine import usable_cores

MAX_VALUES = 255


@dataclasses.dataclass(slots=True)
class Found:
    """One value or 24-bit colour: how many pixels, in how many files, and the file with most of them."""

    pixels: int = 0
    files: int = 0
    example: str = ""
    most: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Survey:
    """What label files hold.

    Attributes:
      is_color: whether the values are 24-bit colours.
      values: by value, rising.
      palette: colours of the values, where files of ids have a palette; else empty.
      files: how many were read.
      problems: what is wrong with others, which training would not read.
    """

    is_color: bool
    values: dict[int, Found]
    palette: dict[int, Color]
    files: int
    problems: tuple[str, ...]


def survey(samples: list[Samples], on_file: Callable[[], None] = lambda: None, threads: int = 0) -> Survey:
    """Opens every label file of some splits.

    Args:
      samples: splits of one data set, of one kind.
      on_file: called after each file, to show progress.
      threads: files that are read at once; 0 for as many as there are cores.

    Raises:
      DataError: the splits' kinds differ, they are no files, none can be read, or there are more than 255 values.
    """
    if any(each.store is not None for each in samples):
        raise DataError(f"{samples[0].root} holds no mask files: give the folder of the images and masks it was made of")
    kinds = sorted({each.kind for each in samples})
    if len(kinds) > 1:
        raise DataError(f"the splits have labels of the kinds {' and '.join(kinds)}: survey them one at a time with --splits")
    is_color = kinds == ["color"]
    names = list(dict.fromkeys((each.root, name) for each in samples for name in each.labels))
    values: dict[int, Found] = {}
    palette: dict[int, Color] = {}
    problems = []
    read = in_parallel(lambda name: _read(epath.Path(name[0]) / name[1], is_color), names, threads)
    for (root, name), (counts, colors, problem) in zip(names, read, strict=True):
        problems += [f"{root}/{name} {problem}"] if problem else []
        for value, pixels in counts.items():
            found = values.setdefault(value, Found())
            found.pixels, found.files = found.pixels + pixels, found.files + 1
            if pixels > found.most:
                found.most, found.example = pixels, name
        for value, color in colors.items():
            palette.setdefault(value, color)
        on_file()
        if len(values) > MAX_VALUES + 1 - is_color:  # 256 ids with the ignored one
            raise DataError(_too_many(values, f"{root}/{name}"))
    if not values:
        raise DataError(problems[0] if problems else "the splits have no label files: name splits that have, with --splits")
    return Survey(is_color, dict(sorted(values.items())), palette, len(names) - len(problems), tuple(problems))


def show(value: int, is_color: bool) -> str:
    """A value as a person writes it: 7, or 128,64,128."""
    return ",".join(str(part) for part in value.to_bytes(3, "big")) if is_color else str(value)


def _too_many(values: dict[int, Found], last: str) -> str:
    often = sorted(values, key=lambda value: -values[value].pixels)[:8]
    shown = "; ".join(f"{show(value, True)} ({values[value].pixels} pixels)" for value in often)
    return (
        f"more than {MAX_VALUES} distinct colours up to {last}: masks that were resized with blending or saved as JPEG have "
        f"them; make them again from the originals, resized without interpolation, as PNG. Most frequent: {shown}"
    )


Read = tuple[dict[int, int], dict[int, Color], str]


Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(work: Callable[[Item], Result], items: Sequence[Item], threads: int) -> Iterator[Result]:
    """What `work` gives for each item, in order, which should be small: it is kept until asked for.

    Decoding lets other threads run. Pixels are in memory of as many images as there are threads, 0 for one a core.
    """
    pool = concurrent.futures.ThreadPoolExecutor(threads or usable_cores())
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _read(path: epath.Path, is_color: bool) -> Read:
    """Pixels by value, the palette's colours of these values, and what is wrong, "" for nothing."""
    try:
        with path.open("rb") as file, Image.open(file) as picture:
            picture.load()
            # What Pillow calls 4-bit grey "L" for, stretched to 0-255.
            bits = path.read_bytes()[24] if picture.format == "PNG" else 8
            problem = _objection(picture, bits, is_color)
            if problem:
                return {}, {}, problem
            if not is_color:
                counts = np.bincount(np.asarray(picture, np.uint8).ravel(), minlength=256)
                pixels = {value: int(counts[value]) for value in np.flatnonzero(counts).tolist()}
                return pixels, _palette(picture, pixels), ""
            rgb = np.asarray(picture.convert("RGB"), np.int32)
    except (OSError, SyntaxError, ValueError) as error:
        return {}, {}, f"cannot be read ({reason(error)}): replace it or take it off the list"
    pixels = count_runs((rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]).ravel())
    lossy = f"is a {picture.format} file: labels must be PNG, which keeps values exact" if picture.format != "PNG" else ""
    return pixels, {}, lossy


def _objection(picture: Image.Image, bits: int, is_color: bool) -> str:
    if is_color:
        return "has 16 bits a value: save it with 8" if bits > 8 else ""
    if picture.format != "PNG":
        return f"is a {picture.format} file: labels must be PNG, which keeps values exact"
    if picture.mode not in ("L", "P", "1") or bits > 8:
        return f"is no 8-bit id image (mode {picture.mode}), as others of the set are: save it as 8-bit grey PNG"
    if picture.mode != "P" and bits < 8:
        return f"has {bits} bits a value: save it as 8-bit grey PNG"
    return ""


def count_runs(values: np.ndarray) -> dict[int, int]:
    """How often each value of a flat array occurs. Sorting runs is far faster than sorting pixels."""
    starts = np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1])
    lengths = np.diff(starts, append=len(values))
    found, where = np.unique(values[starts], return_inverse=True)
    return dict(zip(found.tolist(), np.bincount(where, weights=lengths).astype(np.int64).tolist(), strict=True))


def _palette(picture: Image.Image, values: dict[int, int]) -> dict[int, Color]:
    flat = picture.getpalette() if picture.mode == "P" else None
    if not flat:
        return {}
    return {v: (flat[3 * v], flat[3 * v + 1], flat[3 * v + 2]) for v in values if 3 * v + 2 < len(flat)}


def propose(name: str, found: Survey, expected: LabelSet | None, known: dict[str, LabelSet]) -> tuple[LabelSet, list[str]]:
    """A label set for what was found, and what it assumes, a line each.

    Args:
      name: of the label set.
      found: the label files' values.
      expected: the set that the folder layout stands for, if it does for one.
      known: sets to compare with.

    Raises:
      DataError: there are fewer than two values.
    """
    if expected and _fits(found, expected) and _has_most(found, expected):
        return expected, [f"the folders are those of {expected.name}, and so are all values: its classes are taken"]
    for candidate in known.values() if found.is_color or found.palette else ():
        if _looks_like(found, candidate):
            return candidate, [f"the colours are those of {candidate.name}: its classes are taken"]
    if len(found.values) < 2:
        only = show(next(iter(found.values)), found.is_color)
        raise DataError(f"the label files hold the value {only} and no other: training needs two classes")
    return _of_colors(name, found) if found.is_color else _of_ids(name, found, known)


def _of_colors(name: str, found: Survey) -> tuple[LabelSet, list[str]]:
    colors = tuple(color_of(value) for value in found.values)
    said = ["assumed that every colour is a class"]
    if 0 in found.values:
        said.append("assumed that black is a class as well: if it means unlabelled, move it from classes to ignored_colors")
    if all(r == g == b for r, g, b in colors):
        said.append("every colour is a grey: if the masks are ids saved as RGB, save them as 8-bit grey PNG and run this again")
    names = tuple(f"class {i}" for i in range(len(colors)))
    return LabelSet(name, names, colors, ignored_colors=() if 0 in found.values else ((0, 0, 0),)), said


def _of_ids(name: str, found: Survey, known: dict[str, LabelSet]) -> tuple[LabelSet, list[str]]:
    values = list(found.values)
    binary = values == [0, IGNORE]
    ids = tuple(value for value in values if binary or value != IGNORE)
    if len(ids) < 2:
        raise DataError(f"the label files hold the value {ids[0]} and else what is ignored (255): training needs two classes")
    said = ["assumed that every value is a class" + (", 255 too beside 0" if binary else "; 255 is ignored")]
    if 0 in ids:
        said.append("assumed that 0 is a class as well: if it means unlabelled, move it from classes to ignored_ids")
    for like in known.values():
        if set(values) - {IGNORE} in (set(like.class_ids), set(like.class_ids + like.ignored_ids) - {IGNORE}):
            said.append(
                f"the values are those of {like.name} too: if they mean the same, use --config=configs/custom.py:{like.name}"
            )
    colors = tuple(found.palette.get(value, (0, 0, 0)) for value in ids)
    if len(set(colors)) < len(colors):
        # Black is left for what is ignored.
        colors = tuple(voc_color(value + 1) for value in ids)
    # Ids that count from 0 without a gap are what a label set has that names none.
    given = () if ids == tuple(range(len(ids))) else ids
    named = tuple(f"class {value}" for value in ids)
    return LabelSet(name, named, colors, ids=given, ignored_ids=() if binary else (IGNORE,)), said


def _fits(found: Survey, labels: LabelSet) -> bool:
    """Whether the label set has every value."""
    if found.is_color:
        return {color_of(value) for value in found.values} <= set(labels.colors + labels.ignored_colors)
    return set(found.values) <= set(labels.class_ids + labels.ignored_ids)


def _has_most(found: Survey, labels: LabelSet) -> bool:
    """Whether more than half of the label set's classes are there."""
    if found.is_color:
        seen = {color_of(value) for value in found.values} & set(labels.colors)
        return 2 * len(seen) > labels.num_classes
    return 2 * len(set(found.values) & set(labels.class_ids)) > labels.num_classes


def _looks_like(found: Survey, labels: LabelSet) -> bool:
    """Whether colours tell that the values mean the label set's classes."""
    if found.is_color:
        return _fits(found, labels) and _has_most(found, labels)
    classes = dict(zip(labels.class_ids, labels.colors, strict=True))
    shown = {value: color for value, color in found.palette.items() if value in classes}
    # Many tools write VOC's palette, whatever their classes mean: all of them must be there.
    return _fits(found, labels) and shown == classes
