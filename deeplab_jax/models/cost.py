"""Parameters, FLOPs and bytes of a network by its definition: the same however, and on whatever, it is computed."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp

from deeplab_jax.config import Config, ModelConfig
from deeplab_jax.models.convolution import conv2d
from deeplab_jax.models.deeplab import DeepLabV3
from deeplab_jax.models.graph import Node, abstract_variables, record
from deeplab_jax.models.layers import add_bias, batch_norm

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
        """Stage of the backbone, from 1; 0 elsewhere."""
        match = re.match(r"backbone/stage(\d)", self.name)
        return int(match[1]) if match else 0

    @property
    def block(self) -> str:
        """Block of the backbone, such as "stage3_block1"; "" elsewhere."""
        match = re.match(r"backbone/(stage\d_block\d+)/", self.name)
        return match[1] if match else ""

    @property
    def part(self) -> str:
        """One of "stem", "stage 1" to "stage 4", "ASPP", "decoder", "classifier" or "auxiliary head"."""
        if self.stage:
            return f"stage {self.stage}"
        parts = {"backbone": "stem", "aspp": "ASPP", "decoder": "decoder", "classifier": "classifier"}
        return parts.get(self.name.split("/")[0], "auxiliary head")


def layers(model: ModelConfig, num_classes: int, size: tuple[int, int]) -> list[Layer]:
    """Return the layers that have parameters, in the order in which an image of `size` (height, width) passes them."""
    network = DeepLabV3(dataclasses.replace(model, remat=()), num_classes)
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    graph = record(lambda variables, images: network.apply(variables, images, False), abstract_variables(network), images)
    costs = [layer for node in graph.nodes for layer in _costs(node)]
    names = dict.fromkeys(layer.name for layer in costs)
    return [total([layer for layer in costs if layer.name == name], name) for name in names]


def by_part(layers: list[Layer]) -> list[Layer]:
    """Add up the layers of each part, parts in their order."""
    parts = dict.fromkeys(layer.part for layer in layers)
    return [total([layer for layer in layers if layer.part == part], part) for part in parts]


def total(layers: list[Layer], name: str = "total") -> Layer:
    """Add up all layers."""
    numbers = [field.name for field in dataclasses.fields(Layer) if field.name != "name"]
    return Layer(name, **{number: sum(getattr(layer, number) for layer in layers) for number in numbers})


def training_flops(config: Config) -> int:
    """Return the FLOPs of a training step on the global batch: three times those of the forward pass, as MFU counts them."""
    forward = total(layers(config.model, config.labels.num_classes, config.data.crop_size)).flops
    return TRAINING_OVER_FORWARD * forward * config.data.batch_size


def _costs(node: Node) -> list[Layer]:
    """Return what the variables of an operation cost; nothing where it has none."""
    arguments = node.arguments
    if node.operation is conv2d:
        x, kernel, width = arguments["x"], arguments["kernel"], jnp.dtype(node.output.dtype).itemsize
        weights = math.prod(kernel.shape)
        return [
            Layer(
                "/".join(kernel.path[1:-1]),
                parameters=weights,
                flops=2 * math.prod(node.output.shape[:3]) * weights,
                inputs=width * math.prod(x.shape),
                outputs=width * math.prod(node.output.shape),
                weights=width * weights,
            )
        ]
    if node.operation is add_bias:
        return [Layer("/".join(arguments["bias"].path[1:-1]), parameters=arguments["bias"].shape[0])]
    if node.operation is batch_norm:
        numbers = 2 * arguments["scale"].shape[0]
        return [Layer("/".join(arguments["scale"].path[1:-1]), parameters=numbers, statistics=numbers)]
    return []
