"""The parameters, FLOPs and bytes of a network.

The numbers follow from the definition of the network. They do not depend on the device or on how the network is computed.
"""

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

# The backward pass of a convolution costs two more convolutions: one for the gradient of the input, one for that of the
# weights.
TRAINING_OVER_FORWARD = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Layer:
    """The cost of a layer with parameters, or of several layers added up.

    FLOPs and bytes only include convolutions. Bytes are counted in the network's dtype.

    Attributes:
      name: The path of the layer in the network, such as "backbone/stage3_block1/conv2", or the name of a part of the network.
      parameters: The number of trained parameters.
      statistics: The number of running BatchNorm statistics.
      flops: The FLOPs of the forward pass for one image. A multiply-add counts as two, and taps in the padding are included.
      inputs, outputs: The bytes that the forward pass reads and writes for one image.
      weights: The bytes of the weights.
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
        """The stage of the backbone that contains the layer, from 1, or 0 for layers outside the stages."""
        match = re.match(r"backbone/stage(\d)", self.name)
        return int(match[1]) if match else 0

    @property
    def block(self) -> str:
        """The block of the backbone that contains the layer, such as "stage3_block1", or "" for layers outside the blocks."""
        match = re.match(r"backbone/(stage\d_block\d+)/", self.name)
        return match[1] if match else ""

    @property
    def part(self) -> str:
        """The part of the network: "stem", "stage 1" to "stage 4", "ASPP", "decoder", "classifier" or "auxiliary head"."""
        if self.stage:
            return f"stage {self.stage}"
        parts = {"backbone": "stem", "aspp": "ASPP", "decoder": "decoder", "classifier": "classifier"}
        return parts.get(self.name.split("/")[0], "auxiliary head")


def layers(model: ModelConfig, num_classes: int, size: tuple[int, int]) -> list[Layer]:
    """Return the cost of each layer with parameters, in the order of execution.

    Args:
      model: The config of the network.
      num_classes: The number of classes.
      size: The height and width of the image.
    """
    network = DeepLabV3(dataclasses.replace(model, remat=()), num_classes)
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    graph = record(lambda variables, images: network.apply(variables, images, False), abstract_variables(network), images)
    costs = [layer for node in graph.nodes for layer in _costs(node)]
    names = dict.fromkeys(layer.name for layer in costs)
    return [total([layer for layer in costs if layer.name == name], name) for name in names]


def by_part(layers: list[Layer]) -> list[Layer]:
    """Return the total cost of each part of the network, in the order in which the parts occur in `layers`."""
    parts = dict.fromkeys(layer.part for layer in layers)
    return [total([layer for layer in layers if layer.part == part], part) for part in parts]


def total(layers: list[Layer], name: str = "total") -> Layer:
    """Return the total cost of all given layers, under the given name."""
    numbers = [field.name for field in dataclasses.fields(Layer) if field.name != "name"]
    return Layer(name, **{number: sum(getattr(layer, number) for layer in layers) for number in numbers})


def training_flops(config: Config) -> int:
    """Return the FLOPs of a training step on the global batch, as they are counted for MFU (model FLOPs utilization).

    A training step counts as three times the forward pass. Recomputation in the backward pass is not included.
    """
    forward = total(layers(config.model, config.labels.num_classes, config.data.crop_size)).flops
    return TRAINING_OVER_FORWARD * forward * config.data.batch_size


def _costs(node: Node) -> list[Layer]:
    """Return the cost of an operation as a list of one layer, or an empty list if the operation has no parameters."""
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
