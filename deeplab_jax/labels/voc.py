"""The 21 Pascal VOC classes and the Pascal VOC palette."""

from deeplab_jax.labels.label_set import Color, LabelSet


def voc_color(i: int) -> Color:
    """Return the RGB colour for the label value `i` (0-255) in the Pascal VOC palette.

    Starting with the lowest, the bits of `i` go to R, G and B in turn, filling each channel from its highest bit down.
    """
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
# The Pascal VOC 2012 classes. torchvision's segmentation weights, trained on COCO images, use the same classes in the same
# order.
VOC = LabelSet(name="voc", names=_VOC, colors=tuple(voc_color(i) for i in range(len(_VOC))), ignored_colors=((224, 224, 192),))
