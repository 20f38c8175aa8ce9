"""Parameter, FLOP and byte counts for a network.

The counts follow from the network's definition. They do not depend on the device or on how the operations are computed.
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

# A convolution's backward pass costs two more convolutions: one for the input gradient and one for the weight gradient.
TRAINING_OVER_FORWARD = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Layer:
    """The cost of one layer with parameters, or the total cost of several layers.

    FLOPs and bytes only include convolutions. Byte counts are for arrays in the network's dtype.

    Attributes:
      name: The layer's path in the network, such as "backbone/stage3_block1/conv2", or the name of a network part.
      parameters: The number of trainable parameters.
      statistics: The number of BatchNorm running statistics.
      flops: The forward-pass FLOPs for one image. A multiply-add counts as two, and taps that read padding are included.
      inputs, outputs: The activation bytes read and written in the forward pass for one image.
      weights: The size of the weights in bytes.
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
        """The backbone stage containing the layer, counted from 1, or 0 for layers outside the stages."""
        match = re.match(r"backbone/stage(\d)", self.name)
        return int(match[1]) if match else 0

    @property
    def block(self) -> str:
        """The backbone block containing the layer, such as "stage3_block1", or "" for layers outside the blocks."""
        match = re.match(r"backbone/(stage\d_block\d+)/", self.name)
        return match[1] if match else ""

    @property
    def part(self) -> str:
        """The network part: "stem", "stage 1" to "stage 4", "ASPP", "decoder", "classifier" or "auxiliary head"."""
        if self.stage:
            return f"stage {self.stage}"
        parts = {"backbone": "stem", "aspp": "ASPP", "decoder": "decoder", "classifier": "classifier"}
        return parts.get(self.name.split("/")[0], "auxiliary head")


def layers(model: ModelConfig, num_classes: int, size: tuple[int, int]) -> list[Layer]:
    """Return the cost of each layer with parameters, in execution order.

    Args:
      model: The network config.
      num_classes: The number of classes.
      size: The image height and width.
    """
    network = DeepLabV3(dataclasses.replace(model, remat=()), num_classes)
    images = jax.ShapeDtypeStruct((1, *size, model.channels), jnp.float32)
    graph = record(lambda variables, images: network.apply(variables, images, False), abstract_variables(network), images)
    costs = [layer for node in graph.nodes for layer in _costs(node)]
    names = dict.fromkeys(layer.name for layer in costs)
    return [total([layer for layer in costs if layer.name == name], name) for name in names]


def by_part(layers: list[Layer]) -> list[Layer]:
    """Return the total cost of each network part, in the order of `layers`."""
    parts = dict.fromkeys(layer.part for layer in layers)
    return [total([layer for layer in layers if layer.part == part], part) for part in parts]


def total(layers: list[Layer], name: str = "total") -> Layer:
    """Return the total cost of the given layers, as a single layer called `name`."""
    numbers = [field.name for field in dataclasses.fields(Layer) if field.name != "name"]
    return Layer(name, **{number: sum(getattr(layer, number) for layer in layers) for number in numbers})


def training_flops(config: Config) -> int:
    """Return the FLOPs for a training step on the global batch, as counted for MFU (model FLOPs utilization).

    A training step counts as three forward passes. Recomputation in the backward pass is not included.
    """
    forward = total(layers(config.model, config.labels.num_classes, config.data.crop_size)).flops
    return TRAINING_OVER_FORWARD * forward * config.data.batch_size


def _costs(node: Node) -> list[Layer]:
    """Return an operation's cost as a one-layer list, or an empty list if the operation has no parameters."""
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
