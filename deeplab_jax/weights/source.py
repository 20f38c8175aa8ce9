"""The interface for weights sources. A source is a library with its own tensor names, such as torchvision."""

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from deeplab_jax.config import IMAGENET_MEAN, IMAGENET_STD, Config, ModelConfig
from deeplab_jax.errors import CheckpointError
from deeplab_jax.models.stages import Shapes

ASSUMED = "assumed: the reference implementation's default, because the tensors do not determine this field"


def last_parts(path: str, count: int) -> str:
    """Return the last components of a path, such as "folder/file.pth" for two. A relative path is in the working directory."""
    return "/".join(os.path.abspath(path).replace("\\", "/").split("/")[-count:])


@dataclasses.dataclass(frozen=True)
class StateDict:
    """The contents of a weights file, or of a folder with weights.

    Attributes:
      source: The file's or folder's path or name, used in messages.
      tensors: The tensors as float32 arrays, keyed by name. Wrappers and name prefixes are removed.
      meta: The file's metadata: mmsegmentation's "meta" entry, or our own record.
      notes: Messages telling the user how the tensors were read and converted.
      config: The content of config.json, if the weights are in a folder that has this file.
      preprocessing: The content of preprocessor_config.json, likewise.
    """

    source: str
    tensors: dict[str, np.ndarray]
    meta: dict[str, Any]
    notes: tuple[str, ...] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocessing: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class OtherHeadError(CheckpointError):
    """A segmentation head that is not a DeepLabV3's. The message continues "the network", such as "is an FCN"."""


# Maps a dotted config field, or "labels", to (value, description of where the value comes from).
Facts = dict[str, tuple[Any, str]]


@dataclasses.dataclass(frozen=True)
class Source:
    """A library whose weights can be imported. If `required` is set, weights can also be exported to it.

    Attributes:
      has_names: (tensor names without the backbone prefix) -> whether the file comes from this library.
      head_names: (model config) -> a dict mapping our layer paths outside the backbone to the library's layer names.
      read_head: (all tensor shapes) -> the `ModelConfig` fields, plus "num_classes", inferred from the heads' tensors. The
        result is {} for a file that contains only a backbone. It raises an OtherHeadError for another network's head.
      read_facts: (state dict, model config inferred from the tensors, `ModelConfig` fields set by the user) -> the file's
        settings, and the library's defaults for the others. The caller prefixes error messages with the file name. It is not
        called for the backbone of a segmentation network with another head.
      check_settings: (state dict) -> None. It raises a CheckpointError if the file's settings show a network that ours does not
        reproduce. It is also called for a file with only a backbone.
      read_threshold: (state dict) -> the probability above which a network with one logit predicts the second class.
      read_notes: (state dict) -> messages about settings in the file that a config cannot express.
      required: (model config) -> a dict with the supported values of the `ModelConfig` fields for which the library has others
        than the default. None if weights cannot be exported to this library.
      free: The `ModelConfig` fields of which the library supports every value. Of a field that is neither free nor in
        `required`, only the default is supported, so a source need not know about a new field.
      describe: (config) -> the code or settings that build the exported network in this library.
      backbone_prefix: The prefix of backbone tensor names in a segmentation network.
      is_backbone_only: Whether this library's files contain only a backbone. Such files are accepted even if the user requests
        a different library, because all libraries use the same backbone tensor names.
      first_inputs: (model config) -> a dict with the layers whose inputs the library concatenates in another order. It maps our
        path of the layer, such as "aspp/fuse", to the number of the last input channels that come first in the library.
      unused: The modules that the library can add to a network but that segmentation does not need. They are not imported,
        unless they are part of our network.
      statistics: The names of BatchNorm's running mean and variance.
      suffixes: The suffixes of the files to which weights can be exported.
      loads_with: The function that loads an exported file.
    """

    has_names: Callable[[Collection[str]], bool]
    head_names: Callable[[ModelConfig], dict[str, str]] = lambda _: {}
    read_head: Callable[[Shapes], dict[str, Any]] = lambda _: {}
    read_facts: Callable[[StateDict, ModelConfig, Mapping[str, Any]], Facts] = lambda *_: {}
    check_settings: Callable[[StateDict], None] = lambda _: None
    read_threshold: Callable[[StateDict], float] = lambda _: 0.5
    read_notes: Callable[[StateDict], tuple[str, ...]] = lambda _: ()
    required: Callable[[ModelConfig], Mapping[str, tuple[Any, ...]]] | None = None
    free: frozenset[str] = frozenset({"mean", "std"})
    describe: Callable[[Config], str] | None = None
    backbone_prefix: str = "backbone."
    is_backbone_only: bool = False
    first_inputs: Callable[[ModelConfig], Mapping[str, int]] = lambda _: {}
    unused: frozenset[str] = frozenset()
    statistics: tuple[str, str] = ("running_mean", "running_var")
    suffixes: tuple[str, ...] = (".safetensors", ".pth", ".pt")
    loads_with: str = "load_state_dict(strict=True)"


def conv_bn(ours: str, conv: str, bn: str) -> dict[str, str]:
    """Return a dict mapping the layers in our `ConvBNReLU` at the path `ours` to the library's names `conv` and `bn`."""
    return {f"{ours}/conv": conv, f"{ours}/bn": bn}


def separable_bn(ours: str, pair: str, bn: str) -> dict[str, str]:
    """Return the same for a `depthwise+1x1` convolution, whose two layers are the elements of the library's module `pair`."""
    return {f"{ours}/depthwise": f"{pair}.0"} | conv_bn(ours, f"{pair}.1", bn)


def aspp_names(aspp: str, rates: int, name_branch: Callable[[str, str, str], dict[str, str]] = conv_bn) -> dict[str, str]:
    """Return a dict mapping our layers in the ASPP, without `refine`, to the names that torchvision and its followers have.

    Args:
      aspp: The library's name of the ASPP.
      rates: The number of branches with atrous rates.
      name_branch: `conv_bn` or `separable_bn`, for the branches with atrous rates.
    """
    names = conv_bn("aspp/branch_1x1", f"{aspp}.convs.0.0", f"{aspp}.convs.0.1")
    for i in range(1, rates + 1):
        names |= name_branch(f"aspp/branch_rate{i}", f"{aspp}.convs.{i}.0", f"{aspp}.convs.{i}.1")
    names |= conv_bn("aspp/branch_pool", f"{aspp}.convs.{rates + 1}.1", f"{aspp}.convs.{rates + 1}.2")
    return names | conv_bn("aspp/fuse", f"{aspp}.project.0", f"{aspp}.project.1")


def output_channels(shapes: Shapes, name: str) -> int:
    """Return a convolution's number of output channels.

    Raises:
      CheckpointError: The tensor is missing or is not a convolution kernel. The caller prefixes the message with the file name.
    """
    shape = shapes.get(name, ())
    if len(shape) != 4:
        fault = f"has the shape {shape}" if name in shapes else "is missing"
        raise CheckpointError(f"is not a complete DeepLabV3 network ({name} {fault}). Use different weights.")
    return shape[0]


def has_imagenet_normalization(model: ModelConfig) -> bool:
    """Return whether images are normalised with ImageNet's mean and standard deviation, as in the reference recipes."""
    return (tuple(model.mean), tuple(model.std)) == (IMAGENET_MEAN, IMAGENET_STD)


def describe_images(model: ModelConfig) -> str:
    """Return a sentence about the normalisation of the images that an exported network expects."""
    return f"Its images are normalised with mean={list(model.mean)}, std={list(model.std)} on values from 0 to 255."
