"""The 21 classes of Pascal VOC, and its palette."""

from deeplab_jax.labels.label_set import Color, LabelSet


def voc_color(i: int) -> Color:
    """Return the RGB colour of the value `i` (0-255) in the palette of Pascal VOC.

    The bits of `i`, from the lowest up, go to R, G and B in turn, and fill the bits of each channel from the highest down.
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
# The classes of Pascal VOC 2012. torchvision's segmentation weights, which were trained on COCO images, use the same classes in
# the same order.
VOC = LabelSet(name="voc", names=_VOC, colors=tuple(voc_color(i) for i in range(len(_VOC))), ignored_colors=((224, 224, 192),))
