"""The run config: typed dataclasses whose fields declare their documentation, check and effect on stored weights.

A recipe in `configs/` returns a `Config`, and a flag such as `--config.optim.lr=0.02` overrides one of its fields.
`models.validate` then checks the result. The dataclasses are mutable only to allow overrides. After `validate`, a config
never changes.
"""

import dataclasses
import math
from fractions import Fraction

from deeplab_jax.config.data import DataConfig
from deeplab_jax.config.fields import (
    Check,
    are_distinct_strings,
    are_one_or_more_numbers,
    at_least,
    field,
    integer_pair,
    one_of,
)
from deeplab_jax.config.loss import LossConfig
from deeplab_jax.config.mix import count_by_split
from deeplab_jax.config.model import OUTPUT_STRIDES, ModelConfig
from deeplab_jax.config.optim import MAX_STEPS, OptimConfig
from deeplab_jax.errors import ConfigError
from deeplab_jax.labels import CITYSCAPES, LabelSet

# The largest resize factor allowed in evaluation. A larger one is probably a typo, and the resized image would exhaust memory.
MAX_SCALE = 8


@dataclasses.dataclass(slots=True)
class TrainConfig:
    """The run length, and how often the run logs, evaluates and saves. Every run ends with an evaluation and a checkpoint."""

    steps: int = field(0, "Number of optimizer steps. 0 means that `train.epochs` sets the run length.")
    epochs: float = field(
        0.0,
        "Number of passes over the training split, or over the first split if `data.mix` is set. 0 means that `train.steps` "
        "sets the run length. A batch can contain samples from two passes.",
    )
    log_every: int = field(
        50,
        "Number of steps between log entries with the loss and other scalars. The last step has one too. 0 logs no others.",
        at_least(0, "Use a number of steps, or 0 to log only the last one."),
    )
    eval_every: int = field(
        4000,
        "Number of steps between evaluations on `eval.split`. Each evaluation also logs a few strips showing the "
        "image, label and prediction. 0 evaluates only at the end.",
        at_least(0, "Use a number of steps, or 0 to evaluate only at the end."),
    )
    eval_every_epochs: float = field(
        0.0,
        "Number of epochs between evaluations, rounded to whole steps. If it is above 0, it replaces `train.eval_every`.",
        at_least(0, "Use a number of epochs, or 0 to use train.eval_every."),
    )
    evaluate: bool = field(
        True,
        "Whether to evaluate at all. A run without evaluations needs no `eval.split`, and has no best step.",
    )
    best_metric: str = field(
        "miou",
        "Score that decides which step is the best: one of the overall scores in scores.json, such as `miou` or `loss`, or the "
        "IoU of a class, such as `iou/person`.",
    )
    patience: int = field(
        0,
        "Number of evaluations in a row without a better `train.best_metric` after which the run ends. 0 means never.",
        at_least(0, "Use a number of evaluations, or 0 to train to the end."),
    )
    keep_last: int = field(
        2,
        "Number of latest checkpoints to keep. The best one is kept as well.",
        at_least(1, "Keep at least one. With two, a damaged one is not the end of the run."),
    )
    keep_every: int = field(
        0,
        "Number of steps between checkpoints that are kept forever. 0 keeps only the latest ones and the best one.",
        at_least(0, "Use a number of steps, or 0."),
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
        "skips the update and counts it, and ends the run after 100 in a row.",
        one_of("stop", "skip"),
    )
    stall_timeout: int = field(
        600,
        "Number of seconds without progress after which a multi-process run ends. 0 means never.",
        at_least(0, "Use a number of seconds, or 0 for never."),
    )
    writers: tuple[str, ...] = field(
        ("tensorboard",),
        "Where the run's scalars and images are written, in addition to metrics.jsonl, such as `tensorboard` or `wandb`. "
        "docs/how-to/track-runs.md lists all names.",
        Check(
            are_distinct_strings,
            "Give names, each once: --config.train.writers=\"('tensorboard','wandb')\", or () for none.",
        ),
    )
    upload_checkpoints: str = field(
        "none",
        "Which checkpoints the writers upload, once they are evaluated: `none`, `best` (each one that is the best so far) or "
        "`all`. TensorBoard takes none.",
        one_of("none", "best", "all"),
    )


@dataclasses.dataclass(slots=True)
class EvalConfig:
    """Settings for evaluation during training and in eval.py, and for prediction with `load(...).predict`."""

    split: str = field("val", "Name of the split to evaluate.")
    batch_size: int = field(
        8,
        "Number of images per evaluation batch, across all devices. Images of different sizes can share a batch.",
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
        "Number of devices over which the batch is split. 0 means the total number of devices divided by `mesh.spatial`. On a "
        "CPU, train.py and eval.py divide its cores into as many devices, which is faster for small networks.",
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
      num_train: The number of samples in the training split, or in the first split if `data.mix` is set.

    Raises:
      ConfigError: The config sets neither `train.steps` nor `train.epochs`, or the run would have too many steps.
    """
    epochs = Fraction(str(config.train.epochs))  # the decimal number that the user wrote
    steps = config.train.steps or math.ceil(epochs * num_train / count_by_split(config.data)[0])
    if not steps:
        raise ConfigError("`train.steps` (=0) cannot be used. Set train.steps or train.epochs to a number above 0.")
    if steps > MAX_STEPS:
        raise ConfigError(
            f"`train.{'steps' if config.train.steps else 'epochs'}` gives the run {steps} steps. Use at most {MAX_STEPS}."
        )
    return steps
