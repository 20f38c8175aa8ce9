"""The part of the config that describes the optimizer and the learning-rate schedule."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from deeplab_jax.config.fields import Check, above_zero, are_numbers, are_strings, at_least, below_one, field, is_pattern

MAX_STEPS = 2**31 - 1  # a step is an int32 number


def _are_pairs(values: Any) -> bool:
    """Return whether `values` is a tuple of (text, number) pairs. A bool counts as a number."""
    are_pairs = isinstance(values, tuple) and all(isinstance(value, tuple) and len(value) == 2 for value in values)
    return are_pairs and all(isinstance(name, str) and are_numbers((value,), 1) for name, value in values)


def _are_options(values: Any) -> bool:
    return _are_pairs(values) and len(dict(values)) == len(values)


def _are_factors(values: Any) -> bool:
    return _are_pairs(values) and all(is_pattern(pattern) and factor > 0 for pattern, factor in values)


def _are_patterns(values: Any) -> bool:
    return are_strings(values) and all(map(is_pattern, values))


def _patterns(example: str) -> Check:
    return Check(_are_patterns, f"Give regular expressions, such as --config.optim.{example}, or ().")


def _has_schedule(*names: str) -> Callable[["OptimConfig"], bool]:
    return lambda optim: optim.schedule in names


@dataclasses.dataclass(slots=True)
class OptimConfig:
    """The optax optimizer and the learning-rate schedule with linear warm-up."""

    name: str = field("sgd", "Name of the optax optimizer, such as `sgd`, `adamw`, `lion` or `lamb`.")
    options: tuple[tuple[str, float], ...] = field(
        (),
        "Additional optimizer arguments, as pairs of an optax argument name and a number: `(('b2',0.95),('nesterov',True))`.",
        Check(_are_options, "Give pairs of a name and a number, each name once: --config.optim.options=\"(('b2',0.95),)\"."),
    )
    schedule: str = field(
        "poly",
        "Name of the learning-rate schedule, such as `poly` or `cosine`. `SCHEDULES` in deeplab_jax/training/schedules.py "
        "lists all names.",
    )
    lr: float = field(
        0.01,
        "Learning rate at the start of the schedule, or the highest one of `one_cycle`. Warm-up begins at a lower rate.",
        above_zero(),
    )
    lr_end: float = field(
        0.0,
        "Learning rate at the end of the poly, cosine and one_cycle schedules.",
        is_used=_has_schedule("poly", "cosine", "one_cycle"),
    )
    power: float = field(
        0.9, "Exponent of the poly schedule, (1 - step / steps) ** power.", above_zero(), is_used=_has_schedule("poly")
    )
    milestones: tuple[float, ...] = field(
        (),
        "Points of the run at which the piecewise schedule multiplies the learning rate by `gamma`, as fractions of its steps: "
        "`(0.6,0.9)`.",
        Check(
            lambda points: (
                are_numbers(points, len(points)) and points == tuple(sorted({*points})) and all(0 < x < 1 for x in points)
            ),
            "Give rising fractions above 0 and below 1, such as --config.optim.milestones='(0.6,0.9)', or ().",
        ),
        is_used=_has_schedule("piecewise"),
    )
    gamma: float = field(
        0.1,
        "Factor of the piecewise schedule at each of its `milestones`.",
        above_zero(),
        is_used=_has_schedule("piecewise"),
    )
    warmup_steps: int = field(
        0,
        "Number of steps over which the learning rate rises linearly, starting from lr / warmup_steps. 0 means no warm-up.",
        Check(lambda steps: 0 <= steps <= MAX_STEPS, f"Use a number from 0 to {MAX_STEPS}."),
    )
    momentum: float = field(0.9, "Momentum, for optimizers that use it, such as sgd.", below_one("number"))
    weight_decay: float = field(
        1e-4,
        "Weight decay. Optimizers with decoupled weight decay (adamw, lamb, lion) apply it separately from the gradient. For "
        "all others, it is an L2 penalty added to the gradient.",
        at_least(0, "Use a number of at least 0."),
    )
    no_decay: tuple[str, ...] = field(
        (),
        "Parameters without weight decay, as regular expressions on their paths. `('.*/(scale|bias)',)` excludes BatchNorm and "
        "the classifier's biases. () lets all parameters decay, as in the reference implementations.",
        _patterns("no_decay=\"('.*/(scale|bias)',)\""),
    )
    lr_factors: tuple[tuple[str, float], ...] = field(
        (),
        "Learning-rate factors for parts of the network, as pairs of a regular expression on parameter paths and a factor: "
        "`(('backbone',0.1),)`. The last expression that matches decides. torchvision uses `(('aux_',10.0),)`.",
        Check(
            _are_factors,
            "Give pairs of a regular expression and a factor above 0: --config.optim.lr_factors=\"(('backbone',0.1),)\". To "
            "keep parameters fixed, use optim.frozen.",
        ),
    )
    layer_decay: float = field(
        1.0,
        "Layer-wise learning-rate decay. The learning rate of each backbone block is this fraction of the next block's. 1 "
        "gives all blocks the same.",
        Check(lambda decay: 0 < decay <= 1, "Use a factor above 0 and up to 1. Published recipes have 0.65 to 0.95."),
    )
    clip_norm: float = field(
        0.0,
        "Largest L2 norm of the gradient over all trained parameters. Larger gradients are scaled down to it, before any "
        "weight decay. 0 does not limit the gradient.",
        at_least(0, "Use a number of at least 0."),
    )
    frozen: tuple[str, ...] = field(
        (),
        "Arrays that training does not change, as regular expressions on their paths: parameters (`kernel`, `scale`, `bias`) "
        "and BatchNorm's running statistics (`mean`, `var`). A layer with frozen statistics normalises with them in training. "
        "`('backbone',)` freezes the backbone, and `('.*/(mean|var)',)` all statistics. A run is resumed with the same frozen "
        "arrays. See docs/reference/training.md.",
        _patterns("frozen=\"('backbone',)\""),
    )
    ema_decay: float = field(
        0.0,
        "Decay factor for an exponential moving average (EMA) of the parameters. If it is above 0, the average is evaluated, "
        "loaded and exported instead of the parameters. 0 disables the average.",
        below_one("number"),
    )

    def __post_init__(self) -> None:
        # A recipe can also give the pairs as a dict. Flags only know tuples.
        for name in ("options", "lr_factors"):
            if isinstance(pairs := getattr(self, name), Mapping):
                setattr(self, name, tuple(pairs.items()))
