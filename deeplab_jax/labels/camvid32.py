"""The 32 original CamVid classes, and their mapping to the usual 11."""

from deeplab_jax.labels.camvid import CAMVID
from deeplab_jax.labels.label_set import Color
from deeplab_jax.labels.merging import group_values, merge

# Names and colours from label_colors.txt in the original download, in alphabetical order. "Void" is the class number 30.
_CLASSES: tuple[tuple[str, Color], ...] = (
    ("animal", (64, 128, 64)),
    ("archway", (192, 0, 128)),
    ("bicyclist", (0, 128, 192)),
    ("bridge", (0, 128, 64)),
    ("building", (128, 0, 0)),
    ("car", (64, 0, 128)),
    ("cart, luggage, pram", (64, 0, 192)),
    ("child", (192, 128, 64)),
    ("column, pole", (192, 192, 128)),
    ("fence", (64, 64, 128)),
    ("lane markings, drivable", (128, 0, 192)),
    ("lane markings, not drivable", (192, 0, 64)),
    ("miscellaneous text", (128, 128, 64)),
    ("motorcycle, scooter", (192, 0, 192)),
    ("other moving", (128, 64, 64)),
    ("parking block", (64, 192, 128)),
    ("pedestrian", (64, 64, 0)),
    ("road", (128, 64, 128)),
    ("road shoulder", (128, 128, 192)),
    ("sidewalk", (0, 0, 192)),
    ("sign, symbol", (192, 128, 128)),
    ("sky", (128, 128, 128)),
    ("suv, pickup truck", (64, 128, 192)),
    ("traffic cone", (0, 0, 64)),
    ("traffic light", (0, 64, 64)),
    ("train", (192, 64, 128)),
    ("tree", (128, 128, 0)),
    ("truck, bus", (192, 128, 192)),
    ("tunnel", (64, 0, 64)),
    ("miscellaneous vegetation", (192, 192, 0)),
    ("wall", (64, 192, 0)),
)
_VOID = 30

# The masks store colours. The ids are the positions in label_colors.txt, which fast.ai's copy of the masks stores. The class
# "void" is ignored, so 31 classes remain.
CAMVID32 = group_values(
    "camvid32",
    tuple(name for name, _ in _CLASSES),
    [(i + (i >= _VOID),) for i in range(len(_CLASSES))],
    [(color,) for _, color in _CLASSES],
    ignored_ids=(_VOID,),
)

# SegNet's grouping into 11 classes, from `camvidPixelLabelIDs` in MathWorks' semantic segmentation example.
_GROUPS = {
    "sky": ("sky",),
    "building": ("building", "bridge", "wall", "tunnel", "archway"),
    "pole": ("column, pole", "traffic cone"),
    "road": ("road", "lane markings, drivable", "lane markings, not drivable"),
    "pavement": ("sidewalk", "parking block", "road shoulder"),
    "tree": ("tree", "miscellaneous vegetation"),
    "sign": ("sign, symbol", "miscellaneous text", "traffic light"),
    "fence": ("fence",),
    "car": ("car", "suv, pickup truck", "truck, bus", "train", "other moving"),
    "pedestrian": ("pedestrian", "child", "cart, luggage, pram", "animal"),
    "bicyclist": ("bicyclist", "motorcycle, scooter"),
}

# The classes and train ids are those of `CAMVID`, so networks trained on either copy of the data set can be evaluated on both.
CAMVID11 = merge(CAMVID32, {name: _GROUPS[name] for name in CAMVID.names}, name="camvid11")
