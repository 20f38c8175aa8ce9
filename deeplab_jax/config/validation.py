"""Whether a run can be made of a config: every field's values, and which go together. No JAX, no TensorFlow, no files."""

import dataclasses
import math
import operator
import typing
from typing import Any

from deeplab_jax.config import Config, aspp_rates, last_stage_rates
from deeplab_jax.errors import ConfigError
from deeplab_jax.labels import LabelSet

# Plain strings with a table, since flags can set those and not `Literal`s.
CHOICES = {
    "model.backbone": ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenetv3_large"),
    "model.stem": ("7x7", "3x3"),
    "model.shortcut": ("1x1", "avgpool+1x1"),
    "model.fusion": ("1x1", "3x3", "1x1+3x3"),
    "model.dtype": ("float32", "bfloat16"),
    "data.label_kind": ("auto", "labelIds", "labelTrainIds", "color"),
    "loss.normalizer": ("valid", "all"),
    "train.nonfinite": ("stop", "skip"),
}
# Switches that only ResNets have, and what they are elsewhere.
RESNET_SWITCHES: dict[str, Any] = {"stem": "7x7", "shortcut": "1x1", "dilate_conv2": True}
OUTPUT_STRIDES = (8, 16, 32)
MAX_SCALE = 8  # of a view in evaluation: beyond it, the factor is a slip that would fill the memory


def validate(config: Config) -> Config:
    """Returns `config` if a run can be made of it.

    Raises:
      ConfigError: naming the field, its value and what to do.
    """
    _validate_types(config, config, "")
    for field, choices in CHOICES.items():
        value = operator.attrgetter(field)(config)
        _require(config, field, value in choices, f"use one of {', '.join(choices)}")
    # JAX keeps 32 bits of a seed: a larger one would share its numbers with a smaller.
    _require(config, "seed", 0 <= config.seed < 2**32, "use a whole number from 0 to 4294967295")
    _validate_model(config)
    _validate_data(config)
    _validate_loss(config)
    _validate_optim(config)
    _validate_eval(config)
    train = config.train
    one = min(train.steps, train.epochs) == 0  # neither: a config to evaluate with
    _require(config, "train.steps", one, f"set it or train.epochs (={train.epochs}) above 0, and the other one to 0")
    for field in ("train.log_every", "train.eval_every", "train.save_every"):
        _require(config, field, operator.attrgetter(field)(config) >= 0, "use a number of steps, or 0 for never")
    _require(config, "train.micro_batches", train.micro_batches >= 1, "use a number from 1")
    _require(config, "train.stall_timeout", train.stall_timeout >= 0, "use a number of seconds, or 0 for never")
    _require(config, "mesh.data", config.mesh.data >= 0, "use a number of devices, or 0 for all")
    _require(config, "mesh.spatial", config.mesh.spatial >= 1, "use a number of devices from 1")
    return config


def _validate_types(config: Config, node: Any, prefix: str) -> None:
    """Numbers, strings and switches are what they are annotated as; numbers are finite."""
    hints = typing.get_type_hints(type(node))
    advice = {int: "use a whole number", float: "use a number", bool: "use True or False", str: "use a string"}
    for field in dataclasses.fields(node):
        name, kind, value = prefix + field.name, hints[field.name], getattr(node, field.name)
        if kind in advice:
            ok = type(value) is kind or (kind is float and type(value) is int)
            _require(config, name, ok and (kind is not float or math.isfinite(value)), advice[kind])
        elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
            _require(config, name, isinstance(value, kind), f"use a {kind.__name__}")
            if kind is not LabelSet:
                _validate_types(config, value, f"{name}.")


def _validate_model(config: Config) -> None:
    model, at_eval = config.model, config.eval.output_stride
    _require(config, "model.output_stride", model.output_stride in OUTPUT_STRIDES, "use 8, 16 or 32")
    _require(config, "eval.output_stride", at_eval in (0, *OUTPUT_STRIDES), "use 8, 16, 32, or 0 for training's")
    even = model.width >= 2 and model.width % 2 == 0
    _require(config, "model.width", even, "use an even number from 2, 64 for the published network")
    for field, usual in ({} if model.backbone.startswith("resnet") else RESNET_SWITCHES).items():
        advice = f"{model.backbone} has no such switch, leave it at {usual!r}"
        _require(config, f"model.{field}", getattr(model, field) == usual, advice)
    _require(config, "model.aspp_width", model.aspp_width >= 1, "use a number from 1, 256 in the paper")
    _require(config, "model.decoder_width", model.decoder_width >= 0, "use a number from 1, 256 in the paper, or 0 for none")
    _require(config, "model.low_level_width", model.low_level_width >= 1, "use a number from 1, 48 in the paper")
    _require(config, "model.dropout", 0 <= model.dropout < 1, "use a share from 0 to below 1")
    _require(config, "model.aux_dropout", 0 <= model.aux_dropout < 1, "use a share from 0 to below 1")
    _require(config, "model.mean", _are_numbers(model.mean, 3), "give three numbers, of R, G and B")
    _require(config, "model.std", _are_numbers(model.std, 3) and min(model.std) > 0, "give three numbers above 0")
    stages = not model.remat or (_are_some_numbers(model.remat) and set(model.remat) <= {1, 2, 3, 4})
    _require(config, "model.remat", stages, "give stages from 1 to 4: --config.model.remat='(1,2)'")
    for field, rates_at in (("model.multi_grid", last_stage_rates), ("model.atrous_rates", aspp_rates)):
        rates = operator.attrgetter(field)(config)
        _require(config, field, _are_some_numbers(rates), "give numbers above 0")
        for stride in sorted({model.output_stride, at_eval or model.output_stride}):
            actual = rates_at(rates, stride)
            whole = all(rate >= 1 and rate == int(rate) for rate in actual)
            advice = f"at output stride {stride} it gives the rates {actual}, which must be whole numbers from 1"
            _require(config, field, whole, advice)


def _validate_data(config: Config) -> None:
    data = config.data
    _require(config, "data.batch_size", data.batch_size >= 1, "use a number from 1")
    whole = _are_numbers(data.crop_size, 2) and all(isinstance(n, int) and n >= 1 for n in data.crop_size)
    _require(config, "data.crop_size", whole, "it needs two whole numbers: --config.data.crop_size='(512,1024)'")
    rising = _are_numbers(data.scale, 2) and 0 < data.scale[0] <= data.scale[1]
    _require(config, "data.scale", rising, "it needs the lowest and the highest factor: --config.data.scale='(0.5,2.0)'")
    tfds = not data.source or (data.source.startswith("tfds:") and len(data.source) > len("tfds:"))
    _require(config, "data.source", tfds, "use tfds:NAME, or nothing for the files below data.root")
    _require(config, "data.cat_max_ratio", 0 < data.cat_max_ratio <= 1, "use a share above 0, or 1 for any window")
    _require(config, "data.class_balanced", 0 <= data.class_balanced <= 1, "use a share of the samples from 0 to 1")
    _require(config, "data.rotation", 0 <= data.rotation <= 180, "use degrees from 0 to 180")
    _require(config, "data.cutout", 0 <= data.cutout < 1, "use a share of the crop's sides from 0 to below 1")
    _require(config, "data.threads", data.threads >= 0, "use a number from 1, or 0 for automatic")
    _require(config, "data.max_unreadable", data.max_unreadable >= 0, "use a number of samples from 0")


def _validate_loss(config: Config) -> None:
    loss, classes = config.loss, config.labels.num_classes
    weights = not loss.class_weights or (_are_numbers(loss.class_weights, classes) and min(loss.class_weights) >= 0)
    _require(config, "loss.class_weights", weights, f"give a number from 0 for each of the {classes} classes, or none")
    _require(config, "loss.class_weights", not loss.class_weights or max(loss.class_weights) > 0, "one must be above 0")
    _require(config, "loss.label_smoothing", 0 <= loss.label_smoothing < 1, "use a share from 0 to below 1")
    _require(config, "loss.ohem_threshold", 0 <= loss.ohem_threshold <= 1, "use a probability, or 0 to count all pixels")
    _require(config, "loss.ohem_min_kept", loss.ohem_min_kept >= 0, "use a number of pixels from 0")
    whole = not loss.ohem_threshold or config.train.micro_batches == 1
    _require(config, "loss.ohem_threshold", whole, "the hard pixels are those of the whole batch: set train.micro_batches to 1")


def _validate_optim(config: Config) -> None:
    optim = config.optim
    _require(config, "optim.lr", optim.lr > 0, "use a number above 0")
    _require(config, "optim.lr_end", 0 <= optim.lr_end <= optim.lr, f"use a number from 0 to optim.lr (={optim.lr})")
    _require(config, "optim.power", optim.power > 0, "use a number above 0")
    _require(config, "optim.warmup_steps", optim.warmup_steps >= 0, "use a number from 0")
    _require(config, "optim.momentum", 0 <= optim.momentum < 1, "use a number from 0 to below 1")
    _require(config, "optim.weight_decay", optim.weight_decay >= 0, "use a number from 0")
    _require(config, "optim.aux_weight", optim.aux_weight >= 0, "use a number from 0")
    _require(config, "optim.aux_lr_factor", optim.aux_lr_factor >= 0, "use a number from 0")
    _require(config, "optim.ema_decay", 0 <= optim.ema_decay < 1, "use a number from 0 to below 1")


def _validate_eval(config: Config) -> None:
    protocol = config.eval
    _require(config, "eval.batch_size", protocol.batch_size >= 1, "use a number from 1")
    for field in ("eval.window", "eval.window_stride"):
        pair = operator.attrgetter(field)(config)
        whole = _are_numbers(pair, 2) and all(isinstance(n, int) and n >= 0 for n in pair) and (0 in pair) == (max(pair) == 0)
        _require(config, field, whole, f"give height and width, --config.{field}='(769,769)', or (0,0)")
    window, stride = protocol.window, protocol.window_stride
    _require(config, "eval.window_stride", max(window) > 0 or max(stride) == 0, "set eval.window as well")
    fits = stride[0] <= window[0] and stride[1] <= window[1]
    _require(config, "eval.window_stride", fits, f"use at most eval.window (={window}): larger steps leave pixels out")
    scales = protocol.scales
    some = _are_some_numbers(scales) and 0 < min(scales) <= max(scales) <= MAX_SCALE
    _require(config, "eval.scales", some, f"give factors up to {MAX_SCALE}: --config.eval.scales='(0.75,1.0,1.25)'")
    _require(config, "eval.scales", len(set(scales)) == len(scales), "give each factor, and the flag, once")


def _require(config: Config, field: str, ok: bool, advice: str) -> None:
    if not ok:
        raise ConfigError(f"`{field}` (={operator.attrgetter(field)(config)!r}) cannot be used: {advice}")


def _are_numbers(values: Any, count: int) -> bool:
    is_list = isinstance(values, tuple | list) and len(values) == count
    return is_list and all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _are_some_numbers(values: Any) -> bool:
    return isinstance(values, tuple | list) and len(values) > 0 and _are_numbers(values, len(values))
