"""Find the ids or colours in a data set's label files and propose a label set for them."""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from etils import epath
from PIL import Image

from deeplab_jax.data.image_files import ImageFiles, read_mask
from deeplab_jax.data.samples import Samples
from deeplab_jax.errors import DataError
from deeplab_jax.labels import IGNORE, Color, LabelSet, color_of, distinct_colors
from deeplab_jax.runtime.machine import usable_cores

MAX_VALUES = 255  # the maximum number of values in a data set, not counting the ignored id


@dataclasses.dataclass(slots=True)
class Occurrence:
    """Counts for one label value (an id or a 24-bit colour) over all label files.

    Attributes:
      pixels: The number of pixels with this value.
      files: The number of files that contain this value.
      example: The file with the most pixels of this value.
      max_pixels: The number of pixels with this value in the `example` file.
    """

    pixels: int = 0
    files: int = 0
    example: str = ""
    max_pixels: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Survey:
    """The values found in a data set's label files.

    Attributes:
      is_color: Whether the values are 24-bit colours instead of ids.
      values: A dict mapping each value to its counts, in ascending order.
      palette: A dict mapping ids to palette colours. Empty unless the files hold palette indices.
      files: The number of files that were read.
      problems: A message for each unreadable file. Training cannot read these files either.
    """

    is_color: bool
    values: dict[int, Occurrence]
    palette: dict[int, Color]
    files: int
    problems: tuple[str, ...]


def survey_masks(samples: list[Samples], on_file: Callable[[], None] = lambda: None, threads: int = 0) -> Survey:
    """Read all label files in the given splits and count their values.

    Args:
      samples: Splits from one data set, all with the same label kind.
      on_file: A progress callback that is called after each file.
      threads: The number of files to read in parallel. 0 uses one thread per usable CPU core.

    Raises:
      DataError: The splits have different label kinds, are not stored as image files, have no readable label file, or contain
        more than 255 colours.
    """
    if not all(isinstance(each.store, ImageFiles) for each in samples):
        raise DataError(f"{samples[0].root} holds no mask files. Use the folder with the original images and masks instead.")
    kinds = sorted({each.kind for each in samples})
    if len(kinds) > 1:
        raise DataError(
            f"The splits have labels of different kinds ({' and '.join(kinds)}). "
            "Run the command for one split at a time with --splits."
        )
    is_color = kinds == ["color"]
    names = list(dict.fromkeys((each.root, name) for each in samples for name in each.labels))
    values: dict[int, Occurrence] = {}
    palette: dict[int, Color] = {}
    problems = []
    results = run_in_parallel(lambda name: _count_values(str(epath.Path(name[0]) / name[1]), is_color), names, threads)
    for (root, name), (counts, colors, problem) in zip(names, results, strict=True):
        problems += [problem] if problem else []
        for value, pixels in counts.items():
            occurrence = values.setdefault(value, Occurrence())
            occurrence.pixels, occurrence.files = occurrence.pixels + pixels, occurrence.files + 1
            if pixels > occurrence.max_pixels:
                occurrence.max_pixels, occurrence.example = pixels, name
        palette = colors | palette
        on_file()
        if len(values) > MAX_VALUES + 1 - is_color:  # ids may also include the ignored id
            raise DataError(_explain_too_many(values, f"{root}/{name}"))
    if not values:
        raise DataError(problems[0] if problems else "The splits have no label files. Use --splits to choose other splits.")
    return Survey(is_color, dict(sorted(values.items())), palette, len(names) - len(problems), tuple(problems))


def format_value(value: int, is_color: bool) -> str:
    """Return an id as text, such as "7", or a 24-bit colour as its RGB values, such as "128,64,128"."""
    return ",".join(str(part) for part in value.to_bytes(3, "big")) if is_color else str(value)


def _explain_too_many(values: dict[int, Occurrence], last: str) -> str:
    most_frequent = sorted(values, key=lambda value: -values[value].pixels)[:8]
    shown = "; ".join(f"{format_value(value, True)} ({values[value].pixels} pixels)" for value in most_frequent)
    return (
        f"The masks contain more than {MAX_VALUES} distinct colours. The last file read was {last}. This happens when masks "
        "are resized with interpolation or saved as JPEG. Recreate them from the originals: resize without interpolation and "
        "save as PNG. "
        f"The most frequent colours are: {shown}"
    )


Item = TypeVar("Item")
Result = TypeVar("Result")


def run_in_parallel(work: Callable[[Item], Result], items: Sequence[Item], threads: int) -> Iterator[Result]:
    """Call `work` on each item in a thread pool and yield the results in order.

    The threads run in parallel because image decoding releases the GIL. Each thread works on one item at a time, which limits
    the number of images in memory. The results should be small, because they stay in memory until they are requested.

    Args:
      work: The function to call on each item.
      items: The items to process.
      threads: The number of threads. 0 uses one thread per usable CPU core.
    """
    pool = concurrent.futures.ThreadPoolExecutor(threads or usable_cores())
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _count_values(path: str, is_color: bool) -> tuple[dict[int, int], dict[int, Color], str]:
    """Count the values in a label file.

    Returns:
      The pixel count for each value, the palette colour for each value, and an error message. If the file is readable, the
      message is "". Otherwise, the two dicts are empty.
    """
    try:
        counts = count_runs(read_mask(path, is_color=is_color).ravel())
    except DataError as error:
        return {}, {}, str(error)
    return counts, {} if is_color else _read_palette(path, counts), ""


def _read_palette(path: str, values: dict[int, int]) -> dict[int, Color]:
    """Return the palette colour for each value, or {} if the file has no palette. Does not decode any pixels."""
    with epath.Path(path).open("rb") as file, Image.open(file) as picture:
        if picture.palette is None:
            return {}
        flat = picture.palette.getdata()[1]
    return {v: (flat[3 * v], flat[3 * v + 1], flat[3 * v + 2]) for v in values if 3 * v + 2 < len(flat)}


def count_runs(values: np.ndarray) -> dict[int, int]:
    """Count how often each value occurs in a flat array.

    Grouping the pixels into runs of equal values first is much faster than sorting all pixels.
    """
    starts = np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1])
    lengths = np.diff(starts, append=len(values))
    distinct, where = np.unique(values[starts], return_inverse=True)
    return dict(zip(distinct.tolist(), np.bincount(where, weights=lengths).astype(np.int64).tolist(), strict=True))


def propose_labels(
    name: str, survey: Survey, expected: LabelSet | None, label_sets: dict[str, LabelSet]
) -> tuple[LabelSet, list[str]]:
    """Return a label set for the values in the label files, and a note for each assumption made.

    Args:
      name: The name for a new label set.
      survey: The values in the label files.
      expected: The label set implied by the folder layout, or None.
      label_sets: The built-in label sets to compare the values with.

    Raises:
      DataError: The label files contain fewer than two possible classes.
    """
    if expected and _covers(expected, survey) and _uses_most_classes(survey, expected):
        return expected, [f"The folders and all values match the label set {expected.name}, so its classes are used."]
    for candidate in label_sets.values() if survey.is_color or survey.palette else ():
        if _matches_colors(survey, candidate):
            return candidate, [f"The colours match the label set {candidate.name}, so its classes are used."]
    if len(survey.values) < 2:
        only = format_value(next(iter(survey.values)), survey.is_color)
        raise DataError(
            f"The only value in the label files is {only}, but training needs at least two classes. Check the masks."
        )
    return _propose_for_colors(name, survey) if survey.is_color else _propose_for_ids(name, survey, label_sets)


def _propose_for_colors(name: str, survey: Survey) -> tuple[LabelSet, list[str]]:
    colors = tuple(color_of(value) for value in survey.values)
    notes = ["Assumed that every colour is a class."]
    if 0 in survey.values:
        notes.append("Assumed that black is also a class. If it means unlabelled, move it from classes to ignored_colors.")
    if all(r == g == b for r, g, b in colors):
        notes.append(
            "All colours are shades of grey. If the masks hold ids saved as RGB, save them as 8-bit grey PNG files and run "
            "this command again."
        )
    names = tuple(f"class {i}" for i in range(len(colors)))
    return LabelSet(name, names, colors, ignored_colors=() if 0 in survey.values else ((0, 0, 0),)), notes


def _propose_for_ids(name: str, survey: Survey, label_sets: dict[str, LabelSet]) -> tuple[LabelSet, list[str]]:
    values = list(survey.values)
    is_binary = values == [0, IGNORE]
    ids = tuple(value for value in values if is_binary or value != IGNORE)
    if len(ids) < 2:
        raise DataError(
            f"The only value in the label files is {ids[0]}, apart from 255, which is ignored. "
            "Training needs at least two classes. Check the masks."
        )
    note = "Assumed that 0 and 255 are two classes." if is_binary else "Assumed that every value is a class. 255 is ignored."
    notes = [note]
    if 0 in ids:
        notes.append("Assumed that 0 is also a class. If it means unlabelled, move it from classes to ignored_ids.")
    for similar in label_sets.values():
        train_ids = similar.train_id_of_id()
        classes = {value for value, train_id in train_ids.items() if train_id != IGNORE}
        if set(values) - {IGNORE} in (classes, set(train_ids) - {IGNORE}):
            notes.append(
                f"The label set {similar.name} has the same values. If they have the same meaning, use "
                f"--config=configs/custom.py:{similar.name}."
            )
    colors = tuple(survey.palette.get(value, (0, 0, 0)) for value in ids)
    if len(set(colors)) < len(colors):
        colors = distinct_colors(len(ids))
    # A label set without explicit ids numbers its classes from 0.
    explicit_ids = () if ids == tuple(range(len(ids))) else ids
    names = tuple(f"class {value}" for value in ids)
    return LabelSet(name, names, colors, ids=explicit_ids, ignored_ids=() if is_binary else (IGNORE,)), notes


def _covers(labels: LabelSet, survey: Survey) -> bool:
    """Check whether the label set defines every value in the label files, as a class or as an ignored value."""
    if survey.is_color:
        return {color_of(value) for value in survey.values} <= labels.train_id_of_color().keys()
    return set(survey.values) <= labels.train_id_of_id().keys()


def _uses_most_classes(survey: Survey, labels: LabelSet) -> bool:
    """Check whether more than half of the values that have a class in the label set are present in the label files."""
    groups: Sequence[Sequence[Any]] = labels.colors_by_class if survey.is_color else labels.ids_by_class
    values = {value for group in groups for value in group}
    seen = values.intersection(map(color_of, survey.values) if survey.is_color else survey.values)
    return 2 * len(seen) > len(values)


def _matches_colors(survey: Survey, labels: LabelSet) -> bool:
    """Check whether the colours in the label files match the label set's colours."""
    if survey.is_color:
        return _covers(labels, survey) and _uses_most_classes(survey, labels)
    if labels.more_ids:
        return False  # the colour of each further id is unknown
    classes = dict(zip(labels.class_ids, labels.colors, strict=True))
    palette = {value: color for value, color in survey.palette.items() if value in classes}
    # Require every class to be present: many tools write the VOC palette even when the classes are not VOC's, so the palette
    # alone proves nothing.
    return _covers(labels, survey) and palette == classes
