"""The 7 Cityscapes categories, such as "vehicle"."""

from deeplab_jax.labels.cityscapes import CITYSCAPES
from deeplab_jax.labels.merging import merge

# The categories of the 19 evaluated classes, from helpers/labels.py in cityscapesScripts.
CATEGORIES = {
    "flat": ("road", "sidewalk"),
    "construction": ("building", "wall", "fence"),
    "object": ("pole", "traffic light", "traffic sign"),
    "nature": ("vegetation", "terrain"),
    "sky": ("sky",),
    "human": ("person", "rider"),
    "vehicle": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
}

# Classes that are not evaluated, such as "parking" and "trailer", stay ignored, as in the official category scores.
CITYSCAPES_CATEGORIES = merge(CITYSCAPES, CATEGORIES, name="cityscapes_categories")
