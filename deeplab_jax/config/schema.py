"""The config of a run: typed dataclasses whose fields declare their documentation, their check and their effect on weights.

A recipe in `configs/` returns a `Config`, and a flag such as `--config.optim.lr=0.02` overrides a field. Then `models.validate`
checks the result. The dataclasses are mutable only for these overrides: nothing changes a config after `validate`.
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
    one_of,
    one_or_more_numbers,
)
from deeplab_jax.errors import ConfigError
from deeplab_jax.labels import CITYSCAPES, LabelSet

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
OUTPUT_STRIDES = (8, 16, 32)
# The largest resize factor in evaluation. A larger one is probably a typing error, and the image would exhaust the memory.
MAX_SCALE = 8


def _are_names(values: Any) -> bool:
    return isinstance(values, tuple | list) and len(values) > 0 and all(isinstance(value, str) for value in values)


def _are_options(values: Any) -> bool:
    """Return whether `values` is a tuple or list of (name, number) pairs. A bool is accepted as a number."""
    are_pairs = isinstance(values, tuple | list) and all(
        isinstance(value, tuple | list) and len(value) == 2 for value in values
    )
    return are_pairs and all(isinstance(name, str) and are_numbers((value,), 1) for name, value in values)


@dataclasses.dataclass(slots=True)
class ModelConfig:
    """The network architecture, stored with every checkpoint. See docs/reference/networks.md for the reference networks."""

    backbone: str = field(
        "resnet50",
        "Name of the backbone, such as `resnet50` or `mobilenetv3_large`. The table `BACKBONES` in "
        "deeplab_jax/models/backbones lists all names.",
        changes="shapes",
        part="backbone",
    )
    width: int = field(
        64,
        "Width of the backbone: all its channel counts are proportional to this number. 64 is the published width of every "
        "backbone, and published weights need it. In a ResNet, it is the number of channels after the stem.",
        Check(lambda width: width >= 2 and width % 2 == 0, "Use an even number of at least 2. The published networks have 64."),
        changes="shapes",
        part="backbone",
    )
    stem: str = field(
        "7x7",
        "Stem of a ResNet: `7x7` for one 7x7 convolution, or `3x3` for three 3x3 convolutions with width / 2, width / 2 and "
        "width channels. The `3x3` stem is also known as ResNetV1c or deep_stem.",
        one_of("7x7", "3x3"),
        changes="shapes",
        part="backbone",
    )
    shortcut: str = field(
        "1x1",
        "Shortcut in the first block of a ResNet stage: `1x1` for a 1x1 convolution, or `avgpool+1x1` for 2x2 average pooling "
        "followed by a 1x1 convolution. The latter is also known as ResNet-D or avg_down.",
        one_of("1x1", "avgpool+1x1"),
        changes="shapes",
        part="backbone",
    )
    output_stride: int = field(
        16,
        "Ratio of the input resolution to the resolution of the backbone's last features: 8, 16 or 32. The same weights work "
        "with each of them.",
        Check(lambda stride: stride in OUTPUT_STRIDES, "Use 8, 16 or 32."),
    )
    multi_grid: tuple[float, ...] = field(
        (0.5, 1.0, 1.0),
        "Atrous rates of the blocks in the last stage, in units of that stage's own rate, 32 / output_stride. The last number "
        "repeats if there are more blocks. A value of 0.5 is the rate of the previous stage: (0.5, 1, 1) means no multi-grid, "
        "(1, 2, 4) is the paper's multi-grid, and (0.5, 1, 2) is that of mmsegmentation's D16-MG124 networks.",
        one_or_more_numbers("Give one or more numbers above 0."),
        changes="meaning",
    )
    stage3_first_rate: int = field(
        1,
        "Atrous rate of the first block in the third stage, in pixels of its input at stride 8. 1 is the rate of the previous "
        "stage. segmentation_models.pytorch uses 2 at output stride 8.",
        at_least(1, "Use an integer of at least 1."),
        changes="meaning",
    )
    dilate_conv2: bool = field(
        True,
        "Whether the second convolution of a basic block (ResNet-18 and ResNet-34) uses the atrous rate of its stage. "
        "mmsegmentation and its weights use False, and the features then change with the output stride.",
        changes="meaning",
    )
    atrous_rates: tuple[int, ...] = field(
        (6, 12, 18),
        "Atrous rates of the 3x3 branches of the ASPP at output stride 16. The rates are doubled at output stride 8 and halved "
        "at 32.",
        one_or_more_numbers("Give one or more numbers above 0."),
        changes="meaning",
    )
    aspp_width: int = field(
        256,
        "Number of channels of each ASPP branch and of the fused output.",
        at_least(1, "Use a number of at least 1. The paper uses 256."),
        changes="shapes",
        part="aspp",
    )
    fusion: str = field(
        "1x1",
        "Convolutions that fuse the concatenated ASPP branches: `1x1` (paper), `3x3` (mmsegmentation), or `1x1+3x3` for one "
        "after the other (torchvision).",
        one_of("1x1", "3x3", "1x1+3x3"),
        changes="shapes",
        part="aspp",
    )
    decoder_width: int = field(
        0,
        "Number of channels of the decoder's 3x3 convolutions. A value above 0 turns the network into DeepLabV3+, whose logits "
        "have stride 4. 0 is DeepLabV3, which has no decoder.",
        at_least(0, "Use a number of at least 1 (256 in the paper), or 0 for no decoder."),
        changes="shapes",
        part="decoder",
    )
    low_level_width: int = field(
        48,
        "Number of channels to which the DeepLabV3+ decoder reduces the backbone's features at stride 4 (c1_channels in "
        "mmsegmentation). It has no effect without a decoder.",
        at_least(1, "Use a number of at least 1. The paper uses 48."),
        changes="shapes",
        part="decoder",
        is_used=lambda model: model.decoder_width > 0,
    )
    dropout: float = field(
        0.1, "Dropout rate after the first fusion convolution of the ASPP. Dropout is active in training only.", below_one()
    )
    aux_head: bool = field(
        False,
        "Whether to add an auxiliary fully convolutional head on an earlier stage of the backbone. Its loss helps training, "
        "and predictions do not use it.",
        changes="shapes",
        part="aux",
    )
    aux_dropout: float = field(
        0.1,
        "Dropout rate before the classifier of the auxiliary head. Dropout is active in training only.",
        below_one(),
        is_used=lambda model: model.aux_head,
    )
    align_corners: bool = field(
        False,
        "Whether to align the centres of the corner pixels, instead of their outer corners, when logits are resized to the "
        "image and features to the decoder. mmsegmentation's 769x769 networks use True.",
        changes="meaning",
    )
    dtype: str = field(
        "float32",
        "Data type in which the convolutions are computed: `float32` or `bfloat16`. Parameters, BatchNorm statistics and "
        "logits are always float32.",
        one_of("float32", "bfloat16"),
    )
    mean: tuple[float, float, float] = field(
        IMAGENET_MEAN,
        "Mean of the RGB values (0-255) of the training images. The compiled step subtracts it from every image, on the "
        "device. The default is ImageNet's.",
        Check(lambda mean: are_numbers(mean, 3), "Give three numbers, for R, G and B."),
        changes="meaning",
    )
    std: tuple[float, float, float] = field(
        IMAGENET_STD,
        "Standard deviation of the RGB values (0-255) of the training images. After the mean is subtracted, every image is "
        "divided by it. The default is ImageNet's.",
        Check(lambda std: are_numbers(std, 3) and min(std) > 0, "Give three numbers above 0, for R, G and B."),
        changes="meaning",
    )
    pretrained: str = field(
        "",
        "Weights from which training starts: a weights file of torchvision, timm or mmsegmentation, hf:OWNER/NAME for the "
        "Hugging Face hub, the folder of a run, or a folder that `deeplab-jax weights import` wrote. Parts of the network that "
        "are missing there start with random weights. If this field is empty, all parts do.",
    )
    remat: tuple[int, ...] = field(
        (),
        "Stages of the backbone, 1 to 4, whose blocks are recomputed in the backward pass. This saves memory, because their "
        "activations are not stored.",
        Check(
            lambda stages: stages in ((), []) or (are_one_or_more_numbers(stages) and set(stages) <= {1, 2, 3, 4}),
            "Give stages from 1 to 4, such as --config.model.remat='(1,2)'.",
        ),
    )


@dataclasses.dataclass(slots=True)
class DataConfig:
    """The data set, and the augmentation of the training samples."""

    root: str = field(
        "",
        "Folder of the data set. It has one of the layouts in docs/reference/data-formats.md, or was written by "
        "`deeplab-jax data prepare`.",
    )
    source: str = field(
        "",
        "`tfds:NAME` reads a data set of TensorFlow Datasets (TFDS). `data.root` is then its data_dir, where empty means "
        "TFDS's default. If this field is empty, the files in `data.root` are read.",
        Check(
            lambda source: not source or (source.startswith("tfds:") and source != "tfds:"),
            "Use tfds:NAME, or leave it empty to read the files in data.root.",
        ),
    )
    train_split: str = field("train", "Name of the training split. `train+val` joins two splits.")
    label_kind: str = field(
        "auto",
        "How label files encode the classes: `labelIds` for the label set's ids, `labelTrainIds` for train ids, or `color` for "
        "RGB colours. `auto` detects it from the file names and the first label file.",
        one_of("auto", "labelIds", "labelTrainIds", "color"),
    )
    batch_size: int = field(
        16, "Number of training samples per step, over all devices and hosts.", at_least(1, "Use a number of at least 1.")
    )
    crop_size: tuple[int, int] = field(
        (512, 1024),
        "Height and width of a training sample, in pixels.",
        integer_pair(1, "Give two integers above 0, such as --config.data.crop_size='(512,1024)'."),
    )
    scale: tuple[float, float] = field(
        (0.5, 2.0),
        "Smallest and largest factor by which training images are randomly resized.",
        Check(
            lambda scale: are_numbers(scale, 2) and 0 < scale[0] <= scale[1],
            "Give the smallest and the largest factor, such as --config.data.scale='(0.5,2.0)'.",
        ),
    )
    flip: bool = field(True, "Whether to mirror each training sample horizontally with a probability of one half.")
    cat_max_ratio: float = field(
        1.0,
        "Limit on the fraction of the labelled pixels in a crop that may belong to a single class. A crop that reaches the "
        "limit is drawn again, up to ten times (mmsegmentation's RandomCrop). 1 accepts every crop.",
        Check(lambda fraction: 0 < fraction <= 1, "Use a fraction above 0, or 1 to accept every crop."),
    )
    class_balanced: float = field(
        0.0,
        "Fraction of the training samples whose crop is centred on a pixel of a random class. Each class in the image is "
        "equally likely.",
        Check(lambda fraction: 0 <= fraction <= 1, "Use a fraction from 0 to 1."),
    )
    photometric: bool = field(
        False,
        "Whether to distort the brightness, contrast, saturation and hue of training images, as mmsegmentation does. This runs "
        "on the device.",
    )
    rotation: float = field(
        0.0,
        "Largest angle, in degrees, by which a training sample is randomly rotated in either direction.",
        Check(lambda degrees: 0 <= degrees <= 180, "Use an angle from 0 to 180 degrees."),
    )
    cutout: float = field(
        0.0,
        "Height and width of a rectangle that is blanked at a random place in each training sample, as a fraction of the "
        "crop's height and width. The labels of these pixels are ignored.",
        below_one("fraction of the crop size"),
    )
    threads: int = field(
        0,
        "Number of host threads, per process, that decode and augment samples. 0 uses one thread for each CPU core that the "
        "process may use.",
        at_least(0, "Use a number of at least 1, or 0 for one thread per core."),
    )
    max_unreadable: int = field(
        0,
        "Number of training samples, per process, whose files may be unreadable. Such samples are reported by name and do not "
        "count in the loss or the gradient. One more stops the run. Evaluation never skips samples.",
        at_least(0, "Use a number of samples of at least 0."),
    )


@dataclasses.dataclass(slots=True)
class LossConfig:
    """The losses that are added up, and how the cross-entropy weights the pixels."""

    terms: tuple[str, ...] = field(
        ("cross_entropy",),
        "Names of the losses that are added up. The table `LOSSES` in deeplab_jax/losses lists all names.",
        Check(_are_names, "Give the names of one or more losses: --config.loss.terms=\"('cross_entropy','dice')\"."),
    )
    weights: tuple[float, ...] = field(
        (1.0,),
        "Weight of each loss in `loss.terms`, in the same order.",
        Check(
            lambda weights: are_one_or_more_numbers(weights) and min(weights) >= 0 < max(weights),
            "Give numbers that are not negative. At least one must be above 0.",
        ),
    )
    aux_weight: float = field(
        0.4,
        "Weight of the auxiliary head's loss. The main head's loss has weight 1.",
        at_least(0, "Use a number of at least 0."),
    )
    class_weights: tuple[float, ...] = field(
        (),
        "Weight of each class in the cross-entropy, in the order of the train ids. () gives all classes the same weight. "
        "`deeplab-jax data check` prints suggestions.",
    )
    label_smoothing: float = field(
        0.0,
        "Label smoothing in the cross-entropy: the fraction of the target that is spread evenly over all classes.",
        below_one(),
    )
    ohem_threshold: float = field(
        0.0,
        "Threshold of online hard example mining (OHEM) in the main head's cross-entropy. Only pixels whose true class has a "
        "probability below the threshold count, and at least `loss.ohem_min_kept` pixels per image. 0 counts all pixels.",
        Check(lambda threshold: 0 <= threshold <= 1, "Use a probability from 0 to 1. 0 counts all pixels."),
    )
    ohem_min_kept: int = field(
        100_000,
        "Smallest number of pixels that online hard example mining keeps, per image. They are the hardest pixels of the batch, "
        "so single images can contribute fewer.",
        at_least(0, "Use a number of pixels of at least 0."),
    )
    normalizer: str = field(
        "valid",
        "Divisor of the cross-entropy, which is summed over pixels. `valid` divides by the number of pixels that count, or by "
        "the sum of their class weights if there are any. `all` divides by the number of all pixels in the batch, like "
        "mmsegmentation with avg_non_ignore=False.",
        one_of("valid", "all"),
    )


@dataclasses.dataclass(slots=True)
class OptimConfig:
    """The optax optimizer, and the learning-rate schedule with linear warm-up."""

    name: str = field("sgd", "Name of the optimizer in optax, such as `sgd`, `adamw`, `lion` or `lamb`.")
    options: tuple[tuple[str, float], ...] = field(
        (),
        "Further arguments of the optimizer, as pairs of optax's argument name and a number: "
        "`(('b2',0.95),('nesterov',True))`.",
        Check(_are_options, "Give pairs of a name and a number: --config.optim.options=\"(('b2',0.95),)\"."),
    )
    schedule: str = field(
        "poly",
        "Name of the learning-rate schedule: `poly`, `cosine` or `constant`. The table `SCHEDULES` in "
        "deeplab_jax/train/schedules.py lists all names.",
    )
    lr: float = field(0.01, "Learning rate at the start of the schedule. The warm-up starts with a lower one.", above_zero())
    lr_end: float = field(0.0, "Learning rate at the end of the poly and cosine schedules.")
    power: float = field(0.9, "Exponent of the poly schedule, (1 - step / steps) ** power.", above_zero())
    warmup_steps: int = field(
        0,
        "Number of steps over which the learning rate rises linearly, starting at lr / warmup_steps. 0 means no warm-up.",
        at_least(0, "Use a number of at least 0."),
    )
    momentum: float = field(0.9, "Momentum, for optimizers that have one, such as sgd.", below_one("number"))
    weight_decay: float = field(
        1e-4,
        "Weight decay. It is decoupled from the gradient in optimizers that support this (adamw, lamb, lion). For all others, "
        "it is an L2 penalty that is added to the gradient.",
        at_least(0, "Use a number of at least 0."),
    )
    decay_norm_and_bias: bool = field(
        True,
        "Whether weight decay also applies to the scale and bias of BatchNorm and to the biases of the classifiers, as in the "
        "reference implementations.",
    )
    aux_lr_factor: float = field(
        1.0,
        "Factor by which the learning rate of the auxiliary head is multiplied. torchvision uses 10.",
        at_least(0, "Use a number of at least 0."),
    )
    ema_decay: float = field(
        0.0,
        "Decay of an exponential moving average (EMA) of the parameters. If it is above 0, the average is evaluated, loaded "
        "and exported instead of the parameters. 0 keeps no average.",
        below_one("number"),
    )


@dataclasses.dataclass(slots=True)
class TrainConfig:
    """The length of a run, and how often it logs, evaluates and saves. Every run ends with an evaluation and a checkpoint."""

    steps: int = field(0, "Number of optimizer steps. 0 means that `train.epochs` sets the length of the run.")
    epochs: float = field(
        0.0,
        "Number of passes over the training split. 0 means that `train.steps` sets the length of the run. A batch can hold "
        "samples of two passes.",
    )
    log_every: int = field(
        50,
        "Number of steps between log entries with the loss and other numbers. 0 means never.",
        at_least(0, "Use a number of steps, or 0 for never."),
    )
    eval_every: int = field(
        4000,
        "Number of steps between evaluations on `eval.split`. Each evaluation also logs a few strips that show image, label "
        "and prediction. 0 evaluates only at the end.",
        at_least(0, "Use a number of steps, or 0 to evaluate only at the end."),
    )
    save_every: int = field(
        1000,
        "Number of steps between checkpoints. Every evaluation also saves a checkpoint. 0 saves only after evaluations.",
        at_least(0, "Use a number of steps, or 0 to save only after evaluations."),
    )
    micro_batches: int = field(
        1,
        "Number of parts in which a batch is computed, one after the other. More parts need less memory. There is still one "
        "update per batch.",
        at_least(1, "Use a number of at least 1."),
    )
    nonfinite: str = field(
        "stop",
        "What happens if the loss or the gradient is not finite: `stop` ends the run before the update is applied, and `skip` "
        "skips the update and counts it.",
        one_of("stop", "skip"),
    )
    stall_timeout: int = field(
        600,
        "Number of seconds without progress after which a run of several processes ends. 0 means never.",
        at_least(0, "Use a number of seconds, or 0 for never."),
    )


@dataclasses.dataclass(slots=True)
class EvalConfig:
    """The evaluation during training and in eval.py, and the prediction with `load(...).predict`."""

    split: str = field("val", "Name of the split that is evaluated.")
    batch_size: int = field(
        8,
        "Number of images per evaluation batch, over all devices. The images of a batch all have the same size.",
        at_least(1, "Use a number of at least 1."),
    )
    output_stride: int = field(
        0,
        "Output stride of the network in evaluation: 8, 16 or 32. 0 uses `model.output_stride`.",
        Check(lambda stride: stride in (0, *OUTPUT_STRIDES), "Use 8, 16 or 32, or 0 for the output stride of training."),
    )
    window: tuple[int, int] = field(
        (0, 0),
        "Height and width of the sliding window, in pixels of the resized image. (0, 0) predicts the full image at once.",
        integer_pair(0, "Give the height and width, such as --config.eval.window='(769,769)', or (0,0) for the full image."),
    )
    window_stride: tuple[int, int] = field(
        (0, 0),
        "Step of the sliding window, downwards and to the right, in pixels. (0, 0) uses two thirds of the window's size, "
        "rounded.",
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
    flip: bool = field(False, "Whether to average the predictions with those of the mirrored image.")


@dataclasses.dataclass(slots=True)
class MeshConfig:
    """The device mesh. Its axis `data` splits the batch, and its axis `spatial` splits the image rows."""

    data: int = field(
        0,
        "Number of devices over which the batch is split. 0 uses all devices: their number divided by `mesh.spatial`.",
        at_least(0, "Use a number of devices, or 0 for all devices."),
    )
    spatial: int = field(
        1,
        "Number of devices over which the rows of each image are split.",
        at_least(1, "Use a number of devices of at least 1."),
    )


@dataclasses.dataclass(slots=True)
class Config:
    """The config of a run, including the seed. It determines every sample, every random number and the trained network."""

    # JAX only keeps 32 bits of a seed, so a larger seed would produce the same random numbers as a smaller one.
    seed: int = field(
        0,
        "Seed of all random numbers of the run, such as the initial weights, the sample order, the augmentation and dropout.",
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
    """Return the number of optimizer steps of a run.

    Args:
      config: The config of the run.
      num_train: The number of samples in the training split.

    Raises:
      ConfigError: The config sets neither `train.steps` nor `train.epochs`.
    """
    steps = config.train.steps or math.ceil(config.train.epochs * num_train / config.data.batch_size)
    if not steps:
        raise ConfigError("`train.steps` (=0) cannot be used. Set train.steps or train.epochs to a number above 0.")
    return steps
