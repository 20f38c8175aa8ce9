"""Label sets: class names and colours, and the mapping from label file values to train ids.

A *train id* is a class's channel index in the logits, from 0 to num_classes - 1. The train id 255 is the ignore label.
"""

import colorsys
import dataclasses
from typing import TypeVar

import numpy as np

from deeplab_jax.errors import ConfigError
from deeplab_jax.labels.plain import to_plain

IGNORE = 255
UNKNOWN = -1  # the lookup table entry for values that are neither a class nor ignored

Color = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class LabelSet:
    """A data set's classes, and their values and colours in label files.

    A class can have several values and colours in label files. `ids` and `colors` hold the first of each class, which
    submissions, overlays and palettes use. `more_ids` and `more_colors` hold the others. Lists and NumPy arrays become tuples.

    Attributes:
      name: A short name, shown in messages and stored in checkpoints.
      names: The class names, in train id order.
      colors: Each class's RGB colour (0-255), in train id order.
      ids: Each class's value in label files that store ids, in train id order. If empty, the values are the train ids.
      ignored_ids: Other values in label files that store ids. They are mapped to the ignore label.
      ignored_colors: Other colours in label files that store colours. They are mapped to the ignore label.
      more_ids: Further values of each class in label files that store ids, in train id order. If empty, no class has any.
      more_colors: Further colours of each class in label files that store colours, like `more_ids`.
      label_kind: How this data set's label files encode classes, as in `data.label_kind`. If "", this is detected.

    Raises:
      ConfigError: A field has the wrong type, lengths differ, a class name is repeated, or a value is repeated or out of range.
    """

    name: str
    names: tuple[str, ...]
    colors: tuple[Color, ...]
    ids: tuple[int, ...] = ()
    ignored_ids: tuple[int, ...] = (IGNORE,)
    ignored_colors: tuple[Color, ...] = ((0, 0, 0),)
    more_ids: tuple[tuple[int, ...], ...] = ()
    more_colors: tuple[tuple[Color, ...], ...] = ()
    label_kind: str = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, to_plain(getattr(self, field.name)))
        _require_tuples(self)
        if self.label_kind not in ("", "labelIds", "labelTrainIds", "color"):
            raise ConfigError(
                f"`labels.label_kind` (={self.label_kind!r}) cannot be used. Use labelIds, labelTrainIds or color."
            )
        _require_names(self.name, self.names)
        _require_lengths(self)
        _require_ids(self)
        _require_colors(self)

    @property
    def num_classes(self) -> int:
        """The number of classes, which is also the number of logit channels."""
        return len(self.names)

    @property
    def class_ids(self) -> tuple[int, ...]:
        """Each class's value in label files that store ids, in train id order."""
        return self.ids or tuple(range(len(self.names)))

    @property
    def ids_by_class(self) -> tuple[tuple[int, ...], ...]:
        """All values of each class in label files that store ids, in train id order. Submissions use the first one."""
        more = self.more_ids or ((),) * self.num_classes
        return tuple((first, *rest) for first, rest in zip(self.class_ids, more, strict=True))

    @property
    def colors_by_class(self) -> tuple[tuple[Color, ...], ...]:
        """All colours of each class in label files that store colours, in train id order. Overlays use the first one."""
        more = self.more_colors or ((),) * self.num_classes
        return tuple((first, *rest) for first, rest in zip(self.colors, more, strict=True))

    def train_id_of_id(self) -> dict[int, int]:
        """Return the train id, or 255 (ignored), for each value that label files with ids may contain."""
        return dict.fromkeys(self.ignored_ids, IGNORE) | _number(self.ids_by_class)

    def train_id_of_color(self) -> dict[Color, int]:
        """Return the train id, or 255 (ignored), for each colour that label files with colours may contain.

        If a class and an ignored class share a colour, like "car" and "license plate" in Cityscapes, the colour maps to the
        class.
        """
        return dict.fromkeys(self.ignored_colors, IGNORE) | _number(self.colors_by_class)

    def id_table(self) -> np.ndarray:
        """Return the int16 [256] lookup table for label files that store ids.

        The index is the value in the label file. The entry is the train id, 255 (ignored) or UNKNOWN.
        """
        table = np.full(256, UNKNOWN, np.int16)
        for value, train_id in self.train_id_of_id().items():
            table[value] = train_id
        return table

    def train_id_table(self) -> np.ndarray:
        """Return the int16 [256] lookup table for label files that store train ids.

        The index is the value in the label file. The entry is the same train id, 255 (ignored) or UNKNOWN.
        """
        table = np.full(256, UNKNOWN, np.int16)
        table[: self.num_classes] = np.arange(self.num_classes)
        table[IGNORE] = IGNORE
        return table

    def color_table(self) -> np.ndarray:
        """Return the int16 [2**24] lookup table for label files that store colours.

        The index is 65536 r + 256 g + b. The entry is the train id, 255 (ignored) or UNKNOWN. See `train_id_of_color`.
        """
        table = np.full(1 << 24, UNKNOWN, np.int16)
        for color, train_id in self.train_id_of_color().items():
            table[color_code(color)] = train_id
        return table

    def palette(self) -> np.ndarray:
        """Return each train id's RGB colour as uint8 [256, 3]. The ignore label and unused ids are black."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: self.num_classes] = self.colors
        return palette


Value = TypeVar("Value")


def _number(values: tuple[tuple[Value, ...], ...]) -> dict[Value, int]:
    return {value: train_id for train_id, group in enumerate(values) for value in group}


def _require_tuples(labels: LabelSet) -> None:
    for field in ("names", "colors", "ids", "ignored_ids", "ignored_colors", "more_ids", "more_colors"):
        value, is_nested = getattr(labels, field), field.startswith("more_")
        if not isinstance(value, tuple) or (is_nested and not all(isinstance(group, tuple) for group in value)):
            kind = "tuple of tuples, one for each class" if is_nested else "tuple"
            raise ConfigError(f"`labels.{field}` (={value!r}) cannot be used. Use a {kind}.")


def _require_names(label_set: str, names: tuple[str, ...]) -> None:
    if not isinstance(label_set, str) or not label_set:
        raise ConfigError(f"`labels.name` (={label_set!r}) cannot be used. Give the label set a name in quotes.")
    unnamed = [name for name in names if not isinstance(name, str) or not name]
    if unnamed:
        raise ConfigError(f"`labels.names` contains {unnamed[0]!r}. Give each class a name in quotes.")
    if not 2 <= len(names) <= IGNORE:
        raise ConfigError(f"`labels.names` (of length {len(names)}) cannot be used. Give 2 to {IGNORE} class names.")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"`labels.names` contains {', '.join(repeated)} more than once. Give each class a different name.")


def _require_lengths(labels: LabelSet) -> None:
    n = len(labels.names)
    if len(labels.colors) != n:
        raise ConfigError(
            f"`labels.colors` has {len(labels.colors)} colours for {n} classes. Give one RGB colour for each class."
        )
    if labels.ids and len(labels.ids) != n:
        raise ConfigError(
            f"`labels.ids` has {len(labels.ids)} values for {n} classes. Give one value for each class, or none at all."
        )
    for field in ("more_ids", "more_colors"):
        count = len(getattr(labels, field))
        if count not in (0, n):
            raise ConfigError(
                f"`labels.{field}` has {count} groups for {n} classes. Give one group for each class, or none at all."
            )


def _require_ids(labels: LabelSet) -> None:
    used = [value for group in labels.ids_by_class for value in group]
    bad = [value for value in (*used, *labels.ignored_ids) if not is_byte(value)]
    if bad:
        raise ConfigError(
            f"`labels.ids`, `labels.more_ids` or `labels.ignored_ids` contains {bad[0]!r}. Use integers from 0 to 255."
        )
    repeated = next((value for value in used if used.count(value) > 1 or value in labels.ignored_ids), None)
    if repeated is not None:
        raise ConfigError(
            f"`labels.ids` (={labels.class_ids}) or `labels.more_ids` contains {repeated} more than once, or it is also in "
            f"labels.ignored_ids (={labels.ignored_ids}). Use each value only once."
        )


def _require_colors(labels: LabelSet) -> None:
    used = [color for group in labels.colors_by_class for color in group]
    colors = (*used, *labels.ignored_colors)
    bad = [c for c in colors if not isinstance(c, tuple) or len(c) != 3 or not all(map(is_byte, c))]
    if bad:
        raise ConfigError(
            f"`labels.colors`, `labels.more_colors` or `labels.ignored_colors` contains {bad[0]!r}. "
            "Use three integers from 0 to 255."
        )
    repeated = next((color for color in used if used.count(color) > 1), None)
    if repeated is not None:
        raise ConfigError(
            f"`labels.colors` or `labels.more_colors` gives {repeated} to more than one class. "
            "Give each class different colours."
        )


def is_byte(value: object) -> bool:
    """Return whether a value is an integer from 0 to 255. A bool is not."""
    return type(value) is int and 0 <= value <= 255


def color_code(color: Color) -> int:
    """Return 65536 r + 256 g + b, the index of `color` in `LabelSet.color_table`."""
    return (color[0] << 16) | (color[1] << 8) | color[2]


def color_of(code: int) -> Color:
    """Return the colour encoded by `code`. This is the inverse of `color_code`."""
    return code >> 16, code >> 8 & 255, code & 255


def distinct_colors(n: int) -> tuple[Color, ...]:
    """Return `n` colours that are easy to tell apart, for classes that have no colours of their own. None of them is black.

    The hue advances by the golden ratio, which spreads any number of hues evenly around the colour wheel. Saturation and
    brightness cycle through different values, so colours with similar hues usually differ in these as well.
    """
    golden = (5**0.5 - 1) / 2
    colors = (colorsys.hsv_to_rgb(i * golden % 1, (0.9, 0.5)[i % 2], (1, 0.75, 0.5)[i % 3]) for i in range(n))
    return tuple((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colors)
