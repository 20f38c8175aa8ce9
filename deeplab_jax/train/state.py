"""Everything that training changes."""

import hashlib
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from deeplab_jax.models import DeepLabV3

if TYPE_CHECKING:
    import optax  # a network that is only used has no optimizer: it should not wait for the import


class TrainState(struct.PyTreeNode):
    """The state after `step` updates. Random streams are no part of it: they follow from (seed, step).

    Attributes:
      step: int32 scalar, updates done.
      params: float32 parameters.
      batch_stats: BatchNorm's running means and variances, float32.
      opt_state: optax's state.
      skipped: int32 scalar, updates that were not applied because they were not finite.
      ema_params: an exponential moving average of `params`, float32; None in a run without one.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: "optax.OptState"
    skipped: Any
    ema_params: Any = None


def init_state(model: DeepLabV3, optimizer: "optax.GradientTransformation", seed: int, ema: bool = False) -> TrainState:
    """Return the state at step 0, a function of the arguments alone. Jit it with the output sharding that is wanted."""
    # Parameters do not depend on the image's size; 64 keeps the shapes of the trace small.
    variables = model.init(jax.random.key(seed), jnp.zeros((1, 64, 64, 3)), train=False)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
        skipped=jnp.zeros((), jnp.int32),
        ema_params=variables["params"] if ema else None,
    )


def with_variables(state: TrainState, variables: dict[str, Any]) -> TrainState:
    """Return the state with some of its parameters and statistics replaced, in their places on the devices.

    Args:
      state: at step 0, whose optimizer has seen no parameters yet; its average, where it has one, is replaced alike.
      variables: {"params", "batch_stats"}, any part of either.
    """

    def replaced(old: Any, new: Any) -> Any:
        if not isinstance(old, dict):
            # A copy: the average must not share the memory of the parameters, which a step is given to overwrite.
            return jax.device_put(jnp.array(new, old.dtype), old.sharding)
        return {name: replaced(part, new[name]) if name in new else part for name, part in old.items()}

    return state.replace(
        params=replaced(state.params, variables["params"]),
        batch_stats=replaced(state.batch_stats, variables["batch_stats"]),
        ema_params=None if state.ema_params is None else replaced(state.ema_params, variables["params"]),
    )


def to_trees(state: TrainState) -> dict[str, Any]:
    """Return the trees that a checkpoint stores: "model" is what is used (the average, if any), "training" all else."""
    training = {"step": state.step, "opt_state": state.opt_state, "skipped": state.skipped}
    if state.ema_params is None:
        return {"model": {"params": state.params, "batch_stats": state.batch_stats}, "training": training}
    model = {"params": state.ema_params, "batch_stats": state.batch_stats}
    return {"model": model, "training": training | {"params": state.params}}


def from_trees(trees: dict[str, Any]) -> TrainState:
    """Return the state that `to_trees` was given."""
    model, training = trees["model"], trees["training"]
    average = model["params"] if "params" in training else None
    return TrainState(**model | training, ema_params=average)


def state_digest(state: TrainState) -> str:
    """Return the SHA-256 over names, types, shapes and values of all arrays: equal for equal states, however they are laid out.

    Args:
      state: whole on this process, as JAX or NumPy arrays.
    """
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(state)
    by_name = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    for name in sorted(by_name):
        array = np.asarray(by_name[name])
        digest.update(f"{name} {array.dtype.name} {list(array.shape)}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
