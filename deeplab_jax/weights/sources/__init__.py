"""The libraries whose weights are supported. To add one, describe it in a module in this folder and add it to `SOURCES`."""

from deeplab_jax.weights.source import Source
from deeplab_jax.weights.sources import mmseg, timm, torchvision

# A file belongs to the first source whose names it has. timm comes last, because it accepts the names of every plain backbone.
SOURCES: dict[str, Source] = {
    "mmseg": mmseg.SOURCE,
    "torchvision": torchvision.SOURCE,
    "timm": timm.SOURCE,
}
