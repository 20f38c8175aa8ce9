"""Label sets: which classes there are, how they look, and how the values in label files map to train ids.

A *train id* is the index of a class in the logits, 0 to num_classes - 1; 255 is the ignore label. Nothing here reads files.
"""

import dataclasses

import numpy as np

from deeplab_jax.errors import ConfigError

IGNORE = 255
UNKNOWN = -1  # in lookup tables: a value that no table entry names

Color = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class LabelSet:
    """The classes of a data set.

    Attributes:
      name: short name, shown in messages and stored in checkpoints.
      names: class names by train id.
      colors: RGB (0-255) by train id.
      ids: the value each class has in id-valued label files, by train id. Empty: the value is the train id.
      ignored_ids: further values of id-valued label files, mapped to the ignore label.
      ignored_colors: further colours of colour-coded label files, mapped to the ignore label.

    Raises:
      ConfigError: lengths differ, a class is named twice, or a value is out of range or used twice.
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
            raise ConfigError(f"labels.names has {n} classes: give 2 to {IGNORE} class names")
        if len(set(self.names)) != n:
            twice = sorted({x for x in self.names if self.names.count(x) > 1})
            raise ConfigError(f"labels.names names {', '.join(twice)} more than once: class names must differ")
        if len(self.colors) != n:
            raise ConfigError(f"labels.colors has {len(self.colors)} colours for {n} classes: give one RGB triple a class")
        if self.ids and len(self.ids) != n:
            raise ConfigError(f"labels.ids has {len(self.ids)} values for {n} classes: give one a class, or none")
        values = self.class_ids + self.ignored_ids
        bad = [v for v in values if not 0 <= v <= 255]
        if bad:
            raise ConfigError(f"labels.ids and labels.ignored_ids hold {bad[0]}: values must be 0 to 255")
        overlap = sorted(set(self.class_ids) & set(self.ignored_ids))
        if overlap or len(set(self.class_ids)) != n:
            raise ConfigError(
                f"labels.ids (={self.class_ids}) must differ from each other and from ignored_ids (={self.ignored_ids})"
            )
        if len(set(self.colors)) != n:
            twice_used = next(c for c in self.colors if self.colors.count(c) > 1)
            raise ConfigError(f"labels.colors gives {twice_used} to more than one class: colours must differ")
        for color in self.colors + self.ignored_colors:
            if len(color) != 3 or not all(0 <= c <= 255 for c in color):
                raise ConfigError(f"labels.colors holds {color}: a colour is three numbers from 0 to 255")

    @property
    def num_classes(self) -> int:
        """Channels of the logits."""
        return len(self.names)

    @property
    def class_ids(self) -> tuple[int, ...]:
        """The value of each class in id-valued label files, by train id."""
        return self.ids or tuple(range(len(self.names)))

    def id_table(self) -> np.ndarray:
        """int16 [256]: value in an id-valued label file -> train id, 255 (ignored) or UNKNOWN."""
        table = np.full(256, UNKNOWN, np.int16)
        table[list(self.ignored_ids)] = IGNORE
        table[list(self.class_ids)] = np.arange(self.num_classes)
        return table

    def train_id_table(self) -> np.ndarray:
        """int16 [256]: value in a file of train ids -> the same train id, 255 (ignored) or UNKNOWN."""
        table = np.full(256, UNKNOWN, np.int16)
        table[: self.num_classes] = np.arange(self.num_classes)
        table[IGNORE] = IGNORE
        return table

    def color_table(self) -> np.ndarray:
        """int16 [2**24]: 65536 r + 256 g + b -> train id, 255 (ignored) or UNKNOWN.

        A colour shared by a class and an ignored value (Cityscapes: car and licence plate) means the class.
        """
        table = np.full(1 << 24, UNKNOWN, np.int16)
        table[[color_code(c) for c in self.ignored_colors]] = IGNORE
        table[[color_code(c) for c in self.colors]] = np.arange(self.num_classes)
        return table

    def palette(self) -> np.ndarray:
        """uint8 [256, 3]: train id -> RGB; the ignore label and unused ids are black."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: self.num_classes] = self.colors
        return palette


def color_code(color: Color) -> int:
    """65536 r + 256 g + b, the index of `color` in `LabelSet.color_table`."""
    return (color[0] << 16) | (color[1] << 8) | color[2]


def color_of(code: int) -> Color:
    """The inverse of `color_code`."""
    return code >> 16, code >> 8 & 255, code & 255
