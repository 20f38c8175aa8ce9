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


# cityscapesScripts, helpers/labels.py: name, id, colour of the 19 classes that are evaluated, in the order of their train ids.
_CITYSCAPES = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)

CITYSCAPES = LabelSet(
    name="cityscapes",
    names=tuple(name for name, _, _ in _CITYSCAPES),
    colors=tuple(color for _, _, color in _CITYSCAPES),
    ids=tuple(i for _, i, _ in _CITYSCAPES),
    ignored_ids=(0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, 255),  # 255: the licence plate's -1, as 8 bits write it
    # unlabeled to static share black; dynamic, ground, parking, rail track, guard rail, bridge, tunnel, caravan, trailer.
    # polegroup and licence plate have the colours of pole and car, and so cannot be told from them in colour files.
    ignored_colors=(
        (0, 0, 0),
        (111, 74, 0),
        (81, 0, 81),
        (250, 170, 160),
        (230, 150, 140),
        (180, 165, 180),
        (150, 100, 100),
        (150, 120, 90),
        (0, 0, 90),
        (0, 0, 110),
    ),
)


def voc_color(i: int) -> Color:
    """Colour of value `i` (0-255) in Pascal VOC's palette: the bits of i, dealt to R, G and B from the highest bit down."""
    bits = [[i >> (3 * place + channel) & 1 for place in range(8)] for channel in range(3)]
    red, green, blue = (sum(bit << (7 - place) for place, bit in enumerate(channel)) for channel in bits)
    return red, green, blue


_VOC = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
# Pascal VOC 2012; torchvision's segmentation weights (trained on COCO's images) have the same classes in the same order.
VOC = LabelSet(name="voc", names=_VOC, colors=tuple(voc_color(i) for i in range(len(_VOC))), ignored_colors=((224, 224, 192),))

# The 11 classes of the SegNet tutorial, as its CamVid's PNGs number them; 11 is void.
CAMVID = LabelSet(
    name="camvid",
    names=("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
    colors=(
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
    ignored_ids=(11,),
)
