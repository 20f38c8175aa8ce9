"""Create a training state, convert it to and from checkpoint trees, and compute its digest."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array

from deeplab_jax.models import DeepLabV3
from deeplab_jax.training.parts import merge, restrict, split

if TYPE_CHECKING:
    import optax  # imported only for annotations, because inference does not need it


class TrainState(struct.PyTreeNode):
    """The state after `step` training steps. It contains no random keys, because they are derived from (seed, step).

    Attributes:
      step: The number of steps taken, an int32 scalar.
      params: The parameters, float32.
      batch_stats: The BatchNorm running means and variances, float32.
      opt_state: The optax optimizer state of the trained parameters.
      skipped: The number of updates skipped because they were not finite, an int32 scalar.
      ema_params: An exponential moving average of the trained parameters, float32, or None if the run does not keep one.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: "optax.OptState"
    skipped: Any
    ema_params: Any = None


def init_state(
    model: DeepLabV3, optimizer: "optax.GradientTransformation", seed: int, ema: bool = False, frozen: Sequence[str] = ()
) -> TrainState:
    """Return the state at step 0, which depends only on the arguments.

    Jit this function with the desired output sharding. Parameters that match a pattern in `frozen` have neither an optimizer
    state nor a moving average.
    """
    # The image size does not affect the parameters, so a small image keeps tracing cheap.
    with jax.threefry_partitionable(True):
        variables = model.init(make_key(seed), jnp.zeros((1, 64, 64, model.config.channels)), train=False)
    trained, _ = split(variables["params"], frozen)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(trained),
        skipped=jnp.zeros((), jnp.int32),
        ema_params=trained if ema else None,
    )


def make_key(seed: int) -> Array:
    """Return the random key of a seed below 2**32.

    It does not depend on JAX's settings JAX_DEFAULT_PRNG_IMPL and JAX_RANDOM_SEED_OFFSET. For JAX_THREEFRY_PARTITIONABLE, trace
    the function that uses the key with `jax.threefry_partitionable(True)`.
    """
    return jax.random.wrap_key_data(jnp.array((0, seed), jnp.uint32), impl="threefry2x32")


def inference_variables(state: TrainState) -> dict[str, Any]:
    """Return the variables to evaluate, with the moving average of the parameters if there is one."""
    params = state.params if state.ema_params is None else merge(state.params, state.ema_params)
    return {"params": params, "batch_stats": state.batch_stats}


def replace_variables(state: TrainState, variables: dict[str, Any]) -> TrainState:
    """Return the state with some parameters and BatchNorm statistics replaced. Each array keeps its sharding and dtype.

    Args:
      state: A state at step 0, before any optimizer update. Its moving average, if any, gets the same parameters.
      variables: A dict with the trees "params" and "batch_stats". Entries missing from these trees keep their old values.
    """

    def replace(old: Any, new: Any) -> Any:
        if not isinstance(old, dict):
            # Copy the array: the training step donates the parameters, so the average must not share their memory.
            return jax.device_put(jnp.array(new, old.dtype), old.sharding)
        return {name: replace(part, new[name]) if name in new else part for name, part in old.items()}

    return state.replace(
        params=replace(state.params, variables["params"]),
        batch_stats=replace(state.batch_stats, variables["batch_stats"]),
        ema_params=None if state.ema_params is None else replace(state.ema_params, variables["params"]),
    )


def to_trees(state: TrainState) -> dict[str, Any]:
    """Return the state as the trees stored in a checkpoint.

    "model" holds what inference needs: the BatchNorm statistics and the parameters, or their moving average if there is one.
    "training" holds the rest of the state. With a moving average, that includes the trained parameters themselves.
    """
    training = {"step": state.step, "opt_state": state.opt_state, "skipped": state.skipped}
    if state.ema_params is not None:
        training |= {"params": restrict(state.params, state.ema_params)}
    return {"model": inference_variables(state), "training": training}


def from_trees(trees: dict[str, Any]) -> TrainState:
    """Rebuild a state from the trees returned by `to_trees`."""
    model, training = trees["model"], trees["training"]
    if "params" not in training:
        return TrainState(**model | training)
    average = restrict(model["params"], training["params"])
    return TrainState(**model | training | {"params": merge(model["params"], training["params"])}, ema_params=average)


def state_digest(state: TrainState | dict[str, Any]) -> str:
    """Return a SHA-256 digest of all arrays' names, dtypes, shapes and values. Sharding does not affect the digest.

    Args:
      state: The state, or the variables of a network, as NumPy arrays or as JAX arrays that this process can read in full.
    """
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(state)
    by_name = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    for name in sorted(by_name):
        array = np.asarray(by_name[name])
        digest.update(f"{name} {array.dtype.name} {list(array.shape)}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
