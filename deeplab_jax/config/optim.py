"""The part of the config that describes the optimizer and the learning-rate schedule."""

import dataclasses
from typing import Any

from deeplab_jax.config.fields import Check, above_zero, are_numbers, at_least, below_one, field


def _are_options(values: Any) -> bool:
    """Return whether `values` is a tuple or list of (name, number) pairs. A bool counts as a number."""
    are_pairs = isinstance(values, tuple | list) and all(
        isinstance(value, tuple | list) and len(value) == 2 for value in values
    )
    return are_pairs and all(isinstance(name, str) and are_numbers((value,), 1) for name, value in values)


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
