"""Choose the label set of imported annotations."""

import re
from collections.abc import Iterable, Sequence

from deeplab_jax.data.importers.annotation import AnnotationSet
from deeplab_jax.data.importers.figures import Damaged
from deeplab_jax.errors import DataError, summarize
from deeplab_jax.labels import IGNORE, Color, LabelSet, distinct_colors

BLACK = (0, 0, 0)


def make_label_set(name: str, source: AnnotationSet, *, has_background: bool) -> tuple[LabelSet, dict[str | None, int]]:
    """Return the label set of a data set, and the id of each class name in the masks.

    A class called background has the id 0. The others follow in the order of the tool. None, for pixels that must be ignored,
    has the id 255.

    Args:
      name: The name of the label set.
      source: The annotations, with their classes and colours.
      has_background: Whether there must be a background class, for the pixels without a shape.

    Raises:
      DataError: There are fewer than 2 classes, or none at all.
      ConfigError: There are more than 255 classes.
    """
    if not source.classes:
        figures = (shape.figure for each in source.annotations for shape in each.shapes)
        damaged = next((figure.where for figure in figures if isinstance(figure, Damaged)), "")
        reason = f"For example, {damaged} is damaged" if damaged else "The notes list the shapes that cannot be used"
        count = len(source.annotations)
        raise DataError(f"None of the {count} annotated images has a usable shape. {reason}. Correct them, or draw polygons.")
    others = [each for each in source.classes if not is_background(each)]
    has_background = has_background or len(others) < len(source.classes)
    names = ["background"] * has_background + others
    if len(names) < 2:
        advice = "Use `--unlabelled background`, which makes the pixels without annotation a class."
        advice = "Draw shapes of another class." if has_background else advice
        raise DataError(f"The annotations have only the class {names[0]!r}, and training needs 2 or more. {advice}")
    colors = ([BLACK] if has_background else []) + choose_colors([source.classes[each] for each in others])
    labels = LabelSet(name, tuple(names), tuple(colors), ignored_colors=() if has_background else (BLACK,))
    ids: dict[str | None, int] = {None: IGNORE}
    ids |= {each: 0 if is_background(each) else names.index(each) for each in source.classes}
    return labels, ids


def find_alike(names: Iterable[str]) -> list[str]:
    """Return the groups of class names that differ only in case, spaces around them or a number, such as "'car', 'Car1'"."""
    groups: dict[str, list[str]] = {}
    for name in names:
        folded = name.strip().casefold()
        groups.setdefault(re.sub(r"(?<=[^\W\d_])[\s_-]*\d+$", "", folded), []).append(name)
    return [summarize(map(repr, group)) for group in groups.values() if len(group) > 1]


def is_background(name: str) -> bool:
    """Return whether a class name means the background: background, _background_ (LabelMe) or Background."""
    return name.strip("_ ").lower() == "background"


def choose_colors(wanted: Sequence[Color | None]) -> list[Color]:
    """Return a colour for each class: the wanted one if it is neither black nor that of an earlier class, or a distinct one."""
    taken = {BLACK, *wanted}
    free = (color for color in distinct_colors(4 * len(wanted) + 1) if color not in taken)
    colors: list[Color] = []
    for color in wanted:
        if color is None or color == BLACK or color in colors:
            color = next(each for each in free if each not in colors)
        colors.append(color)
    return colors
