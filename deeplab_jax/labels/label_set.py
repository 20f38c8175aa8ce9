"""Label sets: class names and colours, and the mapping from label file values to train ids.

A *train id* is a class's channel index in the logits, from 0 to num_classes - 1. The train id 255 is the ignore label.
"""

import colorsys
import dataclasses

import numpy as np

from deeplab_jax.errors import ConfigError

IGNORE = 255
UNKNOWN = -1  # the lookup table entry for values that are neither a class nor ignored

Color = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class LabelSet:
    """A data set's classes, and their values and colours in label files.

    Attributes:
      name: A short name, shown in messages and stored in checkpoints.
      names: The class names, in train id order.
      colors: Each class's RGB colour (0-255), in train id order.
      ids: Each class's value in label files that store ids, in train id order. If empty, the values are the train ids.
      ignored_ids: Other values in label files that store ids. They are mapped to the ignore label.
      ignored_colors: Other colours in label files that store colours. They are mapped to the ignore label.

    Raises:
      ConfigError: Lengths differ, a class name is repeated, or a value is repeated or out of range.
    """

    name: str
    names: tuple[str, ...]
    colors: tuple[Color, ...]
    ids: tuple[int, ...] = ()
    ignored_ids: tuple[int, ...] = (IGNORE,)
    ignored_colors: tuple[Color, ...] = ((0, 0, 0),)

    def __post_init__(self) -> None:
        n = len(self.names)
        if not 2 <= n <= IGNORE:
            raise ConfigError(f"`labels.names` has {n} classes. Give 2 to {IGNORE} class names.")
        if len(set(self.names)) != n:
            repeated_names = sorted({x for x in self.names if self.names.count(x) > 1})
            raise ConfigError(
                f"`labels.names` contains {', '.join(repeated_names)} more than once. Give each class a different name."
            )
        if len(self.colors) != n:
            raise ConfigError(
                f"`labels.colors` has {len(self.colors)} colours for {n} classes. Give one RGB colour for each class."
            )
        if self.ids and len(self.ids) != n:
            raise ConfigError(
                f"`labels.ids` has {len(self.ids)} values for {n} classes. Give one value for each class, or none at all."
            )
        values = self.class_ids + self.ignored_ids
        bad = [v for v in values if not 0 <= v <= 255]
        if bad:
            raise ConfigError(f"`labels.ids` or `labels.ignored_ids` contains {bad[0]}. Use values from 0 to 255.")
        overlap = sorted(set(self.class_ids) & set(self.ignored_ids))
        if overlap or len(set(self.class_ids)) != n:
            raise ConfigError(
                f"`labels.ids` (={self.class_ids}) contains a repeated value, or one that is also in labels.ignored_ids "
                f"(={self.ignored_ids}). Use each value only once."
            )
        if len(set(self.colors)) != n:
            repeated = next(c for c in self.colors if self.colors.count(c) > 1)
            raise ConfigError(f"`labels.colors` gives {repeated} to more than one class. Give each class a different colour.")
        for color in self.colors + self.ignored_colors:
            if len(color) != 3 or not all(0 <= c <= 255 for c in color):
                raise ConfigError(
                    f"`labels.colors` or `labels.ignored_colors` contains {color}. Use three numbers from 0 to 255."
                )

    @property
    def num_classes(self) -> int:
        """The number of classes, which is also the number of logit channels."""
        return len(self.names)

    @property
    def class_ids(self) -> tuple[int, ...]:
        """Each class's value in label files that store ids, in train id order."""
        return self.ids or tuple(range(len(self.names)))

    def id_table(self) -> np.ndarray:
        """Return the int16 [256] lookup table for label files that store ids.

        The index is the value in the label file. The entry is the train id, 255 (ignored) or UNKNOWN.
        """
        table = np.full(256, UNKNOWN, np.int16)
        table[list(self.ignored_ids)] = IGNORE
        table[list(self.class_ids)] = np.arange(self.num_classes)
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

        The index is 65536 r + 256 g + b. The entry is the train id, 255 (ignored) or UNKNOWN. If a class and an ignored class
        share a colour, like "car" and "license plate" in Cityscapes, the colour maps to the class.
        """
        table = np.full(1 << 24, UNKNOWN, np.int16)
        table[[color_code(c) for c in self.ignored_colors]] = IGNORE
        table[[color_code(c) for c in self.colors]] = np.arange(self.num_classes)
        return table

    def palette(self) -> np.ndarray:
        """Return each train id's RGB colour as uint8 [256, 3]. The ignore label and unused ids are black."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: self.num_classes] = self.colors
        return palette


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
