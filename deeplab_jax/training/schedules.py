"""Learning-rate schedules."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from deeplab_jax.config import OptimConfig
from deeplab_jax.errors import choose


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


def constant(config: OptimConfig, steps: int) -> optax.Schedule:
    """Return a schedule whose learning rate is always `lr`."""
    return optax.constant_schedule(config.lr)


# Each function takes (config, steps) and returns a schedule, which receives the step as a float.
SCHEDULES: dict[str, Callable[[OptimConfig, int], optax.Schedule]] = {"poly": poly, "cosine": cosine, "constant": constant}


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
