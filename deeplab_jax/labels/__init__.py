"""Label sets: a data set's classes, their colours, and what the values in label files mean.

This package imports neither JAX nor TensorFlow.
"""

from deeplab_jax.labels.ade20k import ADE20K
from deeplab_jax.labels.camvid import CAMVID
from deeplab_jax.labels.cityscapes import CITYSCAPES
from deeplab_jax.labels.label_set import IGNORE, UNKNOWN, Color, LabelSet, color_code, color_of, distinct_colors
from deeplab_jax.labels.voc import VOC

# To add a label set, create a module in this folder and add the label set to this table.
LABEL_SETS = {label_set.name: label_set for label_set in (CITYSCAPES, CAMVID, VOC, ADE20K)}
