"""What a run is: typed dataclasses, each field with its documentation, its check and what depends on it.

A recipe in `configs/` returns a `Config`; `--config.optim.lr=0.02` overrides a field; `models.validate` follows. Fields are
mutable for the sake of those overrides alone: nothing changes a config after `validate`.
"""

import dataclasses
import math
from typing import Any

from deeplab_jax.config.fields import (
    Check,
    above_zero,
    are_numbers,
    are_some_numbers,
    at_least,
    below_one,
    field,
    one_of,
    some_numbers,
    whole_pair,
)
from deeplab_jax.errors import ConfigError
from deeplab_jax.labels import CITYSCAPES, LabelSet

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
OUTPUT_STRIDES = (8, 16, 32)
MAX_SCALE = 8  # of a view in evaluation: beyond it, the factor is a slip that would fill the memory


def _are_names(values: Any) -> bool:
    return isinstance(values, tuple | list) and len(values) > 0 and all(isinstance(value, str) for value in values)


def _are_options(values: Any) -> bool:
    """Return whether these are pairs of a name and a number (or bool, which is one)."""
    are_pairs = isinstance(values, tuple | list) and all(
        isinstance(value, tuple | list) and len(value) == 2 for value in values
    )
    return are_pairs and all(isinstance(name, str) and are_numbers((value,), 1) for name, value in values)


@dataclasses.dataclass(slots=True)
class ModelConfig:
    """The network, stored with every checkpoint. docs/model.md says which reference uses which switch."""

    backbone: str = field(
        "resnet50",
        "Name of the backbone, a key of `models.backbones.BACKBONES`.",
        changes="shapes",
        part="backbone",
    )
    width: int = field(
        64,
        "Channels of the first stage, to which all others are in proportion. 64 is the published width of every backbone; "
        "tests use less.",
        Check(lambda width: width >= 2 and width % 2 == 0, "use an even number from 2, 64 for the published network"),
        changes="shapes",
        part="backbone",
    )
    stem: str = field(
        "7x7",
        "Stem of a ResNet: `7x7`, or `3x3` for three 3x3 convolutions of width / 2, width / 2 and width channels (ResNetV1c; "
        "elsewhere deep_stem).",
        one_of("7x7", "3x3"),
        changes="shapes",
        part="backbone",
    )
    shortcut: str = field(
        "1x1",
        "Shortcut where a stage of a ResNet begins: `1x1`, or `avgpool+1x1` for a 2x2 average before the 1x1 convolution "
        "(ResNet-D; elsewhere avg_down).",
        one_of("1x1", "avgpool+1x1"),
        changes="shapes",
        part="backbone",
    )
    output_stride: int = field(
        16,
        "Input pixels per pixel of the features: 8, 16 or 32. Weights serve every one.",
        Check(lambda stride: stride in OUTPUT_STRIDES, "use 8, 16 or 32"),
    )
    multi_grid: tuple[float, ...] = field(
        (0.5, 1.0, 1.0),
        "Rates of the last stage's blocks in units of that stage's own rate (32 / output_stride); the last one repeats. 1/2 is "
        "the rate of the stage before: (0.5, 1, 1) is no multi-grid, (1, 2, 4) the paper's, (0.5, 1, 2) mmsegmentation's.",
        some_numbers("give numbers above 0"),
        changes="meaning",
    )
    stage3_first_rate: int = field(
        1,
        "Rate of the third stage's first block, in pixels of its input at stride 8. 1 is the rate of the stage before; "
        "segmentation_models.pytorch has 2 at output stride 8.",
        at_least(1, "use a whole number from 1"),
        changes="meaning",
    )
    dilate_conv2: bool = field(
        True,
        "Whether the second convolution of a basic block (ResNet-18, -34) has its stage's rate. Without it, as in "
        "mmsegmentation and its weights, features change with the output stride.",
        changes="meaning",
    )
    atrous_rates: tuple[int, ...] = field(
        (6, 12, 18),
        "Rates of the ASPP's 3x3 branches at output stride 16; they double at 8 and halve at 32.",
        some_numbers("give numbers above 0"),
        changes="meaning",
    )
    aspp_width: int = field(
        256,
        "Channels of each ASPP branch and of the fusion.",
        at_least(1, "use a number from 1, 256 in the paper"),
        changes="shapes",
        part="aspp",
    )
    fusion: str = field(
        "1x1",
        "Convolutions after the concatenated branches: `1x1` (paper), `3x3` (mmsegmentation) or `1x1+3x3` (torchvision).",
        one_of("1x1", "3x3", "1x1+3x3"),
        changes="shapes",
        part="aspp",
    )
    decoder_width: int = field(
        0,
        "Channels of the 3x3 convolutions of the decoder that makes it DeepLabV3+, with logits at stride 4; 0 for DeepLabV3, "
        "which has no decoder.",
        at_least(0, "use a number from 1, 256 in the paper, or 0 for none"),
        changes="shapes",
        part="decoder",
    )
    low_level_width: int = field(
        48,
        "Channels that the decoder reduces the backbone's features at stride 4 to (mmsegmentation: c1_channels).",
        at_least(1, "use a number from 1, 48 in the paper"),
        changes="shapes",
        part="decoder",
        is_used=lambda model: model.decoder_width > 0,
    )
    dropout: float = field(0.1, "Share of the values that training drops after the first fusion convolution.", below_one())
    aux_head: bool = field(
        False,
        "A fully convolutional head on an earlier stage of the backbone, whose loss helps training. "
        "Predictions do not need it.",
        changes="shapes",
        part="aux",
    )
    aux_dropout: float = field(
        0.1,
        "Share of the values that training drops before the auxiliary head's classifier.",
        below_one(),
        is_used=lambda model: model.aux_head,
    )
    align_corners: bool = field(
        False,
        "Whether logits are resized to the image, and features to the decoder, with the corner pixels' centres aligned "
        "(mmsegmentation's 769x769 networks) rather than their corners.",
        changes="meaning",
    )
    dtype: str = field(
        "float32",
        "Data type that the convolutions compute in; parameters, statistics and logits are float32.",
        one_of("float32", "bfloat16"),
    )
    mean: tuple[float, float, float] = field(
        IMAGENET_MEAN,
        "Mean of the training images' RGB values (0-255); images are normalised inside the compiled step.",
        Check(lambda mean: are_numbers(mean, 3), "give three numbers, of R, G and B"),
        changes="meaning",
    )
    std: tuple[float, float, float] = field(
        IMAGENET_STD,
        "Standard deviation of the training images' RGB values (0-255).",
        Check(lambda std: are_numbers(std, 3) and min(std) > 0, "give three numbers above 0"),
        changes="meaning",
    )
    pretrained: str = field(
        "",
        "Weights that training starts from instead of random ones: a file of torchvision, timm or mmsegmentation, "
        "hf:OWNER/NAME, or a folder (a run, or what `deeplab-jax weights import` wrote). Parts that it lacks start random.",
    )
    remat: tuple[int, ...] = field(
        (),
        "Stages of the backbone, 1 to 4, whose blocks are computed again in the backward pass instead of kept in memory.",
        Check(
            lambda stages: stages in ((), []) or (are_some_numbers(stages) and set(stages) <= {1, 2, 3, 4}),
            "give stages from 1 to 4: --config.model.remat='(1,2)'",
        ),
    )


@dataclasses.dataclass(slots=True)
class DataConfig:
    """Where the images are and what happens to them on the way to the device."""

    root: str = field(
        "",
        "Folder of the data set, in one of the layouts of docs/data.md, or of what `deeplab-jax data prepare` made of it.",
    )
    source: str = field(
        "",
        "`tfds:NAME` for a data set of TensorFlow Datasets, whose data_dir `root` then is; empty for files.",
        Check(
            lambda source: not source or (source.startswith("tfds:") and source != "tfds:"),
            "use tfds:NAME, or nothing for the files below data.root",
        ),
    )
    train_split: str = field("train", "Name of the training split; `train+val` joins two.")
    label_kind: str = field(
        "auto",
        "How label files encode classes; `auto` takes it from the file names and the first file.",
        one_of("auto", "labelIds", "labelTrainIds", "color"),
    )
    batch_size: int = field(16, "Samples of a step over all devices and hosts.", at_least(1, "use a number from 1"))
    crop_size: tuple[int, int] = field(
        (512, 1024),
        "Height and width of a training sample, in pixels.",
        whole_pair(1, "it needs two whole numbers: --config.data.crop_size='(512,1024)'"),
    )
    scale: tuple[float, float] = field(
        (0.5, 2.0),
        "Range of the random resize factor.",
        Check(
            lambda scale: are_numbers(scale, 2) and 0 < scale[0] <= scale[1],
            "it needs the lowest and the highest factor: --config.data.scale='(0.5,2.0)'",
        ),
    )
    flip: bool = field(True, "Mirror half of the samples.")
    cat_max_ratio: float = field(
        1.0,
        "A window in which one class has this share of the labelled pixels or more is drawn again, up to ten times; 1 takes "
        "every window (mmsegmentation's RandomCrop).",
        Check(lambda share: 0 < share <= 1, "use a share above 0, or 1 for any window"),
    )
    class_balanced: float = field(
        0.0,
        "Share of the samples whose window is centred on a pixel of a class that is drawn evenly from those in the image.",
        Check(lambda share: 0 <= share <= 1, "use a share of the samples from 0 to 1"),
    )
    photometric: bool = field(False, "Distort brightness, contrast, saturation and hue on the device, as mmsegmentation does.")
    rotation: float = field(
        0.0,
        "Largest angle in degrees by which a sample is turned, either way.",
        Check(lambda degrees: 0 <= degrees <= 180, "use degrees from 0 to 180"),
    )
    cutout: float = field(
        0.0,
        "Height and width of a rectangle that is blanked, as a share of the crop's.",
        below_one("share of the crop's sides"),
    )
    threads: int = field(
        0,
        "Host threads that decode and augment; 0 for as many as the process has cores.",
        at_least(0, "use a number from 1, or 0 for automatic"),
    )
    max_unreadable: int = field(
        0,
        "Number of training samples whose files may be broken. They are named, and take no part in loss and gradient; one "
        "more ends the run. Evaluation never skips.",
        at_least(0, "use a number of samples from 0"),
    )


@dataclasses.dataclass(slots=True)
class LossConfig:
    """Losses that are added up, and how cross-entropy weighs the pixels."""

    terms: tuple[str, ...] = field(
        ("cross_entropy",),
        "Names of the losses that are added up, keys of `losses.LOSSES`.",
        Check(_are_names, "give names of losses: --config.loss.terms=\"('cross_entropy','dice')\""),
    )
    weights: tuple[float, ...] = field(
        (1.0,),
        "Weight of each of `terms`.",
        Check(
            lambda weights: are_some_numbers(weights) and min(weights) >= 0 < max(weights), "give numbers from 0, one above 0"
        ),
    )
    aux_weight: float = field(
        0.4, "Weight of the auxiliary head's loss, over that of the main head.", at_least(0, "use a number from 0")
    )
    class_weights: tuple[float, ...] = field(
        (),
        "Weight of each class in the cross-entropy, by train id; () for equal ones. `deeplab-jax data check` prints some.",
    )
    label_smoothing: float = field(0.0, "Share of the target that is spread evenly over all classes.", below_one())
    ohem_threshold: float = field(
        0.0,
        "Online hard example mining: in the main head's cross-entropy only pixels whose class has a probability below this "
        "count, and at least `ohem_min_kept` an image; 0 counts all.",
        Check(lambda threshold: 0 <= threshold <= 1, "use a probability, or 0 to count all pixels"),
    )
    ohem_min_kept: int = field(
        100_000,
        "Pixels per image of the batch that mining keeps at least, the hardest ones.",
        at_least(0, "use a number of pixels from 0"),
    )
    normalizer: str = field(
        "valid",
        "What the cross-entropy's sum over pixels is divided by: `valid`, the (weighted) pixels that count, or `all`, every "
        "pixel of the batch, as mmsegmentation's avg_non_ignore=False does.",
        one_of("valid", "all"),
    )


@dataclasses.dataclass(slots=True)
class OptimConfig:
    """An optimizer of optax under a learning-rate schedule with linear warm-up."""

    name: str = field("sgd", "Name of the optimizer in optax: sgd, adamw, lion, lamb and so on.")
    options: tuple[tuple[str, float], ...] = field(
        (),
        "Arguments of the optimizer by their names in optax: `(('b2',0.95),('nesterov',True))`.",
        Check(_are_options, "give names with numbers: --config.optim.options=\"(('b2',0.95),)\""),
    )
    schedule: str = field("poly", "Name of the learning-rate schedule, a key of `train.schedules.SCHEDULES`.")
    lr: float = field(0.01, "Learning rate after the warm-up.", above_zero())
    lr_end: float = field(0.0, "Learning rate that poly and cosine end at.")
    power: float = field(0.9, "Power of the poly schedule, (1 - step / steps) ** power.", above_zero())
    warmup_steps: int = field(
        0, "Steps over which the rate rises linearly from lr / warmup_steps.", at_least(0, "use a number from 0")
    )
    momentum: float = field(0.9, "Momentum of the optimizers that take one, as sgd does.", below_one("number"))
    weight_decay: float = field(
        1e-4,
        "Weight decay: decoupled in the optimizers that have it (adamw, lamb, lion), an L2 penalty on the gradient in others.",
        at_least(0, "use a number from 0"),
    )
    decay_norm_and_bias: bool = field(
        True, "Whether BatchNorm's scale and bias and the classifiers' biases decay too (the references' habit)."
    )
    aux_lr_factor: float = field(
        1.0,
        "Learning rate of the auxiliary head over that of the rest (torchvision: 10).",
        at_least(0, "use a number from 0"),
    )
    ema_decay: float = field(
        0.0,
        "Decay of an exponential moving average of the parameters, which then is what is evaluated; 0 for none.",
        below_one("number"),
    )


@dataclasses.dataclass(slots=True)
class TrainConfig:
    """How long, and what is written when.

    Intervals count steps; 0 means never. An evaluation and a checkpoint end every run.
    """

    steps: int = field(0, "Optimizer steps; 0 to count in epochs.")
    epochs: float = field(0.0, "Passes over the training list; 0 to count in steps. A step may straddle two epochs.")
    log_every: int = field(50, "Interval of the scalars.", at_least(0, "use a number of steps, or 0 for never"))
    eval_every: int = field(
        4000,
        "Interval of the evaluation on `eval.split`, which also shows some image | label | prediction strips.",
        at_least(0, "use a number of steps, or 0 for never"),
    )
    save_every: int = field(
        1000,
        "Interval of checkpoints between evaluations; every evaluation saves one as well.",
        at_least(0, "use a number of steps, or 0 for never"),
    )
    micro_batches: int = field(
        1,
        "Parts that a batch is computed in, one after the other, to save memory; the update is one.",
        at_least(1, "use a number from 1"),
    )
    nonfinite: str = field(
        "stop",
        "What to do about an update that is not finite: `stop` the run before it, or `skip` it and count it.",
        one_of("stop", "skip"),
    )
    stall_timeout: int = field(
        600,
        "Seconds without progress after which a run of several processes ends; 0 for never.",
        at_least(0, "use a number of seconds, or 0 for never"),
    )


@dataclasses.dataclass(slots=True)
class EvalConfig:
    """Evaluation, in training, by eval.py and in `load(...).predict`."""

    split: str = field("val", "Name of the list.")
    batch_size: int = field(
        8, "Images at a time over all devices; images of one batch have one size.", at_least(1, "use a number from 1")
    )
    output_stride: int = field(
        0,
        "Output stride of the network: 8, 16 or 32; 0 means the one of training.",
        Check(lambda stride: stride in (0, *OUTPUT_STRIDES), "use 8, 16, 32, or 0 for training's"),
    )
    window: tuple[int, int] = field(
        (0, 0),
        "Height and width of a sliding window, in pixels of the (scaled) image; (0, 0) takes the image whole.",
        whole_pair(0, "give height and width, --config.eval.window='(769,769)', or (0,0)"),
    )
    window_stride: tuple[int, int] = field(
        (0, 0),
        "Steps of the window, down and to the right; (0, 0) is two thirds of its size, rounded.",
        whole_pair(0, "give height and width, --config.eval.window_stride='(513,513)', or (0,0)"),
    )
    scales: tuple[float, ...] = field(
        (1.0,),
        "Factors by which the image is resized; predictions are averaged over them.",
        Check(
            lambda scales: are_some_numbers(scales) and 0 < min(scales) <= max(scales) <= MAX_SCALE,
            f"give factors up to {MAX_SCALE}: --config.eval.scales='(0.75,1.0,1.25)'",
        ),
    )
    flip: bool = field(False, "Average over the mirrored image as well.")


@dataclasses.dataclass(slots=True)
class MeshConfig:
    """The device mesh: `data` splits the batch, `spatial` the image rows."""

    data: int = field(
        0, "Devices along the batch; 0 takes all that `spatial` leaves.", at_least(0, "use a number of devices, or 0 for all")
    )
    spatial: int = field(1, "Devices along the rows of an image.", at_least(1, "use a number of devices from 1"))


@dataclasses.dataclass(slots=True)
class Config:
    """A whole run: with `seed` it determines every sample, every random number and so the trained network."""

    # JAX keeps 32 bits of a seed: a larger one would share its numbers with a smaller.
    seed: int = field(
        0,
        "Seed of the whole run.",
        Check(lambda seed: 0 <= seed < 2**32, "use a whole number from 0 to 4294967295"),
    )
    labels: LabelSet = CITYSCAPES
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)


def total_steps(config: Config, num_train: int) -> int:
    """Return the steps of the run over a training list of `num_train` samples.

    Raises:
      ConfigError: the config counts neither steps nor epochs.
    """
    steps = config.train.steps or math.ceil(config.train.epochs * num_train / config.data.batch_size)
    if not steps:
        raise ConfigError("`train.steps` (=0) cannot be used: set it or train.epochs above 0")
    return steps
