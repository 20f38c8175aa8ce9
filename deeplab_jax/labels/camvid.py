"""The 11 CamVid classes."""

from deeplab_jax.labels.label_set import LabelSet

# The classes and ids match the PNG labels in the SegNet tutorial's copy of CamVid, where the value 11 means void.
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
