"""The run config: typed dataclasses whose fields declare their documentation, check and effect on stored weights.

A recipe in `configs/` returns a `Config`, and a flag such as `--config.optim.lr=0.02` overrides one of its fields.
`models.validate` then checks the result. The dataclasses are mutable only to allow overrides. After `validate`, a config
never changes.
"""

import dataclasses
import math
from typing import Any

from deeplab_jax.config.fields import (
    Check,
    above_zero,
    are_numbers,
    are_one_or_more_numbers,
    at_least,
    below_one,
    field,
    integer_pair,
    is_pattern,
    one_of,
)
from deeplab_jax.config.model import MAX_CHANNELS, OUTPUT_STRIDES, ModelConfig
from deeplab_jax.errors import ConfigError
from deeplab_jax.labels import CITYSCAPES, LabelSet

# The largest resize factor allowed in evaluation. A larger one is probably a typo, and the resized image would exhaust memory.
MAX_SCALE = 8


def _are_names(values: Any) -> bool:
    return isinstance(values, tuple | list) and len(values) > 0 and all(isinstance(value, str) for value in values)


def _are_options(values: Any) -> bool:
    """Return whether `values` is a tuple or list of (name, number) pairs. A bool counts as a number."""
    are_pairs = isinstance(values, tuple | list) and all(
        isinstance(value, tuple | list) and len(value) == 2 for value in values
    )
    return are_pairs and all(isinstance(name, str) and are_numbers((value,), 1) for name, value in values)


@dataclasses.dataclass(slots=True)
class DataConfig:
    """The data set and the training augmentation."""

    root: str = field(
        "",
        "Data set folder, either in one of the layouts in docs/reference/data-formats.md or written by "
        "`deeplab-jax data prepare`.",
    )
    source: str = field(
        "",
        "`tfds:NAME` reads a TensorFlow Datasets (TFDS) data set, with `data.root` as the data_dir. If `data.root` is "
        "empty, TFDS uses its default data_dir. Leave `data.source` empty to read the files in `data.root`.",
        Check(
            lambda source: not source or (source.startswith("tfds:") and source != "tfds:"),
            "Use tfds:NAME, or leave it empty to read the files in data.root.",
        ),
    )
    train_split: str = field("train", "Name of the training split. `train+val` joins two splits.")
    channels: int = field(
        3,
        "Number of channels (bands) in the images, from 1 to 8: 1 for grey or thermal images, 3 for RGB, 4 for RGB and "
        "infrared. See docs/how-to/bands.md.",
        Check(lambda channels: 1 <= channels <= MAX_CHANNELS, f"Use an integer from 1 to {MAX_CHANNELS}."),
        changes="shapes",
    )
    value_range: tuple[float, ...] = field(
        (),
        "Values in the image files that become 0 and 255, such as (0, 4095) for 12 bits. Values in between are scaled linearly "
        "and rounded, and values outside are clipped. () uses the full range of the file's integer type, so 8-bit values are "
        "unchanged and 16-bit values are reduced to their upper 8 bits. Files with other types need a range.",
        Check(
            lambda pair: pair in ((), []) or (are_numbers(pair, 2) and pair[0] < pair[1]),
            "Give the lowest and the highest value, such as --config.data.value_range='(0,4095)', or ().",
        ),
    )
    val_share: float = field(
        0.0,
        "Fraction of the training images to hold out for validation, if the data set has no `val` split. The choice depends "
        "only "
        "on the image names. `data.train_split` then holds the other images.",
        Check(lambda share: 0 <= share < 1, "Use a fraction from 0 to below 1."),
    )
    val_group: str = field(
        "",
        "Regular expression for the part of an image name that images must share to stay together, such as the name of a "
        "video: "
        "`'(.*)_\\d+'`. Only used with `data.val_share`.",
        Check(is_pattern, "Use a regular expression, such as '(.*)_[0-9]+', or leave it empty."),
    )
    label_kind: str = field(
        "auto",
        "How label files encode classes: `labelIds` for the label set's ids, `labelTrainIds` for train ids, or `color` for "
        "RGB colours. `auto` detects this from the file names and the first label file.",
        one_of("auto", "labelIds", "labelTrainIds", "color"),
    )
    batch_size: int = field(
        16, "Number of training samples per step, across all devices and hosts.", at_least(1, "Use a number of at least 1.")
    )
    crop_size: tuple[int, int] = field(
        (512, 1024),
        "Height and width of each training sample, in pixels.",
        integer_pair(1, "Give two integers above 0, such as --config.data.crop_size='(512,1024)'."),
    )
    scale: tuple[float, float] = field(
        (0.5, 2.0),
        "Smallest and largest random resize factors for training images.",
        Check(
            lambda scale: are_numbers(scale, 2) and 0 < scale[0] <= scale[1],
            "Give the smallest and the largest factor, such as --config.data.scale='(0.5,2.0)'.",
        ),
    )
    flip: bool = field(True, "Whether to flip each training sample horizontally with a probability of 0.5.")
    cat_max_ratio: float = field(
        1.0,
        "Upper limit for the fraction of a crop's labelled pixels that belong to a single class. A crop that reaches the limit "
        "is redrawn, up to ten times, as in mmsegmentation's RandomCrop. 1 accepts every crop.",
        Check(lambda fraction: 0 < fraction <= 1, "Use a fraction above 0, or 1 to accept every crop."),
    )
    class_balanced: float = field(
        0.0,
        "Fraction of training samples whose crop is centred on a pixel from a randomly chosen class. Every class in "
        "the image is equally likely.",
        Check(lambda fraction: 0 <= fraction <= 1, "Use a fraction from 0 to 1."),
    )
    photometric: bool = field(
        False,
        "Whether to distort the brightness, contrast, saturation and hue of training images, as mmsegmentation does. The "
        "distortion runs on the device. Saturation and hue change only in the first three channels, and not at all in images "
        "with fewer.",
    )
    rotation: float = field(
        0.0,
        "Maximum angle, in degrees, of the random rotation applied to training samples in either direction.",
        Check(lambda degrees: 0 <= degrees <= 180, "Use an angle from 0 to 180 degrees."),
    )
    cutout: float = field(
        0.0,
        "Height and width of a rectangle blanked at a random position in each training sample, as a fraction of the crop's "
        "height and width. Labels inside the rectangle are ignored.",
        below_one("fraction of the crop size"),
    )
    threads: int = field(
        0,
        "Number of host threads per process for decoding and augmenting samples. 0 uses one thread for each CPU core available "
        "to the process.",
        at_least(0, "Use a number of at least 1, or 0 for one thread per core."),
    )
    max_unreadable: int = field(
        0,
        "Number of unreadable training samples that each process tolerates. These samples are reported by name and do not "
        "contribute to the loss or the gradient. One more unreadable sample stops the run. Evaluation never skips samples.",
        at_least(0, "Use a number of at least 0."),
    )


@dataclasses.dataclass(slots=True)
class LossConfig:
    """The loss terms, and how the cross-entropy weights pixels."""

    terms: tuple[str, ...] = field(
        ("cross_entropy",),
        "Names of the losses to add up. `LOSSES` in deeplab_jax/losses lists all names.",
        Check(_are_names, "Give the names of one or more losses: --config.loss.terms=\"('cross_entropy','dice')\"."),
    )
    weights: tuple[float, ...] = field(
        (1.0,),
        "Weight of each loss in `loss.terms`, in the same order.",
        Check(
            lambda weights: are_one_or_more_numbers(weights) and min(weights) >= 0 < max(weights),
            "Give non-negative numbers. At least one must be above 0.",
        ),
    )
    aux_weight: float = field(
        0.4,
        "Weight of the auxiliary head's loss. The main head's loss has weight 1.",
        at_least(0, "Use a number of at least 0."),
    )
    class_weights: tuple[float, ...] = field(
        (),
        "Weight of each class in the cross-entropy, in train id order. () gives all classes the same weight. "
        "`deeplab-jax data check` prints suggestions.",
    )
    label_smoothing: float = field(
        0.0,
        "Label smoothing in the cross-entropy: the fraction of the target distribution spread evenly over all classes.",
        below_one(),
    )
    ohem_threshold: float = field(
        0.0,
        "Probability threshold for online hard example mining (OHEM) in the main head's cross-entropy. Only pixels whose "
        "predicted probability for the true class is below the threshold contribute to the loss. If fewer than "
        "`loss.ohem_min_kept` pixels per image qualify, the next hardest pixels are added. 0 uses all pixels.",
        Check(lambda threshold: 0 <= threshold <= 1, "Use a probability from 0 to 1. 0 uses all pixels."),
    )
    ohem_min_kept: int = field(
        100_000,
        "Minimum number of pixels per image that online hard example mining keeps, on average over the batch. The hardest "
        "pixels in the batch are kept, so an individual image can contribute fewer.",
        at_least(0, "Use a number of at least 0."),
    )
    focal_gamma: float = field(
        2.0,
        "Exponent of 1 - p in the focal loss, where p is the probability of a pixel's class. Larger values give less weight to "
        "pixels that are already right.",
        at_least(0, "Use a number of at least 0. The paper uses 2."),
    )
    normalizer: str = field(
        "valid",
        "Divisor for the cross-entropy summed over pixels. `valid` divides by the number of pixels that count, or by "
        "the sum of their class weights if these are set. `all` divides by the total number of pixels in the batch, like "
        "mmsegmentation with avg_non_ignore=False.",
        one_of("valid", "all"),
    )


@dataclasses.dataclass(slots=True)
class OptimConfig:
    """The optax optimizer and the learning-rate schedule with linear warm-up."""

    name: str = field("sgd", "Name of the optax optimizer, such as `sgd`, `adamw`, `lion` or `lamb`.")
    options: tuple[tuple[str, float], ...] = field(
        (),
        "Additional optimizer arguments, as pairs of an optax argument name and a number: `(('b2',0.95),('nesterov',True))`.",
        Check(_are_options, "Give pairs of a name and a number: --config.optim.options=\"(('b2',0.95),)\"."),
    )
    schedule: str = field(
        "poly",
        "Name of the learning-rate schedule: `poly`, `cosine` or `constant`. `SCHEDULES` in "
        "deeplab_jax/training/schedules.py lists all names.",
    )
    lr: float = field(0.01, "Learning rate at the start of the schedule. Warm-up begins at a lower rate.", above_zero())
    lr_end: float = field(0.0, "Learning rate at the end of the poly and cosine schedules.")
    power: float = field(0.9, "Exponent of the poly schedule, (1 - step / steps) ** power.", above_zero())
    warmup_steps: int = field(
        0,
        "Number of steps over which the learning rate rises linearly, starting from lr / warmup_steps. 0 means no warm-up.",
        at_least(0, "Use a number of at least 0."),
    )
    momentum: float = field(0.9, "Momentum, for optimizers that use it, such as sgd.", below_one("number"))
    weight_decay: float = field(
        1e-4,
        "Weight decay. Optimizers with decoupled weight decay (adamw, lamb, lion) apply it separately from the gradient. For "
        "all others, it is an L2 penalty added to the gradient.",
        at_least(0, "Use a number of at least 0."),
    )
    decay_norm_and_bias: bool = field(
        True,
        "Whether weight decay also applies to BatchNorm scales and biases and to classifier biases, as in the "
        "reference implementations.",
    )
    aux_lr_factor: float = field(
        1.0,
        "Learning-rate multiplier for the auxiliary head. torchvision uses 10.",
        at_least(0, "Use a number of at least 0."),
    )
    ema_decay: float = field(
        0.0,
        "Decay factor for an exponential moving average (EMA) of the parameters. If it is above 0, the average is evaluated, "
        "loaded and exported instead of the parameters. 0 disables the average.",
        below_one("number"),
    )


@dataclasses.dataclass(slots=True)
class TrainConfig:
    """The run length, and how often the run logs, evaluates and saves. Every run ends with an evaluation and a checkpoint."""

    steps: int = field(0, "Number of optimizer steps. 0 means that `train.epochs` sets the run length.")
    epochs: float = field(
        0.0,
        "Number of passes over the training split. 0 means that `train.steps` sets the run length. A batch can contain "
        "samples from two passes.",
    )
    log_every: int = field(
        50,
        "Number of steps between log entries with the loss and other scalars. 0 means never.",
        at_least(0, "Use a number of steps, or 0 for never."),
    )
    eval_every: int = field(
        4000,
        "Number of steps between evaluations on `eval.split`. Each evaluation also logs a few strips showing the "
        "image, label and prediction. 0 evaluates only at the end.",
        at_least(0, "Use a number of steps, or 0 to evaluate only at the end."),
    )
    save_every: int = field(
        1000,
        "Number of steps between checkpoints. Every evaluation also saves a checkpoint. 0 saves only after evaluations.",
        at_least(0, "Use a number of steps, or 0 to save only after evaluations."),
    )
    micro_batches: int = field(
        1,
        "Number of parts into which each batch is split. They are computed one after the other, so more parts need less "
        "memory. There is still one parameter update per batch.",
        at_least(1, "Use a number of at least 1."),
    )
    nonfinite: str = field(
        "stop",
        "What to do if the loss or the gradient is not finite: `stop` ends the run before the update is applied, and `skip` "
        "skips the update and counts it.",
        one_of("stop", "skip"),
    )
    stall_timeout: int = field(
        600,
        "Number of seconds without progress after which a multi-process run ends. 0 means never.",
        at_least(0, "Use a number of seconds, or 0 for never."),
    )


@dataclasses.dataclass(slots=True)
class EvalConfig:
    """Settings for evaluation during training and in eval.py, and for prediction with `load(...).predict`."""

    split: str = field("val", "Name of the split to evaluate.")
    batch_size: int = field(
        8,
        "Number of images per evaluation batch, across all devices. All images in a batch have the same size.",
        at_least(1, "Use a number of at least 1."),
    )
    output_stride: int = field(
        0,
        "The network's output stride during evaluation: 8, 16 or 32. 0 uses `model.output_stride`.",
        Check(lambda stride: stride in (0, *OUTPUT_STRIDES), "Use 8, 16 or 32, or 0 for the training output stride."),
    )
    window: tuple[int, int] = field(
        (0, 0),
        "Height and width of the sliding window, in pixels of the resized image. (0, 0) predicts the full image at once.",
        integer_pair(0, "Give the height and width, such as --config.eval.window='(769,769)', or (0,0) for the full image."),
    )
    window_stride: tuple[int, int] = field(
        (0, 0),
        "Vertical and horizontal step of the sliding window, in pixels. (0, 0) uses two thirds of the window size, rounded.",
        integer_pair(
            0, "Give the two steps, such as --config.eval.window_stride='(513,513)', or (0,0) for two thirds of the window."
        ),
    )
    scales: tuple[float, ...] = field(
        (1.0,),
        "Factors by which each image is resized. The predictions at all scales are averaged.",
        Check(
            lambda scales: are_one_or_more_numbers(scales) and 0 < min(scales) <= max(scales) <= MAX_SCALE,
            f"Give factors above 0 and up to {MAX_SCALE}, such as --config.eval.scales='(0.75,1.0,1.25)'.",
        ),
    )
    flip: bool = field(False, "Whether to average the predictions for each image and its horizontally flipped copy.")


@dataclasses.dataclass(slots=True)
class MeshConfig:
    """The device mesh. Its `data` axis splits the batch, and its `spatial` axis splits the image rows."""

    data: int = field(
        0,
        "Number of devices over which the batch is split. 0 means the total number of devices divided by `mesh.spatial`.",
        at_least(0, "Use a number of devices, or 0 for all devices."),
    )
    spatial: int = field(
        1,
        "Number of devices over which the rows of each image are split.",
        at_least(1, "Use at least one device."),
    )


@dataclasses.dataclass(slots=True)
class Config:
    """The full run config, including the seed. It determines every sample, every random number and the trained network."""

    # JAX keeps only 32 bits of the seed, so a larger seed would produce the same random numbers as a smaller one.
    seed: int = field(
        0,
        "Seed for all random numbers in the run, including initial weights, sample order, augmentation and dropout.",
        Check(lambda seed: 0 <= seed < 2**32, "Use an integer from 0 to 4294967295."),
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
    """Return a run's number of optimizer steps.

    Args:
      config: The run config.
      num_train: The number of samples in the training split.

    Raises:
      ConfigError: The config sets neither `train.steps` nor `train.epochs`.
    """
    steps = config.train.steps or math.ceil(config.train.epochs * num_train / config.data.batch_size)
    if not steps:
        raise ConfigError("`train.steps` (=0) cannot be used. Set train.steps or train.epochs to a number above 0.")
    return steps
