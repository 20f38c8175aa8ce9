"""Learning-rate schedules."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from deeplab_jax.config import OptimConfig
from deeplab_jax.config.fields import find_unused
from deeplab_jax.errors import ConfigError, choose


def poly(config: OptimConfig, steps: int) -> optax.Schedule:
    """Return the schedule lr_end + (lr - lr_end) (1 - step / steps) ** power.

    DeepLab, torchvision and mmsegmentation use this schedule.
    """
    return lambda step: config.lr_end + (config.lr - config.lr_end) * jnp.maximum(1.0 - step / steps, 0.0) ** config.power


def cosine(config: OptimConfig, steps: int) -> optax.Schedule:
    """Return the schedule lr_end + (lr - lr_end) (1 + cos(pi step / steps)) / 2.

    This is one SGDR period (arXiv:1608.03983, eq. 5).
    """
    return optax.cosine_decay_schedule(config.lr, steps, alpha=config.lr_end / config.lr)


def one_cycle(config: OptimConfig, steps: int) -> optax.Schedule:
    """Return a schedule that rises from lr / 25 to lr over 30 % of the run, and then falls to lr_end. Both parts are cosines.

    It is torch.optim.lr_scheduler.OneCycleLR with its default arguments, except for the end, where PyTorch has lr / 250,000
    (Smith and Topin 2018, arXiv:1708.07120).
    """
    peak, last = max(0.3 * steps - 1, 1.0), max(steps - 1, 2)

    def lr(step: jax.Array) -> jax.Array:
        start, end = config.lr / 25, config.lr_end
        rise = start + (config.lr - start) * (1 - jnp.cos(jnp.pi * step / peak)) / 2
        fall = end + (config.lr - end) * (1 + jnp.cos(jnp.pi * jnp.minimum((step - peak) / (last - peak), 1.0))) / 2
        return jnp.where(step <= peak, rise, fall)

    return lr


def piecewise(config: OptimConfig, steps: int) -> optax.Schedule:
    """Return a schedule that is multiplied by `gamma` at each of `milestones`, like torch.optim.lr_scheduler.MultiStepLR."""
    return lambda step: config.lr * config.gamma ** sum(step >= max(round(point * steps), 1) for point in config.milestones)


def constant(config: OptimConfig, steps: int) -> optax.Schedule:
    """Return a schedule whose learning rate is always `lr`."""
    return optax.constant_schedule(config.lr)


# Each function takes (config, steps) and returns a schedule, which receives the step as a float.
SCHEDULES: dict[str, Callable[[OptimConfig, int], optax.Schedule]] = {
    "poly": poly,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "piecewise": piecewise,
    "constant": constant,
}


def check_schedule(config: OptimConfig) -> None:
    """Raise a ConfigError if a field is set that the schedule does not read, or if the piecewise schedule has no milestones.

    A schedule that a recipe adds to `SCHEDULES` can read any field.
    """
    if choose(config.schedule, SCHEDULES, "optim.schedule").__module__ != __name__:
        return
    for field in find_unused(config):
        readers = [name for name in SCHEDULES if field.metadata["is_used"](dataclasses.replace(config, schedule=name))]
        raise ConfigError(
            f"`optim.{field.name}` (={getattr(config, field.name)!r}) has no effect with optim.schedule={config.schedule}. "
            f"Leave it at {field.default!r}, or use {' or '.join(readers)}."
        )
    if config.schedule == "piecewise" and not config.milestones:
        raise ConfigError(
            "`optim.milestones` (=()) is empty, so the rate would be constant. Give fractions of the run, such as (0.6,0.9)."
        )


def describe_long_warmup(config: OptimConfig, steps: int) -> str:
    """Return a warning if the run ends before its warm-up, or ""."""
    if config.warmup_steps <= steps:
        return ""
    return (
        f"warning: `optim.warmup_steps` (={config.warmup_steps}) is more than the {steps} steps of the run, so it ends during "
        f"its warm-up and never reaches optim.lr (={config.lr}). Use fewer warm-up steps."
    )


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Return the config's learning-rate schedule, multiplied by the warm-up factor.

    The warm-up factor is min((step + 1) / warmup_steps, 1), where the first update has step 0. As in mmsegmentation, the
    warm-up scales the beginning of the curve instead of delaying it.

    Raises:
      ConfigError: The schedule does not exist.
    """
    curve = choose(config.schedule, SCHEDULES, "optim.schedule")(config, steps)

    def lr(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step, float)  # float64 if x64 is enabled; an int32 step would always give float32
        return curve(step) * jnp.minimum((step + 1) / max(config.warmup_steps, 1), 1.0)

    return lr
