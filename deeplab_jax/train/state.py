"""Everything that training changes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from deeplab_jax.models import DeepLabV3


class TrainState(struct.PyTreeNode):
    """The state after `step` updates. Random streams are no part of it: they follow from (seed, step).

    Attributes:
      step: int32 scalar, updates done.
      params: float32 parameters.
      batch_stats: BatchNorm's running means and variances, float32.
      opt_state: optax's state.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState


def init_state(model: DeepLabV3, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state at step 0, a function of the arguments alone. Jit it with the output sharding that is wanted."""
    # Parameters do not depend on the image's size; 64 keeps the shapes of the trace small.
    variables = model.init(jax.random.key(seed), jnp.zeros((1, 64, 64, 3)), train=False)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
    )
