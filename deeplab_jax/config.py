"""What a run is: typed dataclasses, their validation, and their form as JSON. No JAX, no TensorFlow, no files.

A recipe in `configs/` returns a `Config`; `--config.optim.lr=0.02` overrides a field; `validate` is called after that.
Fields are mutable for the sake of those overrides alone: nothing changes a config after `validate`.
"""

import dataclasses
import hashlib
import json
import math
import operator
import typing
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
    "train.nonfinite": ("stop", "skip"),
}
OUTPUT_STRIDES = (8, 16, 32)
MAX_SCALE = 8  # of a view in evaluation: beyond it, the factor is a slip that would fill the memory

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
      dilate_conv2: whether the second convolution of a basic block (ResNet-18, -34) has its stage's rate. Without it, as in
        mmsegmentation and its weights, features change with the output stride.
      atrous_rates: rates of the ASPP's 3x3 branches at output stride 16; they double at 8 and halve at 32.
      aspp_width: channels of each ASPP branch and of the fusion.
      fusion: what follows the concatenated branches: "1x1" (paper), "3x3" (mmsegmentation) or "1x1+3x3" (torchvision).
      dropout: share of the values that training drops after the first fusion convolution.
      aux_head: a fully convolutional head on the third stage, whose loss helps training; predictions do not need it.
      aux_dropout: share of the values that training drops before that head's classifier.
      align_corners: whether logits are resized to the image with the corner pixels' centres aligned (mmsegmentation's 769x769
        networks), rather than their corners.
      dtype: what the convolutions compute in; parameters, statistics and logits are float32.
      mean, std: of the training images' RGB values (0-255); images are normalised with them inside the compiled step.
      pretrained: weights that training starts from instead of random ones: a file of torchvision, timm or mmsegmentation,
        hf:OWNER/NAME, or a folder (a run, or what `deeplab-jax weights import` wrote). Parts that it lacks start random.
      remat: stages of the backbone, 1 to 4, whose blocks are computed again in the backward pass instead of kept in memory.
    """

    backbone: str = "resnet50"
    width: int = 64
    stem: str = "7x7"
    output_stride: int = 16
    multi_grid: tuple[float, ...] = (0.5, 1.0, 1.0)
    dilate_conv2: bool = True
    atrous_rates: tuple[int, ...] = (6, 12, 18)
    aspp_width: int = 256
    fusion: str = "1x1"
    dropout: float = 0.1
    aux_head: bool = False
    aux_dropout: float = 0.1
    align_corners: bool = False
    dtype: str = "float32"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    pretrained: str = ""
    remat: tuple[int, ...] = ()


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
      max_unreadable: training samples whose files may be broken: they are named, and take no part in loss and gradient. One
        more ends the run. Evaluation never skips.
    """

    root: str = ""
    train_split: str = "train"
    label_kind: str = "auto"
    batch_size: int = 16
    crop_size: tuple[int, int] = (512, 1024)
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    threads: int = 0
    max_unreadable: int = 0


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
      aux_lr_factor: learning rate of the auxiliary head over that of the rest (torchvision: 10).
      ema_decay: of an exponential moving average of the parameters, which then is what is evaluated; 0 for none.
    """

    lr: float = 0.01
    lr_end: float = 0.0
    power: float = 0.9
    warmup_steps: int = 0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_norm_and_bias: bool = True
    aux_weight: float = 0.4
    aux_lr_factor: float = 1.0
    ema_decay: float = 0.0


@dataclasses.dataclass(slots=True)
class TrainConfig:
    """How long, and what is written when. Intervals count steps; 0 means never (an evaluation and a checkpoint end every run).

    Attributes:
      steps: optimizer steps; 0 to count in epochs.
      epochs: passes over the training list; 0 to count in steps. A step may straddle two epochs.
      log_every: interval of the scalars.
      eval_every: interval of the evaluation on `eval.split`, which also shows some image | label | prediction strips.
      save_every: interval of checkpoints between evaluations; every evaluation saves one as well.
      micro_batches: parts that a batch is computed in, one after the other, to save memory; the update is one.
      nonfinite: what to do about an update that is not finite: "stop" the run before it, or "skip" it and count it.
      stall_timeout: seconds without progress after which a run of several processes ends; 0 for never.
    """

    steps: int = 0
    epochs: float = 0.0
    log_every: int = 50
    eval_every: int = 4000
    save_every: int = 1000
    micro_batches: int = 1
    nonfinite: str = "stop"
    stall_timeout: int = 600


@dataclasses.dataclass(slots=True)
class EvalConfig:
    """Evaluation, in training, by eval.py and in `load(...).predict`.

    Attributes:
      split: name of the list.
      batch_size: images at a time over all devices; images of one batch have one size.
      output_stride: 8, 16 or 32; 0 means the one of training.
      window: height and width of a sliding window, in pixels of the (scaled) image; (0, 0) takes the image whole.
      window_stride: steps of the window, down and to the right; (0, 0) is two thirds of its size, rounded.
      scales: factors by which the image is resized; predictions are averaged over them.
      flip: average over the mirrored image as well.
    """

    split: str = "val"
    batch_size: int = 8
    output_stride: int = 0
    window: tuple[int, int] = (0, 0)
    window_stride: tuple[int, int] = (0, 0)
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False


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
    """Steps of the run over a training list of `num_train` samples.

    Raises:
      ConfigError: the config counts neither steps nor epochs.
    """
    steps = config.train.steps or math.ceil(config.train.epochs * num_train / config.data.batch_size)
    _require(config, "train.steps", steps > 0, "set it or train.epochs above 0")
    return steps


def last_stage_rates(multi_grid: tuple[float, ...], output_stride: int) -> tuple[float, ...]:
    """Atrous rate of each given block of the last stage, in pixels of that convolution's input.

    The first block's input still has stride 16 where the stage keeps its stride (output stride 32). With rates defined on
    the input, the features at every output stride are those of the undilated network, subsampled.
    """
    first, rest = multi_grid[:1], multi_grid[1:]
    return tuple(g * 32 / min(16, output_stride) for g in first) + tuple(g * 32 / output_stride for g in rest)


def multi_grid_units(rates: tuple[float, ...], output_stride: int) -> tuple[float, ...]:
    """The inverse of `last_stage_rates`."""
    first, rest = rates[:1], rates[1:]
    return tuple(rate * min(16, output_stride) / 32 for rate in first) + tuple(rate * output_stride / 32 for rate in rest)


def aspp_rates(atrous_rates: tuple[int, ...], output_stride: int) -> tuple[float, ...]:
    """Rates of the ASPP branches at `output_stride`, from those at 16."""
    return tuple(rate * 16 / output_stride for rate in atrous_rates)


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
    _require(config, "model.width", model.width >= 2 and model.width % 2 == 0, "use an even number from 2, 64 for ResNet")
    _require(config, "model.aspp_width", model.aspp_width >= 1, "use a number from 1, 256 in the paper")
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
    _require(config, "data.threads", data.threads >= 0, "use a number from 1, or 0 for automatic")
    _require(config, "data.max_unreadable", data.max_unreadable >= 0, "use a number of samples from 0")


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


def to_dict(config: Config) -> dict[str, Any]:
    """The config as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def digest_of(values: dict[str, Any]) -> str:
    """SHA-256 of a config as `to_dict` gives it: equal for equal configs, whatever machine they are on."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `to_dict`.

    Raises:
      ConfigError: a field is unknown to this version.
    """
    return _build(Config, values, "")


def _build(cls: type, values: dict[str, Any], prefix: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"`{prefix.rstrip('.') or 'config'}` (={values!r}) is no set of fields")
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
