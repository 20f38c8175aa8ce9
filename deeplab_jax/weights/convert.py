"""Convert PyTorch state dicts to Flax variables and back.

The conversion is strict: every tensor is either used or reported.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from deeplab_jax.config import Config, ModelConfig
from deeplab_jax.config.fields import field_names
from deeplab_jax.errors import CheckpointError, summarize
from deeplab_jax.models import DeepLabV3, canonical, graph
from deeplab_jax.models.backbones import BACKBONES
from deeplab_jax.weights import names
from deeplab_jax.weights.recognize import Network
from deeplab_jax.weights.source import StateDict
from deeplab_jax.weights.sources import SOURCES

Variables = dict[names.Path, np.ndarray]

# PyTorch's BatchNorm always stores this counter, but only uses it if `momentum` is None.
COUNTER = "num_batches_tracked"


def to_variables(state: StateDict, network: Network, *, ignore_head: bool = False) -> tuple[Variables, list[str]]:
    """Convert a state dict's tensors to Flax variables.

    Args:
      state: The state dict.
      network: The network recognised by `recognize`. Its label set determines the number of classes.
      ignore_head: Whether to skip the classifiers' tensors.

    Returns:
      A dict mapping variable paths to arrays, and messages about unused tensors.

    Raises:
      CheckpointError: Tensors are missing or unexpected, or have the wrong shape or invalid values. The message lists them.
    """
    shapes = variable_shapes(network.config)
    if network.is_backbone:
        shapes = {path: shape for path, shape in shapes.items() if path[1] == "backbone"}
    model, fmt = network.config.model, network.fmt
    name_of = names.reference_names(shapes, model, fmt)
    tensors = dict(state.tensors)
    others = _find_names_outside_network(tensors, network)
    tensors = {name: value for name, value in tensors.items() if name not in others}
    if network.is_backbone:
        name_of = {path: names.strip_backbone_prefix(name) for path, name in name_of.items()}
        tensors = {names.strip_backbone_prefix(name): value for name, value in tensors.items()}
    classifiers = {name for path, name in name_of.items() if path[1] in names.HEADS}
    if network.is_sigmoid:
        # The sigmoid of x is the softmax of 0 and x. Only the main classifier decides, so only its bias has a threshold.
        shifts = {name_of["params", "classifier", "bias"]: network.shift}
        tensors |= {name: _prepend_zero(tensors[name], shifts.get(name, 0.0)) for name in classifiers & tensors.keys()}
    heads = classifiers if ignore_head else set()
    counters = {name for name in tensors if name.endswith(COUNTER)}
    classifier = _find_names_in_classifier(tensors, network) - counters if network.is_backbone else set()
    used = {path: name for path, name in name_of.items() if name not in heads}
    actual = {name: value.shape for name, value in tensors.items() if name not in heads | counters | classifier}
    expected = {name: _convert_shape(shapes[path]) for path, name in used.items()}
    _require_same_shapes(state.source, expected, actual, network)
    messages = [
        f"tensors not used: {len(unused)} ({reason})"
        for unused, reason in (
            (counters, f"{COUNTER}, which our BatchNorm does not need"),
            (classifier, f"the ImageNet classifier, {summarize(sorted(classifier))}"),
            (heads & set(tensors), f"the segmentation classifiers, {summarize(sorted(heads & set(tensors)))}"),
            (others, f"not part of the {'backbone' if network.is_backbone else 'network'}: {summarize(sorted(others))}"),
        )
        if unused
    ]
    invalid = {name for name in used.values() if not np.isfinite(tensors[name]).all()}
    invalid |= {name for path, name in used.items() if path[-1] == "var" and (tensors[name] < 0).any()}
    if invalid:
        raise CheckpointError(
            f"`{state.source}` contains NaN, infinity or a variance below 0 in {summarize(sorted(invalid))}. "
            "Use different weights."
        )
    return {path: names.from_reference(path, tensors[name], model, fmt) for path, name in used.items()}, messages


def to_state_dict(variables: Variables, model: ModelConfig, fmt: str, step: int) -> dict[str, np.ndarray]:
    """Convert Flax variables to a state dict for the given library.

    The result includes the BatchNorm counters (num_batches_tracked), because load_state_dict(strict=True) requires them.

    Args:
      variables: All of a network's variables, keyed by path.
      model: The network architecture.
      fmt: The library, a key of `SOURCES`.
      step: The value to store in the counters.

    Raises:
      CheckpointError: The library has no equivalent network.
    """
    require_exportable(model, fmt)
    name_of = names.reference_names(variables, model, fmt)
    state = {name: names.to_reference(path, variables[path], model, fmt) for path, name in name_of.items()}
    state |= {name: _make_neutral(name, shape) for name, shape in _list_unused_shapes(model, fmt).items()}
    counters = [name.replace("running_mean", COUNTER) for name in state if name.endswith("running_mean")]
    return state | {name: np.array(step, np.int64) for name in counters}


def _list_unused_shapes(model: ModelConfig, fmt: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that a library's network has but does not compute with, keyed by name."""
    shapes = BACKBONES[model.backbone].unused(model, fmt)
    return {SOURCES[fmt].backbone_prefix + name: shape for name, shape in shapes.items()}


def _make_neutral(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, float(name.endswith("running_var")), np.float32)


def require_exportable(model: ModelConfig, fmt: str) -> None:
    """Raise a CheckpointError if the library has no equivalent network."""
    if SOURCES[fmt].required is None:
        exported = [name for name, source in SOURCES.items() if source.required]
        raise CheckpointError(f"`--to` (={fmt!r}) has no segmentation networks. Use {' or '.join(exported)}.")
    for field, values in supported_values(model, fmt).items():
        # Different configs can describe the same network, so compare canonical configs instead of individual fields.
        if not any(canonical(dataclasses.replace(model, **{field: value})) == canonical(model) for value in values):
            supported = " or ".join(map(repr, values))
            raise CheckpointError(
                f"`--to` (={fmt!r}) does not support model.{field}={getattr(model, field)!r}, only {supported}. Export to a "
                "different library."
            )


def supported_values(model: ModelConfig, fmt: str) -> dict[str, tuple[Any, ...]]:
    """Return the values that a library supports for each `ModelConfig` field that it does not leave open."""
    source = SOURCES[fmt]
    assert source.required
    fields, supported = field_names(ModelConfig, changes=("shapes", "meaning")), source.required(model)
    others = [field for field in fields if field not in source.free and field not in supported]
    return {**supported} | {field: (getattr(ModelConfig(), field),) for field in others}


def variable_shapes(config: Config) -> dict[names.Path, tuple[int, ...]]:
    """Return a dict mapping variable paths to shapes for the config's network."""
    variables = graph.abstract_variables(DeepLabV3(config.model, config.labels.num_classes))
    return {path: leaf.shape for path, leaf in names.flatten(variables).items()}


def _convert_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a variable's shape in PyTorch, where kernels are OIHW instead of HWIO."""
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape


def _find_names_outside_network(tensors: Mapping[str, np.ndarray], network: Network) -> set[str]:
    """Return the names of the tensors that belong to other modules than the network.

    These are the heads, if only the backbone is used. Otherwise they are the library's unused modules, and modules without
    kernels, such as class weights that the loss reads.
    """
    if network.is_backbone:
        firsts = BACKBONES[network.config.model.backbone].first_tensors
        prefix = next((prefix for prefix in names.backbone_prefixes() for first in firsts if prefix + first in tensors), "")
        # A segmentation network can have a head that is named like an ImageNet classifier.
        classifier = _find_names_in_classifier(tensors, network) if prefix in ("", "features.") else set()
        return {name for name in tensors if not name.startswith(prefix)} - classifier
    source = SOURCES[network.fmt]
    layers = source.head_names(network.config.model).items()
    own = {name.partition(".")[0] for ours, name in layers if network.config.model.aux_head or not ours.startswith("aux")}
    own.add(source.backbone_prefix.rstrip("."))
    others: dict[str, list[str]] = {}
    for name in tensors:
        others.setdefault(name.partition(".")[0], []).append(name)
    # The mean and standard deviation of images are often stored as [1, 3, 1, 1].
    kernels = {name for name, value in tensors.items() if value.ndim > 1 and name.rpartition(".")[2] not in ("mean", "std")}
    foreign = [each for top, each in others.items() if top not in own and kernels.isdisjoint(each)]
    unused = [each for top, each in others.items() if top in source.unused - own]
    named = _list_unused_shapes(network.config.model, network.fmt).keys() & tensors.keys()
    return named | {name for module in foreign + unused for name in module}


def _find_names_in_classifier(tensors: Collection[str], network: Network) -> set[str]:
    """Return the names of the tensors that belong to the ImageNet classifier."""
    layers = BACKBONES[network.config.model.backbone].classifier
    return {name for name in tensors if name.rpartition(".")[0] in layers}


def _prepend_zero(value: np.ndarray, shift: float) -> np.ndarray:
    """Return a classifier's kernel or bias for two classes, from the one for the second class, to which `shift` is added."""
    return np.concatenate([np.zeros_like(value), value + shift]) if value.shape[:1] == (1,) else value


def _require_same_shapes(
    source: str, expected: Mapping[str, tuple[int, ...]], actual: Mapping[str, tuple[int, ...]], network: Network
) -> None:
    common = expected.keys() & actual.keys()
    faults = {
        "missing": expected.keys() - actual.keys(),
        "unexpected": actual.keys() - expected.keys(),
        "with a wrong shape": [
            f"{name} {actual[name]} instead of {expected[name]}" for name in common if actual[name] != expected[name]
        ],
    }
    details = "; ".join(f"{len(items)} {kind}: {summarize(sorted(items))}" for kind, items in faults.items() if items)
    if not details:
        return
    labels, advice = network.config.labels, "Use DeepLabV3 or backbone weights."
    if network.num_classes not in (0, labels.num_classes):
        fault = f"has {network.num_classes} classes, but the label set {labels.name!r} has {labels.num_classes}"
        sets = f"a label set for {network.num_classes} classes (a name, a .json file or a recipe)"
        advice = f"Use --labels with {sets}, or --ignore-head."
        if expected.keys() == actual.keys() and all(actual[name][1:] == expected[name][1:] for name in common):
            raise CheckpointError(f"`{source}` {fault}. {advice}")
        advice = f"It also {fault}. {advice}"
    expected_network = f"the {network.fmt} network with the backbone {network.config.model.backbone}"
    raise CheckpointError(f"`{source}` does not match {expected_network} ({details}). {advice}")
