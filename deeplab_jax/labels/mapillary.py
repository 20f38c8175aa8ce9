"""The 65 classes of Mapillary Vistas 1.2, and their mapping to the 19 Cityscapes classes."""

from deeplab_jax.labels.label_set import Color, LabelSet
from deeplab_jax.labels.merging import merge

# Names and colours in id order, 0 to 64, from the config.json in the download (config_v1.2.json in Vistas 2.0).
_CLASSES: tuple[tuple[str, Color], ...] = (
    ("bird", (165, 42, 42)),
    ("ground animal", (0, 192, 0)),
    ("curb", (196, 196, 196)),
    ("fence", (190, 153, 153)),
    ("guard rail", (180, 165, 180)),
    ("barrier", (90, 120, 150)),
    ("wall", (102, 102, 156)),
    ("bike lane", (128, 64, 255)),
    ("crosswalk - plain", (140, 140, 200)),
    ("curb cut", (170, 170, 170)),
    ("parking", (250, 170, 160)),
    ("pedestrian area", (96, 96, 96)),
    ("rail track", (230, 150, 140)),
    ("road", (128, 64, 128)),
    ("service lane", (110, 110, 110)),
    ("sidewalk", (244, 35, 232)),
    ("bridge", (150, 100, 100)),
    ("building", (70, 70, 70)),
    ("tunnel", (150, 120, 90)),
    ("person", (220, 20, 60)),
    ("bicyclist", (255, 0, 0)),
    ("motorcyclist", (255, 0, 100)),
    ("other rider", (255, 0, 200)),
    ("lane marking - crosswalk", (200, 128, 128)),
    ("lane marking - general", (255, 255, 255)),
    ("mountain", (64, 170, 64)),
    ("sand", (230, 160, 50)),
    ("sky", (70, 130, 180)),
    ("snow", (190, 255, 255)),
    ("terrain", (152, 251, 152)),
    ("vegetation", (107, 142, 35)),
    ("water", (0, 170, 30)),
    ("banner", (255, 255, 128)),
    ("bench", (250, 0, 30)),
    ("bike rack", (100, 140, 180)),
    ("billboard", (220, 220, 220)),
    ("catch basin", (220, 128, 128)),
    ("cctv camera", (222, 40, 40)),
    ("fire hydrant", (100, 170, 30)),
    ("junction box", (40, 40, 40)),
    ("mailbox", (33, 33, 33)),
    ("manhole", (100, 128, 160)),
    ("phone booth", (142, 0, 0)),
    ("pothole", (70, 100, 150)),
    ("street light", (210, 170, 100)),
    ("pole", (153, 153, 153)),
    ("traffic sign frame", (128, 128, 128)),
    ("utility pole", (0, 0, 80)),
    ("traffic light", (250, 170, 30)),
    ("traffic sign (back)", (192, 192, 192)),
    ("traffic sign (front)", (220, 220, 0)),
    ("trash can", (140, 140, 20)),
    ("bicycle", (119, 11, 32)),
    ("boat", (150, 0, 255)),
    ("bus", (0, 60, 100)),
    ("car", (0, 0, 142)),
    ("caravan", (0, 0, 90)),
    ("motorcycle", (0, 0, 230)),
    ("on rails", (0, 80, 100)),
    ("other vehicle", (128, 64, 64)),
    ("trailer", (0, 0, 110)),
    ("truck", (0, 0, 70)),
    ("wheeled slow", (0, 0, 192)),
    ("car mount", (32, 32, 32)),
    ("ego vehicle", (120, 10, 10)),
)

# Masks are palette images whose indices are the ids. The id 65 is "unlabeled", the only class that is not evaluated.
MAPILLARY = LabelSet(
    name="mapillary",
    names=tuple(name for name, _ in _CLASSES),
    colors=tuple(color for _, color in _CLASSES),
    ignored_ids=(65,),
)

# The mapping that papers on domain generalisation use since RobustNet (arXiv 2103.15597, datasets/mapillary.py in its code). It
# ignores the classes without a clear counterpart, such as "crosswalk - plain" and "street light".
_CITYSCAPES_CLASSES = {
    "road": ("road", "lane marking - general", "manhole"),
    "sidewalk": ("sidewalk", "curb"),
    "building": ("building",),
    "wall": ("wall",),
    "fence": ("fence",),
    "pole": ("pole", "utility pole"),
    "traffic light": ("traffic light",),
    "traffic sign": ("traffic sign (front)",),
    "vegetation": ("vegetation",),
    "terrain": ("terrain",),
    "sky": ("sky",),
    "person": ("person",),
    "rider": ("bicyclist", "motorcyclist", "other rider"),
    "car": ("car",),
    "truck": ("truck",),
    "bus": ("bus",),
    "train": ("on rails",),
    "motorcycle": ("motorcycle",),
    "bicycle": ("bicycle",),
}
_USED = {member for members in _CITYSCAPES_CLASSES.values() for member in members}

# The classes and train ids are those of Cityscapes, so networks trained on either data set can be evaluated on both.
MAPILLARY_CITYSCAPES = merge(
    MAPILLARY,
    _CITYSCAPES_CLASSES,
    ignored=tuple(name for name in MAPILLARY.names if name not in _USED),
    name="mapillary_cityscapes",
)
