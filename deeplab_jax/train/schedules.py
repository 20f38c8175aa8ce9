"""Learning rates as functions of the step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from deeplab_jax.config import OptimConfig
from deeplab_jax.errors import choose


def poly(config: OptimConfig, steps: int) -> optax.Schedule:
    """Return lr_end + (lr - lr_end) (1 - step / steps) ** power, the schedule of DeepLab and of both references."""
    return lambda step: config.lr_end + (config.lr - config.lr_end) * jnp.maximum(1.0 - step / steps, 0.0) ** config.power


def cosine(config: OptimConfig, steps: int) -> optax.Schedule:
    """Return lr_end + (lr - lr_end) (1 + cos(pi step / steps)) / 2: one period of SGDR (1608.03983, equation 5)."""
    return optax.cosine_decay_schedule(config.lr, steps, alpha=config.lr_end / config.lr)


def constant(config: OptimConfig, steps: int) -> optax.Schedule:
    """Return lr at every step."""
    return optax.constant_schedule(config.lr)


# From (config, steps) to a function of the step, which it gets as a float.
SCHEDULES: dict[str, Callable[[OptimConfig, int], optax.Schedule]] = {"poly": poly, "cosine": cosine, "constant": constant}


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Return the learning rate by step: the config's schedule, times (step + 1) / warmup_steps while that is below 1.

    The first update uses step 0; the curve runs under the warm-up rather than after it, as mmsegmentation's does.

    Raises:
      ConfigError: there is no such schedule.
    """
    curve = choose(config.schedule, SCHEDULES, "optim.schedule")(config, steps)

    def lr(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step, float)  # of the default width: int32 would make float32 of it under x64 too
        return curve(step) * jnp.minimum((step + 1) / max(config.warmup_steps, 1), 1.0)

    return lr
