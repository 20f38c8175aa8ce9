"""Label sets: the classes of a data set, their colours, and what values in label files mean. No JAX, no TensorFlow."""

from deeplab_jax.labels.ade20k import ADE20K
from deeplab_jax.labels.camvid import CAMVID
from deeplab_jax.labels.cityscapes import CITYSCAPES
from deeplab_jax.labels.label_set import IGNORE, UNKNOWN, Color, LabelSet, color_code, color_of
from deeplab_jax.labels.voc import VOC, voc_color

# A new label set is a file here and a line in this table.
LABEL_SETS = {label_set.name: label_set for label_set in (CITYSCAPES, CAMVID, VOC, ADE20K)}
