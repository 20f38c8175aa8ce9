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


def with_variables(state: TrainState, variables: dict[str, Any]) -> TrainState:
    """The state with some of its parameters and statistics replaced, in their places on the devices.

    Args:
      state: at step 0, whose optimizer has seen no parameters yet.
      variables: {"params", "batch_stats"}, any part of either.
    """

    def replaced(old: Any, new: Any) -> Any:
        if not isinstance(old, dict):
            return jax.device_put(jnp.asarray(new, old.dtype), old.sharding)
        return {name: replaced(part, new[name]) if name in new else part for name, part in old.items()}

    return state.replace(
        params=replaced(state.params, variables["params"]), batch_stats=replaced(state.batch_stats, variables["batch_stats"])
    )
