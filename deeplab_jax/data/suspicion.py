"""Recognize masks that can be read, but whose values probably do not mean what the label set says.

Wrong masks are the most frequent reason for a network that learns nothing. Each suspicion is an error of `data check`, and one
line at the start of a training or evaluation.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from deeplab_jax.data.masks import (
    BLEND_CAUSES,
    MIN_BLENDED_VALUES,
    Mask,
    advise_threshold,
    describe_mask,
    find_thin_values,
    format_value,
)
from deeplab_jax.data.samples import Samples, make_value_table, read_sample
from deeplab_jax.data.survey import Survey, survey_mask
from deeplab_jax.errors import DataError, summarize
from deeplab_jax.labels import IGNORE, LABEL_SETS, UNKNOWN, LabelSet, color_code, color_of

# In Cityscapes, 12 % of the pixels have label ids that are ignored. Train ids read as label ids lose more than half.
MAX_IGNORED = 0.3
SAMPLED = 8  # the number of masks to look at before training
# Values that number objects count up to a different number in each mask. Those of a few classes can do so by chance.
MIN_COUNTS = 5


def find_suspicions(survey: Survey, labels: LabelSet | None, kind: str, *, is_training_set: bool = False) -> list[str]:
    """Return one line for each suspicion: what the masks hold, what it probably means, and what to do.

    Args:
      survey: The values in the masks.
      labels: The label set that gives the values their meaning, or None if there is none yet.
      kind: How the masks encode classes: "labelIds", "labelTrainIds" or "color".
      is_training_set: Whether these are all masks of a training split, which needs at least two classes.
    """
    suspicions = [*_find_blends(survey), *_find_mixed_modes(survey), *_find_palette_conflicts(survey)]
    if labels is not None and survey.occurrences:
        suspicions += [*_find_train_ids(survey, labels, kind), *_find_shuffled_palette(survey, labels, kind)]
        suspicions += _find_too_few_classes(survey, labels, kind, is_training_set)
    return suspicions


def sample_suspicions(samples: Samples, labels: LabelSet | None) -> tuple[list[str], list[str]]:
    """Read a few masks of a split, and return the suspicions and questions about them.

    Unreadable masks are left to training.
    """
    survey = Survey(is_color=samples.kind == "color")
    for i in _choose_rows(samples) if samples.labels else ():
        try:
            _, values = read_sample(samples, i)
        except DataError:
            continue
        assert values is not None
        survey.add(samples.labels[i], describe_sample_mask(samples, i, values))
    if not survey.files:
        return [], []
    return find_suspicions(survey, labels, samples.kind), find_questions(survey, labels, samples.kind)


def sample_notes(samples: Samples, labels: LabelSet | None) -> Iterator[str]:
    """Yield a line for each thing that a few files of a split show and that the user should know.

    Args:
      samples: The split.
      labels: The label set, or None if there is none yet.
    """
    suspicions, questions = sample_suspicions(samples, labels)
    for note in (*note_omissions(samples), *questions):
        yield f"note: {note}"
    for suspicion in suspicions:
        yield f"WARNING: {suspicion} Run `deeplab-jax data check` to check all masks."


def compare_palettes(surveys: Iterable[Survey]) -> Iterator[str]:
    """Yield a suspicion if the palettes of two splits differ. Each split was already compared with itself."""
    together = Survey(is_color=False)
    for survey in surveys:
        if survey.conflict or survey.is_color:
            return
        for value, (color, name) in survey.palette.items():
            together.add_palette_color(value, color, name)
    yield from _find_palette_conflicts(together)


def warn_of_palettes(splits: Iterable[Samples]) -> Iterator[str]:
    """Yield a warning if a few masks of two splits have different palettes. Records were compared when they were prepared."""
    for suspicion in compare_palettes(map(_survey_palettes, splits)):
        yield f"WARNING: {suspicion} Run `deeplab-jax data check` to check all masks."


def _survey_palettes(samples: Samples) -> Survey:
    survey = Survey(is_color=samples.kind == "color")
    for i in _choose_rows(samples) if samples.labels and not survey.is_color else ():
        path = samples.store.label_path(samples, i)
        mask = survey_mask(path, is_color=False) if path else None
        if isinstance(mask, Mask):
            survey.add(samples.labels[i], mask)
    return survey


def note_omissions(samples: Samples) -> list[str]:
    """Return a note for each thing that is stored in one of a few image files and is not used, such as transparency."""
    notes: dict[str, str] = {}
    for i in _choose_rows(samples):
        for sort, text in samples.store.omissions(samples, i).items():
            notes.setdefault(sort, f"{samples.images[i]} {text}")
    orientation = _note_orientation(samples)
    return [*notes.values(), *([orientation] if orientation else [])]


def _note_orientation(samples: Samples) -> str:
    for i in _choose_rows(samples):
        orientation = samples.store.orientation(samples, i)
        if orientation != 1:
            return (
                f"{samples.images[i]} has the EXIF orientation {orientation}, which is ignored. If its label was drawn on the "
                "upright photo, save the photo upright, for example with `mogrify -auto-orient`."
            )
    return ""


def _choose_rows(samples: Samples) -> list[int]:
    return np.unique(np.linspace(0, len(samples) - 1, SAMPLED).round().astype(int)).tolist()


def describe_sample_mask(samples: Samples, i: int, values: np.ndarray) -> Mask:
    """Return what a survey needs of the mask of sample `i`, whose values have been read already."""
    return describe_mask(values, samples.store.label_path(samples, i))


def _find_blends(survey: Survey) -> Iterator[str]:
    if len(find_thin_values(survey.runs, survey.ramps)) < MIN_BLENDED_VALUES:
        return
    frequent = sorted(survey.occurrences, key=lambda value: -survey.occurrences[value].pixels)
    yield (
        f"The masks are blended: at {_measure_ramps(survey):.0%} of the edges, thin lines have values between those on both "
        f"sides, so they belong to no class. {len(frequent)} values occur. {BLEND_CAUSES}"
        f"{advise_threshold(frequent, survey.is_color)}"
    )


def _measure_ramps(survey: Survey) -> float:
    return sum(survey.ramps.values()) / sum(survey.runs.values())


def _find_mixed_modes(survey: Survey) -> Iterator[str]:
    color = [mode for mode in survey.modes if mode in ("RGB", "RGBA")]
    ids = [mode for mode in survey.modes if mode in ("1", "L", "I;16", "I")]
    if not (color and ids and survey.is_color):
        return
    (color_count, color_file), (id_count, id_file) = survey.modes[color[0]], survey.modes[ids[0]]
    yield (
        f"Some masks have colours ({color_count} of mode {color[0]}, such as {color_file}), and others are grey ({id_count} of "
        f"mode {ids[0]}, such as {id_file}), but all are read as colours. Save all masks in the same way."
    )


def _find_palette_conflicts(survey: Survey) -> Iterator[str]:
    if survey.conflict:
        yield (
            f"The palettes of the masks differ. {survey.conflict}. The ids then have different meanings. "
            "Set data.label_kind=color (--label-kind color) to use the colours as labels, or save all masks with one palette."
        )


def _find_train_ids(survey: Survey, labels: LabelSet, kind: str) -> Iterator[str]:
    """Yield a suspicion if masks that are read as label ids hold only train ids."""
    share = _measure_ignored_train_ids(survey, labels, kind)
    if share > MAX_IGNORED and not _has_small_ids(labels):
        yield (
            f"The masks are read as label ids of {labels.name}, but hold only values from 0 to {_find_largest(survey)}, like "
            f"train ids. As label ids, {share:.0%} of the pixels would have no class. Set data.label_kind=labelTrainIds "
            "(--label-kind labelTrainIds) if they are train ids."
        )


def find_questions(survey: Survey, labels: LabelSet | None, kind: str) -> list[str]:
    """Return a line for each property of the masks that may be intended, but would otherwise mean wrong classes.

    The arguments are those of `find_suspicions`.
    """
    return [
        *_ask_about_thin_lines(survey),
        *_ask_about_mixed_binaries(survey, labels, kind),
        *_ask_about_two_encodings(survey),
        *_ask_about_objects(survey),
        *_ask_about_inversion(survey),
        *_ask_about_transparency(survey),
        *(_ask_about_train_ids(survey, labels, kind) if labels else ()),
        *(_ask_about_ignored_classes(survey, labels) if labels and survey.is_color else ()),
    ]


def _ask_about_thin_lines(survey: Survey) -> Iterator[str]:
    thin = find_thin_values(survey.runs, survey.ramps)
    if 0 < len(thin) < MIN_BLENDED_VALUES:
        values = " and ".join(format_value(value, survey.is_color) for value in thin)
        yield (
            f"At {_measure_ramps(survey):.0%} of the edges, thin lines of the value {values} lie between other values. This "
            f"is right if they are thin objects, such as outlines. Otherwise, the masks are blended. {BLEND_CAUSES}"
        )


def _ask_about_mixed_binaries(survey: Survey, labels: LabelSet | None, kind: str) -> Iterator[str]:
    """Yield a question if some masks hold 0 and 1 and others 0 and 255, which is ignored, but none of them holds both."""
    if survey.is_color or not {1, IGNORE} <= set(survey.occurrences) <= {0, 1, IGNORE}:
        return
    if labels is not None and make_value_table(kind, labels)[IGNORE] != IGNORE:
        return
    ones, ignored = (survey.single.get(value, (0, "")) for value in (1, IGNORE))
    if (ones[0], ignored[0]) == (survey.occurrences[1].files, survey.occurrences[IGNORE].files):
        yield (
            f"255 occurs only in masks of 0 and 255 ({ignored[0]}, such as {ignored[1]}), and 1 only in masks of 0 and 1 "
            f"({ones[0]}, such as {ones[1]}). 255 is ignored. If it means the same as 1, save all masks with the same values."
        )


def _ask_about_two_encodings(survey: Survey) -> Iterator[str]:
    """Yield a question if some masks hold 1, 2, ..., n and others only larger values with gaps.

    They may have been multiplied for viewing or converted from colours to grey. Programs that make files smaller replace grey
    values by palette indices or by fewer bits.
    """
    groups = sorted(survey.groups, key=lambda group: min(group.values))
    if survey.is_color or len(groups) != 2 or min(len(group.values) for group in groups) < 2:
        return
    low, high = groups
    n = len(low.values)
    if low.values == {*range(1, n + 1)} and n + 1 not in high.values:
        shown = [f"{summarize(sorted(group.values))} ({group.files}, such as {group.example})" for group in groups]
        yield (
            f"Besides 0 and 255, some masks hold {shown[0]} and others {shown[1]}, but none holds values of both. If they show "
            "the same classes, they were saved in two ways. Save all masks in the same way."
        )


def _ask_about_objects(survey: Survey) -> Iterator[str]:
    """Yield a question if the values of each mask are 1, 2, ..., n, with many n, as if they numbered the objects in it."""
    if survey.last_ids and not survey.is_color and len(survey.last_ids) >= MIN_COUNTS:
        yield (
            f"Besides 0 and 255, the values of each mask count up from 1, to a different number in many masks (up to "
            f"{max(survey.last_ids)}). If they number the objects (instances), each number would become a class. Give all "
            'objects of a class one value, or list all values as one class in the label set: "id": [1, 2, 3].'
        )


def _ask_about_inversion(survey: Survey) -> Iterator[str]:
    count, first = survey.inverted
    if count:
        yield (
            f"In some TIFF masks ({count}, such as {first}), 0 is stored as white, so their values are inverted when they are "
            "read. tifffile saves boolean masks like this without inverting them, so their 1 is read as 0. Look at the masks "
            "on the page of `data check --out`, or save them as PNG."
        )


def _ask_about_transparency(survey: Survey) -> Iterator[str]:
    count, first = survey.transparent
    if count:
        yield (
            f"Some masks have transparent pixels ({count}, such as {first}). The transparency is ignored. The colours stored "
            "below it are used, which can differ between files. Save the masks as they look, without transparency."
        )


def _ask_about_train_ids(survey: Survey, labels: LabelSet, kind: str) -> Iterator[str]:
    share = _measure_ignored_train_ids(survey, labels, kind)
    if share <= MAX_IGNORED or not _has_small_ids(labels):
        return
    yield (
        f"{share:.0%} of the pixels have values that the label set {labels.name} ignores, and the largest value is "
        f"{_find_largest(survey)}. This is right if some classes do not occur. If the masks hold train ids, where 0 is "
        f"{labels.names[0]}, set data.label_kind=labelTrainIds (--label-kind labelTrainIds)."
    )


def _ask_about_ignored_classes(survey: Survey, labels: LabelSet) -> Iterator[str]:
    """Yield a question for each colour of the masks that is both a class and ignored in a label set of the user's."""
    if labels in LABEL_SETS.values():  # Cityscapes gives cars and licence plates the same colour
        return
    train_ids = labels.train_id_of_color()
    for color in labels.ignored_colors:
        if train_ids[color] != IGNORE and color_code(color) in survey.occurrences:
            name = labels.names[train_ids[color]]
            yield (
                f"The label set {labels.name} gives {color} to the class {name}, but ignored_colors has it, too. It counts as "
                f"{name}. If it should be ignored, remove it from the class."
            )


def _measure_ignored_train_ids(survey: Survey, labels: LabelSet, kind: str) -> float:
    """Return the share of pixels without a class if all masks could be train ids as well as label ids, or 0."""
    values = _list_values(survey)
    if kind != "labelIds" or not labels.ids or labels.class_ids == tuple(range(labels.num_classes)) or len(values) < 2:
        return 0.0
    if max(values) >= labels.num_classes:
        return 0.0
    table = labels.id_table()
    wrong = sum(survey.occurrences[value].pixels for value in values if table[value] in (IGNORE, UNKNOWN))
    return wrong / sum(survey.occurrences[value].pixels for value in values)


def _has_small_ids(labels: LabelSet) -> bool:
    """Return whether most label ids are as small as train ids, as in 1 to n, so that right masks can look like train ids."""
    return 2 * sum(i < labels.num_classes for i in labels.class_ids) >= labels.num_classes


def _list_values(survey: Survey) -> list[int]:
    return [value for value in survey.occurrences if value != IGNORE]


def _find_largest(survey: Survey) -> int:
    return max(_list_values(survey))


def _find_shuffled_palette(survey: Survey, labels: LabelSet, kind: str) -> Iterator[str]:
    """Yield a suspicion if the palette gives ids the colours of other classes."""
    if survey.is_color or survey.conflict:
        return
    table = make_value_table(kind, labels)
    classes = {color: i for i, color in enumerate(labels.colors)}
    pairs = [(value, int(table[value]), classes.get(color)) for value, color in survey.colors.items() if color in classes]
    wrong = [pair for pair in pairs if pair[1] != pair[2]]
    if len(wrong) < 2 or 2 * len(wrong) <= len(pairs):
        return
    value, given, shown = wrong[0]
    given_name = labels.names[given] if 0 <= given < labels.num_classes else "no class"
    yield (
        f"The palette of the masks gives {len(wrong)} ids the colours of other classes: id {value} is {given_name} in the "
        f"label set {labels.name}, but has the colour of {labels.names[shown or 0]}. Fix the ids or the colours of the label "
        "set."
    )


def _find_too_few_classes(survey: Survey, labels: LabelSet, kind: str, is_training_set: bool) -> Iterator[str]:
    """Yield a suspicion if there is no class, or only one besides ignored values.

    In a training set, one class is too few anyway.
    """
    table = make_value_table(kind, labels)
    classes = {int(table[value]) for value in survey.occurrences} - {IGNORE, UNKNOWN}
    values = [format_value(value, survey.is_color) for value in survey.values]
    shown = summarize(values)
    if not classes:
        yield (
            f"No pixel of the masks has a class: they hold {shown}, all of which the label set {labels.name} ignores or does "
            "not define, so there is nothing to learn or to score. Fix the label set or the masks."
        )
        return
    ignored = [value for value in survey.values if table[value] == IGNORE]
    if len(classes) > 1 or not (ignored or is_training_set):
        return
    hint = ""
    if ignored:
        name = "ignored_colors" if survey.is_color else "ignored_ids"
        example = color_of(ignored[-1]) if survey.is_color else ignored[-1]
        hint = f" If {example} is a class, remove it from {name} (the default is {'black' if survey.is_color else 255})."
    yield (
        f"All labelled pixels belong to the class {labels.names[classes.pop()]}: the masks hold {shown}. There is nothing to "
        f"learn from one class.{hint}"
    )
