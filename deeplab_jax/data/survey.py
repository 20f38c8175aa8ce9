"""Count the ids or colours in a data set's label files, and propose a label set for them."""

import collections
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath

from deeplab_jax.data.image_files import ImageFiles, read_mask
from deeplab_jax.data.masks import Mask, describe_mask, format_value
from deeplab_jax.data.samples import Samples
from deeplab_jax.errors import DataError, summarize
from deeplab_jax.labels import IGNORE, Color, LabelSet, color_code, color_of, distinct_colors
from deeplab_jax.runtime.parallel import run_in_parallel

LARGE_SHARE = 0.2  # a larger share of unlabelled pixels is questioned
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
class Group:
    """Values that occur together in some files, also indirectly: 1 and 3 if one file has 1 and 2, and another one has 2 and 3.

    Attributes:
      values: The values.
      files: The number of files that contain any of them.
      example: The first of these files.
    """

    values: frozenset[int]
    files: int
    example: str


@dataclasses.dataclass(slots=True)
class Survey:
    """The values in a data set's label files.

    Attributes:
      is_color: Whether the values are 24-bit colours instead of ids.
      occurrences: Maps each value to its counts.
      palette: Maps each id to its palette colour and the first file that has it. Empty unless the files hold palette indices.
      conflict: A message about two files whose palettes give one id different colours, or "".
      modes: Maps each Pillow mode to the number of files and the first file that has it.
      transparent: The number of files with colours below transparent pixels, and the first of them.
      inverted: The number of files whose values were inverted (see `Mask`), and the first of them.
      files: The number of files that were read.
      single: For each value that is the only one besides 0 in some files, the number of these files and the first of them.
      groups: The values but 0 and 255, in groups that do not occur together.
      last_ids: The largest value of each file, apart from 255, or None if the values in a file do not count up from 1.
      runs: The number of runs for each value. See `Mask`.
      ramps: The number of runs that are ramps for each value that has some. See `Mask`.
      problems: A message for each unreadable file. Training cannot read these files either.
    """

    is_color: bool
    occurrences: dict[int, Occurrence] = dataclasses.field(default_factory=dict)
    palette: dict[int, tuple[Color, str]] = dataclasses.field(default_factory=dict)
    conflict: str = ""
    modes: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)
    transparent: tuple[int, str] = (0, "")
    inverted: tuple[int, str] = (0, "")
    files: int = 0
    single: dict[int, tuple[int, str]] = dataclasses.field(default_factory=dict)
    groups: list[Group] = dataclasses.field(default_factory=list)
    last_ids: set[int] | None = dataclasses.field(default_factory=set)
    runs: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    ramps: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    problems: list[str] = dataclasses.field(default_factory=list)

    @property
    def values(self) -> dict[int, Occurrence]:
        """The counts for each value, in ascending order of the values."""
        return dict(sorted(self.occurrences.items()))

    @property
    def colors(self) -> dict[int, Color]:
        """The palette colour of each id. Empty unless the files hold palette indices."""
        return {value: color for value, (color, _) in self.palette.items()}

    @property
    def pixels(self) -> int:
        """The number of pixels in all files."""
        return sum(each.pixels for each in self.occurrences.values())

    def add(self, name: str, mask: Mask) -> None:
        """Add one label file."""
        self.files += 1
        self.runs.update(mask.runs)
        self.ramps.update(mask.ramps)
        for value, pixels in mask.values.items():
            occurrence = self.occurrences.setdefault(value, Occurrence())
            occurrence.pixels, occurrence.files = occurrence.pixels + pixels, occurrence.files + 1
            if pixels > occurrence.max_pixels:
                occurrence.max_pixels, occurrence.example = pixels, name
        others = [value for value in mask.values if value]
        if len(others) == 1:
            count, first = self.single.get(others[0], (0, name))
            self.single[others[0]] = (count + 1, first)
        ids = frozenset(others) - {IGNORE}
        self._add_group(ids, name)
        is_counting = self.last_ids is not None and ids == {*range(1, len(ids) + 1)}
        self.last_ids = {*(self.last_ids or ()), len(ids)} if is_counting else None
        if mask.mode:
            count, first = self.modes.get(mask.mode, (0, name))
            self.modes[mask.mode] = (count + 1, first)
        if mask.is_transparent:
            self.transparent = (self.transparent[0] + 1, self.transparent[1] or name)
        if mask.is_inverted:
            self.inverted = (self.inverted[0] + 1, self.inverted[1] or name)
        for value, color in mask.palette.items():
            self.add_palette_color(value, color, name)

    def _add_group(self, values: frozenset[int], name: str) -> None:
        """Add the values of one file, and join the groups that they connect."""
        if not values:
            return
        joined = [group for group in self.groups if group.values & values]
        files, example = sum(group.files for group in joined) + 1, joined[0].example if joined else name
        everything = values.union(*(group.values for group in joined))
        self.groups = [group for group in self.groups if group not in joined] + [Group(everything, files, example)]

    def add_palette_color(self, value: int, color: Color, name: str) -> None:
        """Add the palette colour that an id has in one file, and note a conflict with earlier files."""
        known, first = self.palette.setdefault(value, (color, name))
        if known != color and not self.conflict:
            self.conflict = f"In {first}, the colour of id {value} is {known}, but in {name} it is {color}"


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
    survey = Survey(is_color=kinds == ["color"])
    names = list(dict.fromkeys((each.root, name) for each in samples for name in each.labels))
    masks = run_in_parallel(lambda name: survey_mask(str(epath.Path(name[0]) / name[1]), survey.is_color), names, threads)
    for (root, name), mask in zip(names, masks, strict=True):
        if isinstance(mask, DataError):
            survey.problems.append(str(mask))
        else:
            survey.add(name, mask)
        on_file()
        if len(survey.occurrences) > MAX_VALUES + 1 - survey.is_color:  # ids may also include the ignored id
            raise DataError(_explain_too_many(survey, f"{root}/{name}"))
    if not survey.files:
        raise DataError(
            survey.problems[0] if survey.problems else "The splits have no label files. Use --splits to choose other splits."
        )
    return survey


def survey_mask(path: str, is_color: bool) -> Mask | DataError:
    """Read a label file and return what a survey needs of it, or the error if the file is unreadable."""
    try:
        return describe_mask(read_mask(path, is_color=is_color), path)
    except DataError as error:
        return error


def _explain_too_many(survey: Survey, last: str) -> str:
    values = survey.values
    most_frequent = sorted(values, key=lambda value: -values[value].pixels)[:8]
    shown = "; ".join(f"{format_value(value, True)} ({values[value].pixels} pixels)" for value in most_frequent)
    return (
        f"The masks contain more than {MAX_VALUES} distinct colours. The last file read was {last}. This happens when masks "
        "are resized with interpolation or saved as JPEG, and if the files are photos. Recreate the masks from the originals: "
        f"resize without interpolation and save as PNG.{_explain_transparency(survey)} The most frequent colours are: {shown}"
    )


def _explain_transparency(survey: Survey) -> str:
    count, first = survey.transparent
    if not count:
        return ""
    return f" {first} has transparent pixels, which are ignored. If the transparency is the mask, save it as a grey PNG."


def propose_labels(
    name: str, survey: Survey, kind: str, expected: LabelSet | None, label_sets: dict[str, LabelSet]
) -> tuple[LabelSet, list[str]]:
    """Return a label set for the values in the label files, and a note for each assumption made.

    Args:
      name: The name for a new label set.
      survey: The values in the label files.
      kind: How the label files encode classes: "labelIds", "labelTrainIds" or "color".
      expected: The label set implied by the folder layout, or None.
      label_sets: The built-in label sets to compare the values with.

    Raises:
      DataError: The label files contain fewer than two possible classes.
    """
    if expected and _covers(expected, survey, kind) and _uses_most_classes(survey, expected, kind):
        return expected, [f"The folders and all values match the label set {expected.name}, so its classes are used."]
    for candidate in label_sets.values() if survey.is_color or survey.palette else ():
        if _matches_colors(survey, candidate, kind):
            return candidate, [f"The colours match the label set {candidate.name}, so its classes are used."]
    if len(survey.values) < 2:
        only = format_value(next(iter(survey.values)), survey.is_color)
        raise DataError(
            f"The only value in the label files is {only}, but training needs at least two classes. Check the masks."
            f"{_explain_transparency(survey)}"
        )
    proposed, notes = _propose_for_colors(name, survey) if survey.is_color else _propose_for_ids(name, survey, kind, label_sets)
    return proposed, [*notes, *_question_values(survey, kind)]


def _question_values(survey: Survey, kind: str) -> Iterator[str]:
    """Yield a note for each value that may not be what it seems."""
    values = list(survey.values)
    ignored = survey.occurrences[IGNORE].pixels if _is_255_ignored(survey) else 0
    others = sum(survey.occurrences[value].pixels for value in values if value not in (0, IGNORE))
    are_train_ids = kind == "labelTrainIds"  # of which none but 255 can be ignored
    if ignored > min(LARGE_SHARE * survey.pixels, others) and not are_train_ids:
        yield (
            f"255 covers {ignored / survey.pixels:.0%} of the pixels, and is assumed to mean unlabelled. If it is a class, add "
            "it to classes and set ignored_ids to []."
        )
    ids = [value for value in values if value != IGNORE or values[-2:] != [IGNORE - 1, IGNORE]]
    steps = set(np.diff(ids).tolist())
    if not survey.is_color and len(ids) > 2 and len(steps) == 1 and steps != {1}:
        yield (
            f"The values are evenly spaced ({', '.join(map(str, ids[:4]))}, ...), like ids that were multiplied for viewing. "
            "They are used as they are, so the masks of all splits must have the same values."
        )
    rare = [format_value(value, survey.is_color) for value, each in survey.values.items() if is_rare(each, survey)]
    if rare:
        ignored_field = "ignored_colors" if survey.is_color else "ignored_ids"
        advice = "" if are_train_ids else f" If they are mistakes, move them to {ignored_field}."
        yield f"Rare values, which are more likely mistakes than classes: {'; '.join(rare[:8])}.{advice}"


def is_rare(occurrence: Occurrence, survey: Survey) -> bool:
    """Return whether a value has so few pixels that it is more likely an annotation mistake than a class."""
    return occurrence.pixels < 1e-5 * survey.pixels


def _propose_for_colors(name: str, survey: Survey) -> tuple[LabelSet, list[str]]:
    colors = tuple(color_of(value) for value in survey.values)
    notes = ["Assumed that every colour is a class."]
    if 0 in survey.values:
        notes.append("Assumed that black is also a class. If it means unlabelled, move it from classes to ignored_colors.")
    if all(r == g == b for r, g, b in colors):
        notes.append(
            "All colours are shades of grey. If the masks hold ids saved as RGB, run this command again with "
            "--label-kind labelIds."
        )
    names = tuple(f"class {i}" for i in range(len(colors)))
    return LabelSet(name, names, colors, ignored_colors=() if 0 in survey.values else ((0, 0, 0),)), notes


def _propose_for_ids(name: str, survey: Survey, kind: str, label_sets: dict[str, LabelSet]) -> tuple[LabelSet, list[str]]:
    values = list(survey.values)
    are_train_ids = kind == "labelTrainIds"
    ids = tuple(value for value in values if value != IGNORE or not (are_train_ids or _is_255_ignored(survey)))
    if len(ids) < 2:
        raise DataError(
            f"The only value in the label files is {ids[0]}, apart from 255, which is ignored. "
            "Training needs at least two classes. Check the masks."
        )
    notes = ["Assumed that every value is a class. 255 is ignored."]
    if are_train_ids and len(ids) <= ids[-1]:
        missing = [value for value in range(ids[-1]) if value not in ids]
        notes.append(f"Train ids count up from 0, so there are also classes for {summarize(missing)}, which do not occur.")
        ids = tuple(range(ids[-1] + 1))
    if ids == (0, IGNORE):
        notes = ["Assumed that 0 and 255 are two classes."]
    elif IGNORE in ids:
        notes = ["Assumed that every value is a class, also 255, because the values are evenly spaced."]
    if 0 in ids and not are_train_ids:
        notes.append("Assumed that 0 is also a class. If it means unlabelled, move it from classes to ignored_ids.")
    for similar in label_sets.values():
        train_ids = _number_values(similar, kind)
        classes = {value for value, train_id in train_ids.items() if train_id != IGNORE}
        if set(values) - {IGNORE} in (classes, set(train_ids) - {IGNORE}):
            notes.append(
                f"The label set {similar.name} has the same values. If they have the same meaning, use "
                f"--config=configs/custom_lite0.py:{similar.name}."
            )
    colors = tuple(survey.colors.get(value, (0, 0, 0)) for value in ids)
    if len(set(colors)) < len(colors):
        colors = distinct_colors(len(ids))
    # A label set without explicit ids numbers its classes from 0.
    explicit_ids = () if ids == tuple(range(len(ids))) else ids
    names = tuple(f"class {value}" for value in ids)
    return LabelSet(name, names, colors, ids=explicit_ids, ignored_ids=() if IGNORE in ids else (IGNORE,)), notes


def _is_255_ignored(survey: Survey) -> bool:
    """Return whether 255 occurs and means unlabelled. The last of evenly spaced ids, such as 0, 127 and 255, is a class."""
    values = list(survey.values)
    if survey.is_color or IGNORE not in values:
        return False
    steps = np.diff(values)
    return bool(values[0] != 0 or steps.min() == 1 or np.ptp(steps) > 1)  # evenly spaced ids can be rounded


def _number_values(labels: LabelSet, kind: str) -> dict[int, int]:
    """Return the train id, or 255 (ignored), for each value that label files of a kind may contain."""
    if kind == "color":
        return {color_code(color): train_id for color, train_id in labels.train_id_of_color().items()}
    if kind == "labelTrainIds":
        return {IGNORE: IGNORE} | {train_id: train_id for train_id in range(labels.num_classes)}
    return labels.train_id_of_id()


def _covers(labels: LabelSet, survey: Survey, kind: str) -> bool:
    """Check whether the label set defines every value in the label files, as a class or as an ignored value."""
    return set(survey.values) <= _number_values(labels, kind).keys()


def _uses_most_classes(survey: Survey, labels: LabelSet, kind: str) -> bool:
    """Check whether more than half of the values that have a class in the label set are present in the label files."""
    values = {value for value, train_id in _number_values(labels, kind).items() if train_id != IGNORE}
    return 2 * len(values.intersection(survey.values)) > len(values)


def _matches_colors(survey: Survey, labels: LabelSet, kind: str) -> bool:
    """Check whether the colours in the label files match the label set's colours."""
    if survey.is_color:
        return _covers(labels, survey, kind) and _uses_most_classes(survey, labels, kind)
    if labels.more_ids:
        return False  # the colour of each further id is unknown
    values = range(labels.num_classes) if kind == "labelTrainIds" else labels.class_ids
    classes = dict(zip(values, labels.colors, strict=True))
    palette = {value: color for value, color in survey.colors.items() if value in classes}
    # Require every class to be present: many tools write the VOC palette even when the classes are not VOC's, so the palette
    # alone proves nothing.
    return _covers(labels, survey, kind) and palette == classes
