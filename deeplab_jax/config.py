"""What a run is: typed dataclasses, their validation, and their form as JSON. No JAX, no TensorFlow, no files.

A recipe in `configs/` returns a `Config`; `--config.optim.lr=0.02` overrides a field; `validate` is called after that.
Fields are mutable for the sake of those overrides alone: nothing changes a config after `validate`.
"""

import dataclasses
import json
import math
import operator
import typing
from collections.abc import Sequence
from typing import Any

from deeplab_jax.errors import ConfigError
from deeplab_jax.labels import CITYSCAPES, LabelSet

# Plain strings with a table, since flags can set those and not `Literal`s.
CHOICES = {
    "model.backbone": ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    "model.stem": ("7x7", "3x3"),
    "model.fusion": ("1x1", "3x3", "1x1+3x3"),
    "model.dtype": ("float32", "bfloat16"),
    "data.label_kind": ("auto", "labelIds", "labelTrainIds", "color"),
}
OUTPUT_STRIDES = (8, 16, 32)

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclasses.dataclass(slots=True)
class ModelConfig:
    """The network, stored with every checkpoint. docs/model.md tells which reference uses which switch.

    Attributes:
      backbone: the residual network.
      width: channels of its first stage; 64 is the published network, tests use less.
      stem: "7x7", or "3x3" for three 3x3 convolutions of width / 2, width / 2 and width channels (ResNetV1c).
      output_stride: input pixels per pixel of the features: 8, 16 or 32. Weights serve every one.
      multi_grid: rates of the last stage's blocks in units of that stage's own rate (32 / output_stride); the last one repeats.
        1/2 is the rate of the stage before: (0.5, 1, 1) is no multi-grid, (1, 2, 4) the paper's, (0.5, 1, 2) mmsegmentation's.
      atrous_rates: rates of the ASPP's 3x3 branches at output stride 16; they double at 8 and halve at 32.
      aspp_width: channels of each ASPP branch and of the fusion.
      fusion: what follows the concatenated branches: "1x1" (paper), "3x3" (mmsegmentation) or "1x1+3x3" (torchvision).
      dropout: share of the values that training drops after the first fusion convolution.
      aux_head: a fully convolutional head on the third stage, used in training alone.
      dtype: what the convolutions compute in; parameters, statistics and logits are float32.
      mean, std: of the training images' RGB values (0-255); images are normalised with them inside the compiled step.
    """

    backbone: str = "resnet50"
    width: int = 64
    stem: str = "7x7"
    output_stride: int = 16
    multi_grid: tuple[float, ...] = (0.5, 1.0, 1.0)
    atrous_rates: tuple[int, ...] = (6, 12, 18)
    aspp_width: int = 256
    fusion: str = "1x1"
    dropout: float = 0.1
    aux_head: bool = False
    dtype: str = "float32"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


@dataclasses.dataclass(slots=True)
class DataConfig:
    """Where the images are and what happens to them on the way to the device.

    Attributes:
      root: folder that holds `list/` and the image and label folders.
      train_split: name of the training list.
      label_kind: how label files encode classes; "auto" reads it off the file names.
      batch_size: samples of a step over all devices and hosts.
      crop_size: height and width of a training sample.
      scale: range of the random resize factor.
      flip: mirror half of the samples.
      threads: host threads that decode and augment; 0 lets tf.data choose.
    """

    root: str = ""
    train_split: str = "train"
    label_kind: str = "auto"
    batch_size: int = 16
    crop_size: tuple[int, int] = (512, 1024)
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    threads: int = 0


@dataclasses.dataclass(slots=True)
class OptimConfig:
    """SGD with momentum under a poly schedule with linear warm-up.

    Attributes:
      lr: learning rate after the warm-up.
      lr_end: learning rate of the last step.
      power: of the poly schedule, (1 - step / steps) ** power.
      warmup_steps: steps over which the rate rises linearly from lr / warmup_steps.
      momentum: of SGD, not dampened and not Nesterov's.
      weight_decay: L2 penalty added to the gradient.
      decay_norm_and_bias: whether BatchNorm's scale and bias and the classifiers' biases decay too (the references' habit).
      aux_weight: weight of the auxiliary head's loss.
    """

    lr: float = 0.01
    lr_end: float = 0.0
    power: float = 0.9
    warmup_steps: int = 0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_norm_and_bias: bool = True
    aux_weight: float = 0.4


@dataclasses.dataclass(slots=True)
class TrainConfig:
    """How long, and what is written when. Intervals count steps; 0 means never (an evaluation and a checkpoint end every run).

    Attributes:
      steps: optimizer steps; 0 to count in epochs.
      epochs: passes over the training list; 0 to count in steps. A step may straddle two epochs.
      log_every: interval of the scalars.
      eval_every: interval of the evaluation on `eval.split`, which also shows some image | label | prediction strips.
      save_every: interval of checkpoints between evaluations; every evaluation saves one as well.
    """

    steps: int = 0
    epochs: float = 0.0
    log_every: int = 50
    eval_every: int = 4000
    save_every: int = 1000


@dataclasses.dataclass(slots=True)
class EvalConfig:
    """Evaluation, in training and by eval.py.

    Attributes:
      split: name of the list.
      batch_size: images at a time over all devices; images of one batch have one size.
      output_stride: 8, 16 or 32; 0 means the one of training.
    """

    split: str = "val"
    batch_size: int = 8
    output_stride: int = 0


@dataclasses.dataclass(slots=True)
class MeshConfig:
    """The device mesh: `data` splits the batch, `spatial` the image rows.

    Attributes:
      data: devices along the batch; 0 takes all that `spatial` leaves.
      spatial: devices along the rows of an image.
    """

    data: int = 0
    spatial: int = 1


@dataclasses.dataclass(slots=True)
class Config:
    """A whole run: with `seed` it determines every sample, every random number and so the trained network."""

    seed: int = 0
    labels: LabelSet = CITYSCAPES
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)


def total_steps(config: Config, num_train: int) -> int:
    """Steps of the run over a training list of `num_train` samples."""
    return config.train.steps or math.ceil(config.train.epochs * num_train / config.data.batch_size)


def last_stage_rates(multi_grid: tuple[float, ...], output_stride: int) -> tuple[float, ...]:
    """Atrous rate of each given block of the last stage, in pixels of that convolution's input.

    The first block's input still has stride 16 where the stage keeps its stride (output stride 32). With rates defined on
    the input, the features at every output stride are those of the undilated network, subsampled.
    """
    first, rest = multi_grid[:1], multi_grid[1:]
    return tuple(g * 32 / min(16, output_stride) for g in first) + tuple(g * 32 / output_stride for g in rest)


def aspp_rates(atrous_rates: tuple[int, ...], output_stride: int) -> tuple[float, ...]:
    """Rates of the ASPP branches at `output_stride`, from those at 16."""
    return tuple(rate * 16 / output_stride for rate in atrous_rates)


def validate(config: Config) -> Config:
    """Returns `config` if a run can be made of it.

    Raises:
      ConfigError: naming the field, its value and what to do.
    """
    for field, choices in CHOICES.items():
        value = operator.attrgetter(field)(config)
        _require(value in choices, field, value, f"use one of {', '.join(choices)}")
    model, data, optim, train = config.model, config.data, config.optim, config.train
    _require(config.seed >= 0, "seed", config.seed, "use a whole number from 0")
    _require(model.output_stride in (8, 16, 32), "model.output_stride", model.output_stride, "use 8, 16 or 32")
    _require(
        config.eval.output_stride in (0, 8, 16, 32), "eval.output_stride", config.eval.output_stride, "use 8, 16, 32, or 0"
    )
    _require(model.width >= 2 and model.width % 2 == 0, "model.width", model.width, "use an even number from 2, 64 for ResNet")
    _require(model.aspp_width >= 1, "model.aspp_width", model.aspp_width, "use a number from 1, 256 in the paper")
    _require(0 <= model.dropout < 1, "model.dropout", model.dropout, "use a share from 0 to below 1")
    _require(
        len(model.mean) == 3 and len(model.std) == 3 and min(model.std) > 0,
        "model.std",
        model.std,
        "give three numbers above 0",
    )
    strides = {model.output_stride, config.eval.output_stride or model.output_stride}
    for stride in sorted(strides):
        _require_rates("model.multi_grid", model.multi_grid, last_stage_rates(model.multi_grid, stride), stride, "(0.5, 1, 1)")
        _require_rates("model.atrous_rates", model.atrous_rates, aspp_rates(model.atrous_rates, stride), stride, "(6, 12, 18)")
    _require(data.batch_size >= 1, "data.batch_size", data.batch_size, "use a number from 1")
    _require(config.eval.batch_size >= 1, "eval.batch_size", config.eval.batch_size, "use a number from 1")
    advice = "it needs two whole numbers from 1: --config.data.crop_size='(512,1024)'"
    _require_numbers("data.crop_size", data.crop_size, 2, int, advice)
    _require(min(data.crop_size) >= 1, "data.crop_size", data.crop_size, advice)
    advice = "it needs the lowest and the highest factor: --config.data.scale='(0.5,2.0)'"
    _require_numbers("data.scale", data.scale, 2, (int, float), advice)
    _require(0 < data.scale[0] <= data.scale[1], "data.scale", data.scale, advice)
    _require(data.threads >= 0, "data.threads", data.threads, "use a number from 1, or 0 for automatic")
    _require(optim.lr > 0, "optim.lr", optim.lr, "use a number above 0")
    _require(0 <= optim.lr_end <= optim.lr, "optim.lr_end", optim.lr_end, f"use a number from 0 to optim.lr (={optim.lr})")
    _require(optim.power > 0, "optim.power", optim.power, "use a number above 0")
    _require(0 <= optim.momentum < 1, "optim.momentum", optim.momentum, "use a number from 0 to below 1")
    _require(optim.weight_decay >= 0, "optim.weight_decay", optim.weight_decay, "use a number from 0")
    _require(optim.warmup_steps >= 0, "optim.warmup_steps", optim.warmup_steps, "use a number from 0")
    _require(optim.aux_weight >= 0, "optim.aux_weight", optim.aux_weight, "use a number from 0")
    _require(
        (train.steps > 0) != (train.epochs > 0), "train.steps", train.steps, f"set either it or train.epochs (={train.epochs})"
    )
    for field in ("log_every", "eval_every", "save_every"):
        _require(getattr(train, field) >= 0, f"train.{field}", getattr(train, field), "use a number of steps, or 0 for never")
    _require(config.mesh.data >= 0, "mesh.data", config.mesh.data, "use a number of devices, or 0 for all")
    _require(config.mesh.spatial >= 1, "mesh.spatial", config.mesh.spatial, "use a number of devices from 1")
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """The config as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `to_dict`.

    Raises:
      ConfigError: a field is unknown to this version.
    """
    return _build(Config, values, "")


def _require(ok: bool, field: str, value: object, advice: str) -> None:
    if not ok:
        raise ConfigError(f"`{field}` (={value!r}) cannot be used: {advice}")


def _require_rates(field: str, value: object, rates: tuple[float, ...], stride: int, example: str) -> None:
    whole = bool(rates) and all(rate >= 1 and rate == int(rate) for rate in rates)
    _require(
        whole,
        field,
        value,
        f"at output stride {stride} it gives the rates {rates}, not whole numbers from 1; use e.g. {example}",
    )


def _require_numbers(field: str, values: object, count: int, kinds: type | tuple[type, ...], advice: str) -> None:
    ok = isinstance(values, Sequence) and len(values) == count and all(isinstance(value, kinds) for value in values)
    _require(ok, field, values, advice)


def _build(cls: type, values: dict[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"`{prefix}{unknown[0]}` is no field of this version's config: it was written by another version")
    return cls(**{name: _convert(hints[name], value, prefix + name) for name, value in values.items()})


def _convert(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, name + ".")
    return _tuples(value) if isinstance(value, list) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
