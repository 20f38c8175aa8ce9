"""Label sets: a data set's classes, their colours, and what the values in label files mean.

This package imports neither JAX nor TensorFlow.
"""

from deeplab_jax.labels.ade20k import ADE20K
from deeplab_jax.labels.camvid import CAMVID
from deeplab_jax.labels.camvid32 import CAMVID11, CAMVID32
from deeplab_jax.labels.cityscapes import CITYSCAPES
from deeplab_jax.labels.cityscapes_categories import CITYSCAPES_CATEGORIES
from deeplab_jax.labels.coco_stuff import COCO_STUFF
from deeplab_jax.labels.idd import IDD
from deeplab_jax.labels.label_set import IGNORE, UNKNOWN, Color, LabelSet, color_code, color_of, distinct_colors
from deeplab_jax.labels.mapillary import MAPILLARY, MAPILLARY_CITYSCAPES
from deeplab_jax.labels.mapillary2 import MAPILLARY2
from deeplab_jax.labels.merging import group_values, merge
from deeplab_jax.labels.plain import to_plain
from deeplab_jax.labels.voc import VOC

# To add a label set, create a module in this folder and add the label set to this table. If the masks of a data set fit several
# label sets, the first one is proposed, so merged label sets come last.
LABEL_SETS = {
    label_set.name: label_set
    for label_set in (
        CITYSCAPES,
        CAMVID,
        VOC,
        ADE20K,
        MAPILLARY,
        MAPILLARY2,
        IDD,
        COCO_STUFF,
        CAMVID32,
        CAMVID11,
        CITYSCAPES_CATEGORIES,
        MAPILLARY_CITYSCAPES,
    )
}
