"""The sources of weights. A new one is a file here, which says everything about it, and a line below."""

from deeplab_jax.weights.source import Source
from deeplab_jax.weights.sources import mmseg, timm, torchvision

# The first whose names a file has; timm's are those of any backbone alone.
SOURCES: dict[str, Source] = {
    "mmseg": mmseg.SOURCE,
    "torchvision": torchvision.SOURCE,
    "timm": timm.SOURCE,
}
