"""The interface of a source of weights, which is a library such as torchvision with its own tensor names."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from deeplab_jax.config import IMAGENET_MEAN, IMAGENET_STD, Config, ModelConfig
from deeplab_jax.errors import CheckpointError
from deeplab_jax.models.stages import Shapes
from deeplab_jax.weights.state_dicts import StateDict

ASSUMED = "assumed: the reference's default, because tensors do not show it"

# Dotted config field, or "labels" -> (value, description of where the value comes from).
Facts = dict[str, tuple[Any, str]]


@dataclasses.dataclass(frozen=True)
class Source:
    """A library whose weights can be imported. If `required` is set, weights can also be exported to it.

    Attributes:
      has_names: (tensor names without the backbone prefix) -> whether the file belongs to this source.
      head_names: (config) -> the source's name of each layer outside the backbone, by the path of our layer.
      read_head: (shapes of all tensors) -> the `ModelConfig` fields that follow from the tensors of the heads, and
        "num_classes". The result is {} for a file that contains only a backbone.
      read_facts: (state dict, config with the fields that follow from the tensors, `ModelConfig` fields that the user set)
        -> the settings that the file describes, and this source's defaults for others. The caller puts the name of the file
        in front of its error messages.
      required: (config) -> the `ModelConfig` fields that are fixed in this source's networks, with their supported values. None
        if weights cannot be exported to this source.
      describe: (config) -> code or fields with which the source builds the network of an exported file.
      backbone_prefix: The prefix of the backbone's tensors in a segmentation network.
      is_backbone_only: Whether the files of this source contain only a backbone. Such a file is accepted for every requested
        source, because all sources use the same names in it.
      is_pool_first: Whether the image-pooling branch comes first when the ASPP branches are concatenated. In our networks, it
        comes last.
    """

    has_names: Callable[[Collection[str]], bool]
    head_names: Callable[[ModelConfig], dict[str, str]] = lambda _: {}
    read_head: Callable[[Shapes], dict[str, Any]] = lambda _: {}
    read_facts: Callable[[StateDict, ModelConfig, Mapping[str, Any]], Facts] = lambda *_: {}
    required: Callable[[ModelConfig], Mapping[str, tuple[Any, ...]]] | None = None
    describe: Callable[[Config], str] | None = None
    backbone_prefix: str = "backbone."
    is_backbone_only: bool = False
    is_pool_first: bool = False


def conv_bn(ours: str, conv: str, bn: str) -> dict[str, str]:
    """Return the source's names of the two layers of our `ConvBNReLU` at the path `ours`."""
    return {f"{ours}/conv": conv, f"{ours}/bn": bn}


def output_channels(shapes: Shapes, name: str) -> int:
    """Return the number of output channels of a convolution.

    Raises:
      CheckpointError: The tensor is missing or does not belong to a convolution. The caller puts the name of the file in front
        of the message.
    """
    shape = shapes.get(name, ())
    if len(shape) != 4:
        fault = f"has the shape {shape}" if name in shapes else "is missing"
        raise CheckpointError(f"is not a DeepLabV3 network or a supported backbone ({name} {fault}). Use different weights.")
    return shape[0]


def has_imagenet_normalization(model: ModelConfig) -> bool:
    """Return whether images are normalised with the mean and standard deviation of ImageNet, as in the reference recipes."""
    return (tuple(model.mean), tuple(model.std)) == (IMAGENET_MEAN, IMAGENET_STD)
