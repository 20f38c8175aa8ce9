"""The 26 classes of the Indian Driving Dataset (IDD), called level 3 ids."""

from deeplab_jax.labels.label_set import Color
from deeplab_jax.labels.merging import group_values

# (name, colours) in id order, 0 to 25, from helpers/anue_labels.py in AutoNUE's public-code. A class with several colours
# combines several of the 40 labels.
_CLASSES: tuple[tuple[str, tuple[Color, ...]], ...] = (
    ("road", ((128, 64, 128),)),
    ("parking, drivable fallback", ((250, 170, 160), (81, 0, 81))),
    ("sidewalk", ((244, 35, 232),)),
    ("rail track, non-drivable fallback", ((230, 150, 140), (152, 251, 152))),
    ("person, animal", ((220, 20, 60), (246, 198, 145))),
    ("rider", ((255, 0, 0),)),
    ("motorcycle", ((0, 0, 230),)),
    ("bicycle", ((119, 11, 32),)),
    ("autorickshaw", ((255, 204, 54),)),
    ("car", ((0, 0, 142),)),
    ("truck", ((0, 0, 70),)),
    ("bus", ((0, 60, 100),)),
    ("vehicle fallback", ((136, 143, 153), (0, 0, 90), (0, 0, 110), (0, 80, 100))),
    ("curb", ((220, 190, 40),)),
    ("wall", ((102, 102, 156),)),
    ("fence", ((190, 153, 153),)),
    ("guard rail", ((180, 165, 180),)),
    ("billboard", ((174, 64, 67),)),
    ("traffic sign", ((220, 220, 0),)),
    ("traffic light", ((250, 170, 30),)),
    ("pole", ((153, 153, 153),)),
    # Its official colour, (169, 187, 214), is also that of "fallback background" in the class "sky". Here the blue value is
    # increased by one, so colour files are an error instead of a wrong class.
    ("obstacle, structure, barrier fallback", ((169, 187, 215),)),
    ("building", ((70, 70, 70),)),
    ("bridge, tunnel", ((150, 100, 100), (150, 120, 90))),
    ("vegetation", ((107, 142, 35),)),
    ("sky, fallback background", ((70, 130, 180),)),
)

IDD = group_values(
    "idd",
    tuple(name for name, _ in _CLASSES),
    [(i,) for i in range(len(_CLASSES))],
    [colors for _, colors in _CLASSES],
)
