"""The 19 Cityscapes classes used for evaluation."""

from deeplab_jax.labels.label_set import LabelSet

# (name, id, colour) for the 19 evaluation classes in train id order, from helpers/labels.py in cityscapesScripts.
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
    # "license plate" has the id -1, which is stored as 255 in 8 bits.
    ignored_ids=(0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, 255),
    # Black covers the classes from "unlabeled" to "static". The other colours belong to "dynamic", "ground", "parking",
    # "rail track", "guard rail", "bridge", "tunnel", "caravan" and "trailer". Colour files cannot distinguish "polegroup" from
    # "pole" or "license plate" from "car", because each pair shares a colour.
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
