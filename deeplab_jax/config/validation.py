"""Check each config field individually, and then check the rules that involve several fields.

`models.validate` runs these checks before it checks the backbone name and the backbone-specific fields.
"""

import dataclasses
import math
import operator
import typing
from collections.abc import Iterator
from typing import Any

from deeplab_jax.config.channels import fill_defaults
from deeplab_jax.config.data import DataConfig
from deeplab_jax.config.fields import are_numbers
from deeplab_jax.config.mix import smallest_batch
from deeplab_jax.config.rates import aspp_rates, last_stage_rates, unit_of_each_block
from deeplab_jax.config.schema import Config, TrainConfig
from deeplab_jax.errors import ConfigError
from deeplab_jax.labels import LabelSet, to_plain

TYPES = {int: "Use an integer.", float: "Use a number.", bool: "Use True or False.", str: "Use a string."}


def validate_fields(config: Config) -> Config:
    """Return `config` if every field is valid and all fields are consistent.

    Lists and NumPy values become tuples and Python numbers (see `to_plain`). The defaults that depend on `data.channels` are
    filled in (see `fill_defaults`).

    Raises:
      ConfigError: The config is not a `Config`, or a field is invalid. The message gives the field, its value and what to do.
    """
    if not isinstance(config, Config):
        raise ConfigError(
            f"The config (={config!r}) is not a Config. Give a deeplab_jax.config.Config, for example from a recipe's "
            "get_config()."
        )
    config = _make_plain(config)
    _validate_section(config, config, "")
    config = fill_defaults(config)
    for field, accepted, advice in _rules(config):
        require(config, field, accepted, advice)
    return config


def require(config: Config, field: str, accepted: bool, advice: str) -> None:
    """Raise a ConfigError unless `accepted` is true.

    Args:
      config: The config to check.
      field: The dotted field name, such as "model.stem". The message shows it with its value.
      accepted: Whether the value is valid.
      advice: One or two full sentences that tell the user what to do. They end the error message.
    """
    if not accepted:
        raise ConfigError(f"`{field}` (={operator.attrgetter(field)(config)!r}) cannot be used. {advice}")


def _make_plain(value: Any) -> Any:
    if not dataclasses.is_dataclass(value) or isinstance(value, LabelSet | type):
        return to_plain(value)
    fields = {field.name: _make_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return dataclasses.replace(value, **fields)


def _validate_section(config: Config, section: Any, prefix: str) -> None:
    """Check each field's type and then its value. Floats must be finite."""
    hints = typing.get_type_hints(type(section))
    for field in dataclasses.fields(section):
        name, kind, value = prefix + field.name, hints[field.name], getattr(section, field.name)
        if kind in TYPES:
            is_kind = type(value) is kind or (kind is float and type(value) is int)
            require(config, name, is_kind and (kind is not float or math.isfinite(value)), TYPES[kind])
        elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
            require(config, name, isinstance(value, kind), f"Use a {kind.__name__}.")
            if kind is not LabelSet:
                _validate_section(config, value, f"{name}.")
        if check := field.metadata.get("check"):
            is_kind = typing.get_origin(kind) is not tuple or isinstance(value, tuple)
            require(config, name, is_kind and check.accepts(value), check.advice)


def _multi_grid_rates(multi_grid: tuple[float, ...], output_stride: int) -> tuple[float, ...]:
    """Return the rate of each block. A single number applies to all blocks, but at stride 32 the first rate differs."""
    return last_stage_rates(unit_of_each_block(multi_grid, max(len(multi_grid), 2)), output_stride)


def _rules(config: Config) -> Iterator[tuple[str, bool, str]]:
    """Yield (field, is accepted, advice) for each rule that involves several fields."""
    model, protocol, train = config.model, config.eval, config.train
    for field, rates_at in (("model.multi_grid", _multi_grid_rates), ("model.atrous_rates", aspp_rates)):
        for output_stride in sorted({model.output_stride, protocol.output_stride or model.output_stride}):
            rates = rates_at(operator.attrgetter(field)(config), output_stride)
            are_integers = all(rate >= 1 and rate == int(rate) for rate in rates)
            advice = (
                f"At output stride {output_stride}, these values result in the rates {rates}. "
                "Choose values that result in integer rates above 0."
            )
            yield field, are_integers, advice
    yield from _channel_rules(config)
    is_used = not config.data.val_share or protocol.split == "val"
    yield "data.val_share", is_used, "It makes the split 'val'. Leave eval.split at val, or set data.val_share to 0."
    yield "data.val_group", not config.data.val_group or config.data.val_share > 0, "It only works with data.val_share above 0."
    yield from _mix_rules(config.data)
    yield from _mixing_rules(config)
    yield from _loss_rules(config)
    is_below = 0 <= config.optim.lr_end <= config.optim.lr
    yield "optim.lr_end", is_below, f"Use a number from 0 to optim.lr (={config.optim.lr})."
    window, stride = protocol.window, protocol.window_stride
    for field, pair in (("eval.window", window), ("eval.window_stride", stride)):
        advice = f"Give two numbers above 0, such as --config.{field}='(769,769)', or (0,0)."
        yield field, (0 in pair) == (max(pair) == 0), advice
    yield "eval.window_stride", max(window) > 0 or max(stride) == 0, "Set eval.window as well."
    fits = stride[0] <= window[0] and stride[1] <= window[1]
    yield "eval.window_stride", fits, f"Use at most eval.window (={window}), because larger steps would skip pixels."
    are_distinct = len(set(protocol.scales)) == len(protocol.scales)
    yield "eval.scales", are_distinct, "List each factor only once, and pass the flag only once."
    yield from _evaluation_rules(train)
    # Both `train.steps` and `train.epochs` can be 0, because a config that is only used for evaluation needs neither.
    one_is_zero = min(train.steps, train.epochs) == 0
    yield (
        "train.steps",
        one_is_zero,
        f"Set either train.steps or train.epochs (={train.epochs}) to a number above 0, and the other one to 0.",
    )


def _evaluation_rules(train: TrainConfig) -> Iterator[tuple[str, bool, str]]:
    if not train.evaluate:
        for field in ("patience", "eval_every_epochs", "best_metric", "upload_checkpoints"):
            default = getattr(TrainConfig(), field)
            advice = f"It needs evaluations. Leave it at {default!r}, or set train.evaluate to True."
            yield f"train.{field}", getattr(train, field) == default, advice
    is_regular = train.eval_every > 0 or train.eval_every_epochs > 0
    yield "train.patience", not train.patience or is_regular, "Set train.eval_every or train.eval_every_epochs as well."


def _channel_rules(config: Config) -> Iterator[tuple[str, bool, str]]:
    for field in ("model.mean", "model.std"):
        has_all = len(operator.attrgetter(field)(config)) == config.data.channels
        yield field, has_all, f"Give one number for each of the {config.data.channels} channels (data.channels)."
    is_bytes = not (config.data.source and config.data.value_range)
    advice = f"The images of {config.data.source} have 8 bits. Leave data.value_range at ()."
    yield "data.value_range", is_bytes, advice


def _mix_rules(data: DataConfig) -> Iterator[tuple[str, bool, str]]:
    if not data.mix:
        return
    splits = len(data.train_split.split("+"))
    advice = f"Give one number for each of the {splits} splits in data.train_split (={data.train_split!r})."
    if splits == 1:
        advice = (
            f"`data.train_split` (={data.train_split!r}) names only one split, so there is nothing to mix. Join splits with +, "
            f"such as --config.data.train_split={data.train_split}+pseudo."
        )
    yield "data.mix", splits > 1 and len(data.mix) == splits, advice
    unit = smallest_batch(data)
    advice = (
        f"This ratio needs a batch size that is a multiple of {unit}. Change data.batch_size (={data.batch_size}) or the ratio."
    )
    yield "data.mix", data.batch_size % unit == 0, advice


def _mixing_rules(config: Config) -> Iterator[tuple[str, bool, str]]:
    data, labels = config.data, config.labels
    unknown = [name for name in data.copy_paste_classes if name not in labels.names]
    yield (
        "data.copy_paste_classes",
        not unknown,
        f"The label set {labels.name} has no class {' or '.join(map(repr, unknown))}. "
        f"Its classes are: {', '.join(labels.names)}.",
    )
    has_classes = len(data.copy_paste_classes) > 0
    yield "data.copy_paste_classes", data.copy_paste > 0 or not has_classes, "It only works with data.copy_paste above 0."
    yield "data.copy_paste", has_classes or not data.copy_paste, "Name the classes to paste in data.copy_paste_classes."
    for field in ("class_mix", "copy_paste"):
        advice = f"Use at least 2 with data.{field}, because each sample receives pixels from another one."
        yield "data.batch_size", data.batch_size > 1 or not getattr(data, field), advice


def _loss_rules(config: Config) -> Iterator[tuple[str, bool, str]]:
    yield (
        "loss.weights",
        are_numbers(config.loss.weights, len(config.loss.terms)),
        f"Give one number for each entry of loss.terms (={config.loss.terms}).",
    )
    weights, classes = config.loss.class_weights, config.labels.num_classes
    are_weights = weights == () or (are_numbers(weights, classes) and min(weights) >= 0)
    yield (
        "loss.class_weights",
        are_weights,
        f"Give one number of at least 0 for each of the {classes} classes, or () for equal weights.",
    )
    yield "loss.class_weights", not weights or max(weights) > 0, "At least one weight must be above 0."
    is_full_batch = not config.loss.ohem_threshold or config.train.micro_batches == 1
    yield (
        "loss.ohem_threshold",
        is_full_batch,
        "Hard pixels are selected from the full batch. Set train.micro_batches to 1, or loss.ohem_threshold to 0.",
    )
    is_large = "rmi" not in config.loss.terms or min(config.data.crop_size) >= 16
    yield "data.crop_size", is_large, "The loss 'rmi' compares regions of 9 x 9 pixels. Use at least 16 x 16."
