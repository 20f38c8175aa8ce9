"""What a user asks for: import a weights file, export a checkpoint, start a training from published weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

from etils import epath

from deeplab_jax.checkpoints import store as checkpoints
from deeplab_jax.config import Config, ModelConfig, to_dict
from deeplab_jax.config.fields import names_of
from deeplab_jax.errors import ConfigError, choose
from deeplab_jax.labels import LabelSet
from deeplab_jax.models import canonical, validate
from deeplab_jax.models.switches import is_used
from deeplab_jax.weights import hub, names, state_dicts
from deeplab_jax.weights.convert import to_state_dict, to_variables, variable_shapes
from deeplab_jax.weights.recognize import FROM_TENSORS, Network, recognize
from deeplab_jax.weights.source import USUAL
from deeplab_jax.weights.sources import SOURCES

Say = Callable[[str], None]


def import_weights(
    source: str,
    out: str,
    *,
    fmt: str = "auto",
    labels: LabelSet | None = None,
    model: dict[str, Any] | None = None,
    ignore_head: bool = False,
    ema: bool = False,
    say: Say = print,
) -> None:
    """Write the weights of `source` to the folder `out`, as one checkpoint with config, label set and normalisation.

    Args:
      source: a weights file, or hf:OWNER/NAME[@REVISION].
      out: a folder without checkpoints; it appears whole or not at all.
      fmt: "auto", or a key of `SOURCES`.
      labels: the classes; None for those that the file names, or the reference's published ones.
      model: fields of `ModelConfig` that the tensors do not show, to override what was recognised.
      ignore_head: leave the classifiers aside; the folder then serves as `model.pretrained` alone.
      ema: take the moving average that training scripts keep beside the weights.
      say: is given what was found, line by line.

    Raises:
      CheckpointError: the source cannot be read or does not fit, or `out` holds checkpoints.
      ConfigError: an override cannot be used.
    """
    checkpoints.require_empty(out)
    state, network = _read(source, fmt, ema, model)
    config = dataclasses.replace(network.config, labels=labels or network.config.labels)
    config.model = dataclasses.replace(config.model, **(model or {}))
    origin = network.origin | {f"model.{field}": "as asked" for field in model or {}}
    origin |= {"labels": "as asked"} if labels else {}
    network = dataclasses.replace(network, config=validate(config), origin=origin)
    variables, aside = to_variables(state, network, ignore_head=ignore_head)
    for line in (*_description(network, source), *state.notes, f"{len(variables)} tensors used", *aside):
        say(line)
    checkpoints.save_model(out, config, names.unflatten(variables))
    whole = not (network.is_backbone or ignore_head)
    use = f"deeplab_jax.load({out!r}), or eval.py --config=configs/stored.py:{out} --checkpoint={out}; " if whole else ""
    say(f"written to {out}: {use}train from it with --config.model.pretrained={out}")


def export_weights(checkpoint: str, out: str, *, fmt: str, say: Say = print) -> None:
    """Write a checkpoint as a reference's state dict, and say how to build the network that loads it.

    Args:
      checkpoint: a run, a step of it, or an imported folder.
      out: a `.safetensors`, `.pth` or `.pt` file.
      fmt: a key of `SOURCES`.
      say: is given how to load the file.

    Raises:
      CheckpointError: there is no such checkpoint, the reference has no such network, or the file cannot be written.
    """
    source = choose(fmt, SOURCES, "--to")
    step = checkpoints.resolve(checkpoint)
    config = checkpoints.stored_config(str(step))
    variables = names.flatten(checkpoints.restore_model(str(step), like=config))
    state = to_state_dict(variables, config.model, fmt, int(step.name))
    # Where the training started from is no part of the network.
    record = to_dict(Config(labels=config.labels, model=dataclasses.replace(config.model, pretrained=""), eval=config.eval))
    state_dicts.write(out, state, record)
    say(f"{len(state)} tensors of {step} are in {out}, for load_state_dict(strict=True) of")
    if source.describe:
        say(source.describe(config))


def pretrained_variables(config: Config, say: Say = print) -> dict[str, Any]:
    """Return the variables that a training starts from, a part of {"params", "batch_stats"}, by `model.pretrained`.

    Classifiers are taken only where the classes are the same ones; the main one, and a decoder, only beside the same decoder.

    Raises:
      CheckpointError: the weights cannot be read.
      ConfigError: they are of another network than the config's.
    """
    source = config.model.pretrained
    if not source.startswith(hub.PREFIX) and epath.Path(source).is_dir():
        step = str(checkpoints.resolve(source))
        stored, variables = checkpoints.stored_config(step), names.flatten(checkpoints.restore_variables(step))
    else:
        state, network = _read(source)
        other_head = network.num_classes != network.config.labels.num_classes
        stored, (variables, _) = network.config, to_variables(state, network, ignore_head=other_head)
    has_aspp = any(path[1] == "aspp" for path in variables)
    _require_same(config, stored, source, has_aspp=has_aspp)
    shapes = variable_shapes(config)
    other = set() if config.labels.names == stored.labels.names else set(names.HEADS)
    ours, theirs = canonical(config.model), canonical(stored.model)
    if any(getattr(ours, field) != getattr(theirs, field) for field in names_of(ModelConfig, part=("decoder",))):
        other |= {"decoder", "classifier"}
    taken = {path: x for path, x in variables.items() if path in shapes and path[1] not in other}
    say(f"{len(taken)} of {len(shapes)} variables start from {source}")
    new = sorted({path[1] for path in shapes.keys() - taken.keys()})
    if new:
        say(f"these start random: {', '.join(new)}")
    for field in names_of(ModelConfig, changes=("meaning",)) if has_aspp else ():
        if getattr(ours, field) != getattr(theirs, field):
            asked, trained = getattr(config.model, field), getattr(stored.model, field)
            say(f"the config's model.{field} is {asked}; these weights were trained with {trained}")
    return names.unflatten(taken)


def _read(
    source: str, fmt: str = "auto", ema: bool = False, asked: dict[str, Any] | None = None
) -> tuple[state_dicts.StateDict, Network]:
    if fmt != "auto":
        choose(fmt, SOURCES, "--from")  # before a file is fetched
    state = state_dicts.read(hub.local_file(source), source, ema=ema)
    return state, recognize(state, fmt, asked)


def _require_same(config: Config, stored: Config, source: str, *, has_aspp: bool) -> None:
    ours, theirs = dataclasses.asdict(config.model), dataclasses.asdict(stored.model)
    parts = ("backbone", "aspp") if has_aspp else ("backbone",)
    fields = [field for field in names_of(ModelConfig, part=parts) if ours[field] != theirs[field]]
    differ = [f"`model.{field}` (={ours[field]!r}) is {theirs[field]!r}" for field in fields]
    if differ:
        raise ConfigError(f"{', '.join(differ)} in {source}: set it so, or use other weights")
    asked, trained = config.model.atrous_rates, stored.model.atrous_rates
    if has_aspp and len(asked) != len(trained):
        raise ConfigError(f"`model.atrous_rates` (={asked}) are {trained} in {source}: give as many, or use other weights")


def _description(network: Network, source: str) -> list[str]:
    """Return what was recognised, a field a line."""
    model, labels = network.config.model, network.config.labels
    origin = {f"model.{name}": "from the tensors" for name in FROM_TENSORS} | network.origin
    if network.is_backbone:
        shown = [name for name in names_of(ModelConfig, part=("backbone",)) if is_used(model, name)]
        lines = [f"{source}: a backbone, with the names of {network.fmt}"]
    else:
        of_weights = names_of(ModelConfig, changes=("shapes", "meaning"))
        shown = [name for name in names_of(ModelConfig) if name in of_weights or name in ("output_stride", "dropout")]
        shown = [name for name in shown if is_used(model, name)]
        lines = [f"{source}: DeepLabV3, {network.num_classes} classes, with the names of {network.fmt}"]
    fields = {f"model.{name}": getattr(model, name) for name in shown}
    fields |= {name: getattr(network.config.eval, name.removeprefix("eval.")) for name in origin if name.startswith("eval.")}
    lines += [f"  {name} = {value!r}  ({origin.get(name, USUAL)})" for name, value in fields.items()]
    if not network.is_backbone:
        lines.append(f"  labels = {labels.name!r}, {labels.num_classes} classes  ({origin.get('labels')})")
    return lines
