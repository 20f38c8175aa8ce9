"""What the package asks of a source of weights, such as torchvision: whose tensor names a file can have."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from deeplab_jax.config import IMAGENET_MEAN, IMAGENET_STD, Config, ModelConfig
from deeplab_jax.errors import CheckpointError
from deeplab_jax.models.stages import Shapes
from deeplab_jax.weights.state_dicts import StateDict

USUAL = "not in the tensors: the reference's usual"

# Field of a config, or "labels", to its value and where that comes from.
Facts = dict[str, tuple[Any, str]]


@dataclasses.dataclass(frozen=True)
class Source:
    """A project whose weights can be imported, and exported to if `required` is set.

    Attributes:
      has_names: whether tensors are named as this source names them; their names come without the backbone's prefix.
      head_names: from a config to the source's name of each layer outside the backbone, by our layer's path.
      read_head: from the shapes of all tensors to the fields of `ModelConfig` that the head's tensors show, and
        "num_classes"; {} for a backbone alone.
      read_facts: from the file, the network that its tensors show and the fields of `ModelConfig` that the user gave, to the
        fields that the file describes, and the usual values of others. Errors go on after the file's name.
      required: from a config to the fields of `ModelConfig` that the source's networks fix, and the values that they have
        there; None where nothing can be exported.
      describe: how the source builds the network that loads an export, as code or fields.
      backbone_prefix: of the backbone's tensors within a network.
      is_backbone_alone: whether its files hold no segmentation network; every source names such a backbone in one way.
      is_pool_first: whether the ASPP's image-pooling branch comes first in the concatenation; ours comes last.
    """

    has_names: Callable[[Collection[str]], bool]
    head_names: Callable[[ModelConfig], dict[str, str]] = lambda _: {}
    read_head: Callable[[Shapes], dict[str, Any]] = lambda _: {}
    read_facts: Callable[[StateDict, ModelConfig, Mapping[str, Any]], Facts] = lambda *_: {}
    required: Callable[[ModelConfig], Mapping[str, tuple[Any, ...]]] | None = None
    describe: Callable[[Config], str] | None = None
    backbone_prefix: str = "backbone."
    is_backbone_alone: bool = False
    is_pool_first: bool = False


def conv_bn(ours: str, conv: str, bn: str) -> dict[str, str]:
    """Return the names of the two layers of a `ConvBNReLU`."""
    return {f"{ours}/conv": conv, f"{ours}/bn": bn}


def output_channels(shapes: Shapes, name: str) -> int:
    """Return the output channels of a convolution.

    Raises:
      CheckpointError: it is missing, or no convolution; the message goes on after the file's name.
    """
    shape = shapes.get(name, ())
    if len(shape) != 4:
        fault = f"has the shape {shape}" if name in shapes else "is missing"
        raise CheckpointError(f"is no DeepLabV3 and no backbone of one: {name} {fault}")
    return shape[0]


def has_imagenet_normalization(model: ModelConfig) -> bool:
    """Return whether images are normalised as the references' recipes do."""
    return (tuple(model.mean), tuple(model.std)) == (IMAGENET_MEAN, IMAGENET_STD)
