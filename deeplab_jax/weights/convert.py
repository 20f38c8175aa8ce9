"""State dicts to our variables and back, strictly: every tensor is used or accounted for. No files."""

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np

from deeplab_jax.config import Config, ModelConfig
from deeplab_jax.errors import CheckpointError
from deeplab_jax.models import DeepLabV3, canonical, graph
from deeplab_jax.weights import names
from deeplab_jax.weights.recognize import Network
from deeplab_jax.weights.sources import SOURCES
from deeplab_jax.weights.state_dicts import StateDict

Variables = dict[names.Path, np.ndarray]

COUNTER = "num_batches_tracked"  # of PyTorch's BatchNorm, which reads it only where it has no momentum
# Of an ImageNet network.
CLASSIFICATION = {"fc.weight", "fc.bias", *(f"classifier.{i}.{kind}" for i in (0, 3) for kind in ("weight", "bias"))}
SHOWN = 20  # names in a message


def to_variables(state: StateDict, network: Network, *, ignore_head: bool = False) -> tuple[Variables, list[str]]:
    """Return our variables by path, and what was left aside.

    Args:
      state: what was read.
      network: what `recognize` found in it; its label set gives the number of classes.
      ignore_head: leave the classifiers' tensors aside.

    Raises:
      CheckpointError: a tensor is missing, surplus, of another shape or not finite; they are listed.
    """
    shapes = variable_shapes(network.config)
    if network.is_backbone:
        shapes = {path: shape for path, shape in shapes.items() if path[1] == "backbone"}
    model, fmt = network.config.model, network.fmt
    named = names.reference_names(shapes, model, fmt)
    tensors = dict(state.tensors)
    if network.is_backbone:
        named = {path: names.without_prefix(name) for path, name in named.items()}
        tensors = {names.without_prefix(name): value for name, value in tensors.items()}
    heads = {name for path, name in named.items() if path[1] in names.HEADS} if ignore_head else set()
    counters = {name for name in tensors if name.endswith(COUNTER)}
    classification = CLASSIFICATION & set(tensors) if network.is_backbone else set()
    used = {path: name for path, name in named.items() if name not in heads}
    given = {name: value.shape for name, value in tensors.items() if name not in heads | counters | classification}
    _check(state.source, {name: _reference_shape(shapes[path]) for path, name in used.items()}, given, network)
    aside = [
        f"{len(unused)} tensors left aside: {reason}"
        for unused, reason in (
            (counters, f"{COUNTER}, which BatchNorm does not use"),
            (classification, f"the ImageNet classifier, {_some(classification)}"),
            (heads & set(tensors), f"the segmentation classifiers, {_some(heads & set(tensors))}"),
        )
        if unused
    ]
    broken = {name for name in used.values() if not np.isfinite(tensors[name]).all()}
    broken |= {name for name in used.values() if name.endswith("running_var") and (tensors[name] < 0).any()}
    if broken:
        raise CheckpointError(
            f"`{state.source}` holds nan, infinity or a variance below 0 ({_some(broken)}): use other weights"
        )
    return {path: names.from_reference(path, tensors[name], model, fmt) for path, name in used.items()}, aside


def to_state_dict(variables: Variables, model: ModelConfig, fmt: str, step: int) -> dict[str, np.ndarray]:
    """Return the source's state dict, counters of BatchNorm included, which load_state_dict(strict=True) wants.

    Args:
      variables: of a whole network.
      model: its switches.
      fmt: a key of `SOURCES`.
      step: what the counters say.

    Raises:
      CheckpointError: the source has no such network.
    """
    require_buildable(model, fmt)
    named = names.reference_names(variables, model, fmt)
    state = {name: names.to_reference(path, variables[path], model, fmt) for path, name in named.items()}
    counters = [name.replace("running_mean", COUNTER) for name in state if name.endswith("running_mean")]
    return state | {name: np.array(step, np.int64) for name in counters}


def require_buildable(model: ModelConfig, fmt: str) -> None:
    """Raise CheckpointError where the source has no network that computes the same."""
    required = SOURCES[fmt].required
    if required is None:
        exported = [name for name, source in SOURCES.items() if source.required]
        raise CheckpointError(f"`--to` (={fmt!r}) has no segmentation networks: use {' or '.join(exported)}")
    for field, values in required(model).items():
        # Another spelling of the same network will do.
        if not any(canonical(dataclasses.replace(model, **{field: value})) == canonical(model) for value in values):
            known = " or ".join(map(repr, values))
            raise CheckpointError(
                f"`--to` (={fmt!r}) has no network with model.{field}={getattr(model, field)!r}, only {known}: export to "
                "another reference"
            )


def variable_shapes(config: Config) -> dict[names.Path, tuple[int, ...]]:
    """Return the shapes of the variables of a config's network."""
    variables = graph.abstract_variables(DeepLabV3(config.model, config.labels.num_classes))
    return {path: leaf.shape for path, leaf in names.flatten(variables).items()}


def _reference_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape


def _check(
    source: str, expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], network: Network
) -> None:
    wrong = [
        f"{name} {given[name]} for {expected[name]}" for name in expected.keys() & given.keys() if given[name] != expected[name]
    ]
    faults = {
        "missing": expected.keys() - given.keys(),
        "surplus": given.keys() - expected.keys(),
        "wrong shapes": wrong,
    }
    found = "; ".join(f"{len(items)} {kind}: {_some(items)}" for kind, items in faults.items() if items)
    if not found:
        return
    labels = network.config.labels
    advice = "give weights of a DeepLabV3, or of a backbone alone"
    if network.num_classes not in (0, labels.num_classes):
        advice = (
            f"its head has {network.num_classes} classes, the label set {labels.name!r} has {labels.num_classes}; give "
            f"--labels=RECIPE.py, whose label set has {network.num_classes}, or --ignore-head"
        )
    raise CheckpointError(f"`{source}` does not fit a {network.config.model.backbone} of {network.fmt} ({found}): {advice}")


def _some(items: Collection[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(sorted(items)[:SHOWN]) + more
