"""Parameters, FLOPs and bytes of a network by its definition: the same however, and on whatever, it is computed."""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from deeplab_jax.config import Config, ModelConfig
from deeplab_jax.models import DeepLabV3
from deeplab_jax.models.layers import BatchNorm, Conv

# The backward pass of a convolution is two of its size: the gradients of its input and of its weights.
TRAINING_OVER_FORWARD = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Layer:
    """A layer with parameters, or several added up. All sizes in bytes are those of convolutions, in the network's dtype.

    Attributes:
      name: where it is in the network, such as "backbone/stage3_block1/conv2", or the part that it stands for.
      parameters: trained numbers.
      statistics: BatchNorm's running ones.
      flops: of convolutions, forward, for one image; a multiplication and an addition are two, and taps in the padding count.
      inputs, outputs: bytes read and written, forward, for one image.
      weights: bytes.
    """

    name: str
    parameters: int = 0
    statistics: int = 0
    flops: int = 0
    inputs: int = 0
    outputs: int = 0
    weights: int = 0

    @property
    def stage(self) -> int:
        """Of the backbone, from 1; 0 elsewhere."""
        found = re.match(r"backbone/stage(\d)", self.name)
        return int(found[1]) if found else 0

    @property
    def block(self) -> str:
        """Of the backbone, such as "stage3_block1"; "" elsewhere."""
        found = re.match(r"backbone/(stage\d_block\d+)/", self.name)
        return found[1] if found else ""

    @property
    def part(self) -> str:
        """One of "stem", "stage 1" to "stage 4", "ASPP", "decoder", "classifier" or "auxiliary head"."""
        if self.stage:
            return f"stage {self.stage}"
        parts = {"backbone": "stem", "aspp": "ASPP", "decoder": "decoder", "classifier": "classifier"}
        return parts.get(self.name.split("/")[0], "auxiliary head")


def layers(model: ModelConfig, num_classes: int, size: tuple[int, int]) -> list[Layer]:
    """The layers that have parameters, in the order in which an image of `size` (height, width) passes them."""
    found: list[Layer] = []

    # Only shapes pass through the network: nothing is initialised, and no form of a convolution is chosen.
    def note(proceed: Any, args: tuple, kwargs: dict[str, Any], context: nn.module.InterceptorContext) -> Any:
        layer = context.module
        if isinstance(layer, Conv):
            y = jnp.zeros(_output_shape(layer, args[0].shape), layer.dtype)
            found.append(_convolution(layer, args[0].shape, y.shape))
            return y
        if isinstance(layer, BatchNorm):
            numbers = 2 * args[0].shape[-1]
            found.append(Layer("/".join(layer.path), parameters=numbers, statistics=numbers))
            return args[0]
        return proceed(*args, **kwargs)

    network = DeepLabV3(dataclasses.replace(model, remat=()), num_classes)
    with nn.intercept_methods(note):
        jax.eval_shape(lambda images: network.apply({}, images, False), jax.ShapeDtypeStruct((1, *size, 3), jnp.float32))
    return found


def by_part(found: list[Layer]) -> list[Layer]:
    """The layers of each part added up, parts in their order."""
    parts = dict.fromkeys(layer.part for layer in found)
    return [total([layer for layer in found if layer.part == part], part) for part in parts]


def total(found: list[Layer], name: str = "total") -> Layer:
    """All layers added up."""
    numbers = [field.name for field in dataclasses.fields(Layer) if field.name != "name"]
    return Layer(name, **{number: sum(getattr(layer, number) for layer in found) for number in numbers})


def training_flops(config: Config) -> int:
    """FLOPs of a training step on the global batch: three times those of the forward pass, as MFU counts them."""
    forward = total(layers(config.model, config.labels.num_classes, config.data.crop_size)).flops
    return TRAINING_OVER_FORWARD * forward * config.data.batch_size


def _output_shape(layer: Conv, shape: tuple[int, ...]) -> tuple[int, ...]:
    height, width = (-(-length // layer.stride) for length in shape[1:3])
    return shape[0], height, width, layer.features


def _convolution(layer: Conv, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Layer:
    weights = layer.size**2 * (1 if layer.is_depthwise else inputs[-1]) * layer.features
    width = jnp.dtype(layer.dtype).itemsize
    return Layer(
        "/".join(layer.path),
        parameters=weights + layer.use_bias * layer.features,
        flops=2 * math.prod(outputs[:3]) * weights,
        inputs=width * math.prod(inputs),
        outputs=width * math.prod(outputs),
        weights=width * weights,
    )
