"""Which values or colours the label files of a data set hold, and a label set to begin with."""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from etils import epath
from PIL import Image

from deeplab_jax.data.image_files import ImageFiles, read_mask
from deeplab_jax.data.samples import Samples
from deeplab_jax.errors import DataError
from deeplab_jax.labels import IGNORE, Color, LabelSet, color_of, voc_color
from deeplab_jax.runtime.machine import usable_cores

MAX_VALUES = 255


@dataclasses.dataclass(slots=True)
class Occurrence:
    """One value or 24-bit colour: in how many pixels and files it occurs, and the file with most of them."""

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
      problems: what is wrong with the others, which training would not read.
    """

    is_color: bool
    values: dict[int, Occurrence]
    palette: dict[int, Color]
    files: int
    problems: tuple[str, ...]


def survey_masks(samples: list[Samples], on_file: Callable[[], None] = lambda: None, threads: int = 0) -> Survey:
    """Open every label file of some splits.

    Args:
      samples: splits of one data set, of one kind.
      on_file: called after each file, to show progress.
      threads: files read at once; 0 for as many as there are cores.

    Raises:
      DataError: the splits' kinds differ, they are no files, none can be read, or there are more than 255 values.
    """
    if not all(isinstance(each.store, ImageFiles) for each in samples):
        raise DataError(f"{samples[0].root} holds no mask files: give the folder of the images and masks it was made of")
    kinds = sorted({each.kind for each in samples})
    if len(kinds) > 1:
        raise DataError(f"the splits have labels of the kinds {' and '.join(kinds)}: survey them one at a time with --splits")
    is_color = kinds == ["color"]
    names = list(dict.fromkeys((each.root, name) for each in samples for name in each.labels))
    values: dict[int, Occurrence] = {}
    palette: dict[int, Color] = {}
    problems = []
    results = in_parallel(lambda name: _count_values(str(epath.Path(name[0]) / name[1]), is_color), names, threads)
    for (root, name), (counts, colors, problem) in zip(names, results, strict=True):
        problems += [problem] if problem else []
        for value, pixels in counts.items():
            occurrence = values.setdefault(value, Occurrence())
            occurrence.pixels, occurrence.files = occurrence.pixels + pixels, occurrence.files + 1
            if pixels > occurrence.most:
                occurrence.most, occurrence.example = pixels, name
        palette = colors | palette
        on_file()
        if len(values) > MAX_VALUES + 1 - is_color:  # 256 ids with the ignored one
            raise DataError(_too_many(values, f"{root}/{name}"))
    if not values:
        raise DataError(problems[0] if problems else "the splits have no label files: name splits that have, with --splits")
    return Survey(is_color, dict(sorted(values.items())), palette, len(names) - len(problems), tuple(problems))


def show_value(value: int, is_color: bool) -> str:
    """Return a value as a person writes it: 7, or 128,64,128."""
    return ",".join(str(part) for part in value.to_bytes(3, "big")) if is_color else str(value)


def _too_many(values: dict[int, Occurrence], last: str) -> str:
    often = sorted(values, key=lambda value: -values[value].pixels)[:8]
    shown = "; ".join(f"{show_value(value, True)} ({values[value].pixels} pixels)" for value in often)
    return (
        f"more than {MAX_VALUES} distinct colours up to {last}: masks that were resized with blending or saved as JPEG have "
        f"them; make them again from the originals, resized without interpolation, as PNG. Most frequent: {shown}"
    )


Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(work: Callable[[Item], Result], items: Sequence[Item], threads: int) -> Iterator[Result]:
    """Yield what `work` returns for each item, in order. It should be small: it is kept until asked for.

    Decoding lets other threads run. Pixels are in memory of as many images as there are threads, 0 for one a core.
    """
    pool = concurrent.futures.ThreadPoolExecutor(threads or usable_cores())
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _count_values(path: str, is_color: bool) -> tuple[dict[int, int], dict[int, Color], str]:
    """Return pixels by value, the palette's colours of these values, and what is wrong, "" for nothing."""
    try:
        counts = count_runs(read_mask(path, is_color=is_color).ravel())
    except DataError as error:
        return {}, {}, str(error)
    return counts, {} if is_color else _read_palette(path, counts), ""


def _read_palette(path: str, values: dict[int, int]) -> dict[int, Color]:
    """Return the colours that a palette gives to `values`. They stand in the file's header: no pixels are decoded."""
    with epath.Path(path).open("rb") as file, Image.open(file) as picture:
        if picture.palette is None:
            return {}
        flat = picture.palette.getdata()[1]
    return {v: (flat[3 * v], flat[3 * v + 1], flat[3 * v + 2]) for v in values if 3 * v + 2 < len(flat)}


def count_runs(values: np.ndarray) -> dict[int, int]:
    """Count how often each value of a flat array occurs. Sorting runs is far faster than sorting pixels."""
    starts = np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1])
    lengths = np.diff(starts, append=len(values))
    distinct, where = np.unique(values[starts], return_inverse=True)
    return dict(zip(distinct.tolist(), np.bincount(where, weights=lengths).astype(np.int64).tolist(), strict=True))


def propose_labels(
    name: str, survey: Survey, expected: LabelSet | None, known: dict[str, LabelSet]
) -> tuple[LabelSet, list[str]]:
    """Return a label set for what the label files hold, and what it assumes, a line each.

    Args:
      name: of the label set.
      survey: of the label files.
      expected: the set that the folder layout stands for, if it does for one.
      known: sets to compare with.

    Raises:
      DataError: there are fewer than two values.
    """
    if expected and _fits(survey, expected) and _has_most(survey, expected):
        return expected, [f"the folders are those of {expected.name}, and so are all values: its classes are taken"]
    for candidate in known.values() if survey.is_color or survey.palette else ():
        if _looks_like(survey, candidate):
            return candidate, [f"the colours are those of {candidate.name}: its classes are taken"]
    if len(survey.values) < 2:
        only = show_value(next(iter(survey.values)), survey.is_color)
        raise DataError(f"the label files hold the value {only} and no other: training needs two classes")
    return _of_colors(name, survey) if survey.is_color else _of_ids(name, survey, known)


def _of_colors(name: str, survey: Survey) -> tuple[LabelSet, list[str]]:
    colors = tuple(color_of(value) for value in survey.values)
    notes = ["assumed that every colour is a class"]
    if 0 in survey.values:
        notes.append("assumed that black is a class as well: if it means unlabelled, move it from classes to ignored_colors")
    if all(r == g == b for r, g, b in colors):
        notes.append(
            "every colour is a grey: if the masks are ids saved as RGB, save them as 8-bit grey PNG and run this again"
        )
    names = tuple(f"class {i}" for i in range(len(colors)))
    return LabelSet(name, names, colors, ignored_colors=() if 0 in survey.values else ((0, 0, 0),)), notes


def _of_ids(name: str, survey: Survey, known: dict[str, LabelSet]) -> tuple[LabelSet, list[str]]:
    values = list(survey.values)
    binary = values == [0, IGNORE]
    ids = tuple(value for value in values if binary or value != IGNORE)
    if len(ids) < 2:
        raise DataError(f"the label files hold the value {ids[0]} and else what is ignored (255): training needs two classes")
    notes = ["assumed that every value is a class" + (", 255 too beside 0" if binary else "; 255 is ignored")]
    if 0 in ids:
        notes.append("assumed that 0 is a class as well: if it means unlabelled, move it from classes to ignored_ids")
    for like in known.values():
        if set(values) - {IGNORE} in (set(like.class_ids), set(like.class_ids + like.ignored_ids) - {IGNORE}):
            notes.append(
                f"the values are those of {like.name} too: if they mean the same, use --config=configs/custom.py:{like.name}"
            )
    colors = tuple(survey.palette.get(value, (0, 0, 0)) for value in ids)
    if len(set(colors)) < len(colors):
        # Black is left for what is ignored.
        colors = tuple(voc_color(value + 1) for value in ids)
    # Ids that count from 0 without a gap are what a label set has that names none.
    given = () if ids == tuple(range(len(ids))) else ids
    named = tuple(f"class {value}" for value in ids)
    return LabelSet(name, named, colors, ids=given, ignored_ids=() if binary else (IGNORE,)), notes


def _fits(survey: Survey, labels: LabelSet) -> bool:
    """Whether the label set has every value."""
    if survey.is_color:
        return {color_of(value) for value in survey.values} <= set(labels.colors + labels.ignored_colors)
    return set(survey.values) <= set(labels.class_ids + labels.ignored_ids)


def _has_most(survey: Survey, labels: LabelSet) -> bool:
    """Whether more than half of the label set's classes are there."""
    if survey.is_color:
        seen = {color_of(value) for value in survey.values} & set(labels.colors)
        return 2 * len(seen) > labels.num_classes
    return 2 * len(set(survey.values) & set(labels.class_ids)) > labels.num_classes


def _looks_like(survey: Survey, labels: LabelSet) -> bool:
    """Whether the colours show that the values mean the label set's classes."""
    if survey.is_color:
        return _fits(survey, labels) and _has_most(survey, labels)
    classes = dict(zip(labels.class_ids, labels.colors, strict=True))
    shown = {value: color for value, color in survey.palette.items() if value in classes}
    # Many tools write VOC's palette, whatever their classes mean: all of them must be there.
    return _fits(survey, labels) and shown == classes
