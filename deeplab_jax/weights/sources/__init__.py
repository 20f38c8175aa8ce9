"""The libraries whose weights can be imported. To add one, describe it in a new module here and add it to `SOURCES`."""

from deeplab_jax.weights.source import Source
from deeplab_jax.weights.sources import (
    efficientnet_pytorch,
    huggingface,
    mmseg,
    paddleclas,
    paddleseg,
    smp,
    timm,
    torchvision,
    vainf,
)

# A file is assigned to the first library that accepts its tensor names. timm comes last because it accepts any names.
SOURCES: dict[str, Source] = {
    "paddleseg": paddleseg.SOURCE,
    "paddleclas": paddleclas.SOURCE,
    "mmseg": mmseg.SOURCE,
    "huggingface": huggingface.SOURCE,
    "smp": smp.SOURCE,
    "vainf": vainf.SOURCE,
    "torchvision": torchvision.SOURCE,
    "efficientnet_pytorch": efficientnet_pytorch.SOURCE,
    "timm": timm.SOURCE,
}
