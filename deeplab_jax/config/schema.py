"""What a run is: typed dataclasses, what follows from them, and their form as JSON. No JAX, no TensorFlow, no files.

A recipe in `configs/` returns a `Config`; `--config.optim.lr=0.02` overrides a field; `validate` (validation.py) follows.
Fields are mutable for the sake of those overrides alone: nothing changes a config after `validate`.
"""

import dataclasses
import hashlib
import json
import math
import typing
from typing import Any

from deeplab_jax.errors import ConfigError
from deeplab_jax.labels import CITYSCAPES, LabelSet

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclasses.dataclass(slots=True)
class ModelConfig:
    """The network, stored with every checkpoint. docs/model.md tells which reference uses which switch.

    Attributes:
      backbone: "resnet18" to "resnet152", or "mobilenetv3_large".
      width: channels of a ResNet's first stage, to which all others are in proportion; 64 is the published network, also of
        MobileNetV3, tests use less.
      stem: "7x7", or "3x3" for three 3x3 convolutions of width / 2, width / 2 and width channels (ResNetV1c; elsewhere
        deep_stem).
      shortcut: "1x1", or "avgpool+1x1" for a 2x2 average before the 1x1 convolution where a stage begins (ResNet-D; elsewhere
        avg_down).
      output_stride: input pixels per pixel of the features: 8, 16 or 32. Weights serve every one.
      multi_grid: rates of the last stage's blocks in units of that stage's own rate (32 / output_stride); the last one repeats.
        1/2 is the rate of the stage before: (0.5, 1, 1) is no multi-grid, (1, 2, 4) the paper's, (0.5, 1, 2) mmsegmentation's.
      dilate_conv2: whether the second convolution of a basic block (ResNet-18, -34) has its stage's rate. Without it, as in
        mmsegmentation and its weights, features change with the output stride.
      atrous_rates: rates of the ASPP's 3x3 branches at output stride 16; they double at 8 and halve at 32.
      aspp_width: channels of each ASPP branch and of the fusion.
      fusion: what follows the concatenated branches: "1x1" (paper), "3x3" (mmsegmentation) or "1x1+3x3" (torchvision).
      decoder_width: channels of the 3x3 convolutions of the decoder that makes it DeepLabV3+, with logits at stride 4; 0 for
        DeepLabV3, which has none.
      low_level_width: channels that the decoder reduces the backbone's features at stride 4 to (mmsegmentation: c1_channels).
      dropout: share of the values that training drops after the first fusion convolution.
      aux_head: a fully convolutional head on an earlier stage (ResNet's third, MobileNetV3's second), whose loss helps
        training; predictions do not need it.
      aux_dropout: share of the values that training drops before that head's classifier.
      align_corners: whether logits are resized to the image, and features to the decoder, with the corner pixels' centres
        aligned (mmsegmentation's 769x769 networks), rather than their corners.
      dtype: what the convolutions compute in; parameters, statistics and logits are float32.
      mean, std: of the training images' RGB values (0-255); images are normalised with them inside the compiled step.
      pretrained: weights that training starts from instead of random ones: a file of torchvision, timm or mmsegmentation,
        hf:OWNER/NAME, or a folder (a run, or what `deeplab-jax weights import` wrote). Parts that it lacks start random.
      remat: stages of the backbone, 1 to 4, whose blocks are computed again in the backward pass instead of kept in memory.
    """

    backbone: str = "resnet50"
    width: int = 64
    stem: str = "7x7"
    shortcut: str = "1x1"
    output_stride: int = 16
    multi_grid: tuple[float, ...] = (0.5, 1.0, 1.0)
    dilate_conv2: bool = True
    atrous_rates: tuple[int, ...] = (6, 12, 18)
    aspp_width: int = 256
    fusion: str = "1x1"
    decoder_width: int = 0
    low_level_width: int = 48
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
      root: folder of the data set, in one of the layouts of docs/data.md, or of what `deeplab-jax data prepare` made of it.
      source: "tfds:NAME" for a data set of TensorFlow Datasets, which `root` then is the data_dir of; "" for files.
      train_split: name of the training split; "train+val" joins two.
      label_kind: how label files encode classes; "auto" reads it off the file names and the first file.
      batch_size: samples of a step over all devices and hosts.
      crop_size: height and width of a training sample.
      scale: range of the random resize factor.
      flip: mirror half of the samples.
      cat_max_ratio: a window in which one class has this share of the labelled pixels or more is drawn again, up to ten times;
        1 takes every window (mmsegmentation's RandomCrop).
      class_balanced: share of the samples whose window is centred on a pixel of a class that is drawn evenly from those in
        the image.
      photometric: distort brightness, contrast, saturation and hue as mmsegmentation does, on the device.
      rotation: largest angle in degrees by which a sample is turned, either way.
      cutout: height and width of a rectangle that is blanked, as a share of the crop's.
      threads: host threads that decode and augment; 0 for as many as the process has cores.
      max_unreadable: training samples whose files may be broken: they are named, and take no part in loss and gradient. One
        more ends the run. Evaluation never skips.
    """

    root: str = ""
    source: str = ""
    train_split: str = "train"
    label_kind: str = "auto"
    batch_size: int = 16
    crop_size: tuple[int, int] = (512, 1024)
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    cat_max_ratio: float = 1.0
    class_balanced: float = 0.0
    photometric: bool = False
    rotation: float = 0.0
    cutout: float = 0.0
    threads: int = 0
    max_unreadable: int = 0


@dataclasses.dataclass(slots=True)
class LossConfig:
    """Softmax cross-entropy, and which pixels count how much.

    Attributes:
      class_weights: weight of each class, by train id; () for equal ones. `deeplab-jax data check` prints some.
      label_smoothing: share of the target that is spread evenly over all classes.
      ohem_threshold: online hard example mining: only pixels whose class has a probability below this count, and at least
        `ohem_min_kept` an image; 0 counts all.
      ohem_min_kept: pixels per image of the batch that mining keeps at least, the hardest ones.
      normalizer: what the sum over pixels is divided by: "valid", the (weighted) pixels that count, or "all", every pixel
        of the batch, as mmsegmentation's avg_non_ignore=False does.
    """

    class_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    ohem_threshold: float = 0.0
    ohem_min_kept: int = 100_000
    normalizer: str = "valid"


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
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
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
    if not steps:
        raise ConfigError("`train.steps` (=0) cannot be used: set it or train.epochs above 0")
    return steps


def unit_of_each_block(multi_grid: tuple[float, ...], blocks: int) -> tuple[float, ...]:
    """`multi_grid` for a last stage of so many blocks: the last one repeats."""
    return (*multi_grid, *multi_grid[-1:] * blocks)[:blocks]


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


def canonical(model: ModelConfig) -> ModelConfig:
    """One spelling for all that mean the same network, whatever the output stride.

    `multi_grid` ends with the last rate that is no repeat, and switches that the network does not use have their defaults.
    """
    # There are no more blocks in the last stage.
    multi_grid = tuple(model.multi_grid)[: 2 if model.backbone == "resnet18" else 3]
    while len(multi_grid) > 1 and multi_grid[-1] == multi_grid[-2]:
        multi_grid = multi_grid[:-1]
    uses = {
        "dilate_conv2": model.backbone in ("resnet18", "resnet34"),
        "low_level_width": model.decoder_width > 0,
        "aux_dropout": model.aux_head,
    }
    usual = {field: getattr(ModelConfig(), field) for field, is_used in uses.items() if not is_used}
    return dataclasses.replace(model, multi_grid=multi_grid, **usual)


def aspp_rates(atrous_rates: tuple[int, ...], output_stride: int) -> tuple[float, ...]:
    """Rates of the ASPP branches at `output_stride`, from those at 16."""
    return tuple(rate * 16 / output_stride for rate in atrous_rates)


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
