"""Build optax optimizers by name, and apply their updates."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PyTree

from deeplab_jax.config import OptimConfig
from deeplab_jax.errors import ConfigError, one_line
from deeplab_jax.training.schedules import make_schedule


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Return the optax optimizer for a config, including its schedule.

    Apply `add_penalty` to the gradients before each update. Together, "sgd" and `add_penalty` match torch.optim.SGD without
    dampening: g += weight_decay * p; m = momentum * m + g; p -= lr(step) * m. Auxiliary-head updates are
    multiplied by `aux_lr_factor`, like a PyTorch parameter group with its own learning rate.

    Raises:
      ConfigError: The optimizer or schedule does not exist, or the optimizer does not accept one of the options.
    """
    make, accepted = _find_optimizer(config.name)
    options: dict[str, Any] = dict(config.options)
    if unknown := sorted(set(options) - accepted | set(options) & {"mask"}):
        raise ConfigError(
            f"`optim.options` (={config.options!r}) cannot be used: optax.{config.name} does not accept {unknown[0]!r} here. "
            f"Choose from {', '.join(sorted(accepted - {'mask'}))}."
        )
    if "momentum" in accepted:
        options = {"momentum": config.momentum} | options
    if _has_decoupled_decay(accepted):
        options = {"weight_decay": config.weight_decay, "mask": _decay_mask(config)} | options
    schedule = make_schedule(config, steps)
    try:
        optimizer = make(learning_rate=schedule, **options)
        jax.eval_shape(lambda x: optimizer.update(x, optimizer.init(x), x), {"kernel": jnp.zeros((1, 1, 1, 1))})
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"`optim.name` (={config.name!r}) cannot be used here ({one_line(error)}). Choose a different optimizer, such "
            f"as sgd, adamw, lion or lamb."
        ) from None
    return optax.chain(optimizer, optax.stateless(lambda updates, _: _scale_aux_head(updates, config.aux_lr_factor)))


def add_penalty(config: OptimConfig, grads: PyTree, params: PyTree) -> PyTree:
    """Add the L2 penalty's gradient to `grads`.

    If the optimizer has built-in decoupled weight decay, return `grads` unchanged.
    """
    if _has_decoupled_decay(_find_optimizer(config.name)[1]):
        return grads
    penalty = optax.add_decayed_weights(config.weight_decay, _decay_mask(config))
    return penalty.update(grads, penalty.init(params), params)[0]


def _find_optimizer(name: str) -> tuple[Callable[..., optax.GradientTransformation], set[str]]:
    """Return the optax function called `name` and its argument names other than `learning_rate`."""
    make: Any = None if name.startswith(("_", "scale_by")) else getattr(optax, name, None)
    accepted = set(inspect.signature(make).parameters) if inspect.isfunction(make) else set()
    if "learning_rate" not in accepted:
        raise ConfigError(f"`optim.name` (={name!r}) is not an optax optimizer. Choose one, such as sgd, adamw, lion or lamb.")
    return make, accepted - {"learning_rate"}


def _has_decoupled_decay(accepted: set[str]) -> bool:
    return {"weight_decay", "mask"} <= accepted


def _decay_mask(config: OptimConfig) -> Callable[[PyTree], PyTree]:
    """Return a function that maps the parameters to a boolean tree, True where weight decay applies.

    A mask is returned even if all parameters decay, so that the optimizer state has the same structure either way.
    """
    return _select_all if config.decay_norm_and_bias else _select_kernels


def apply_where(
    applies: Bool[Array, ""], optimizer: optax.GradientTransformation, grads: PyTree, opt_state: PyTree, params: PyTree
) -> tuple[PyTree, PyTree]:
    """Return the updated parameters and optimizer state, or the old ones if `applies` is False.

    The schedule advances in either case, because the learning rate depends on the step number.
    """

    def update() -> tuple[PyTree, PyTree]:
        updates, new_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), new_state

    def keep() -> tuple[PyTree, PyTree]:
        return params, jax.tree.map(_advance_schedule, opt_state, is_leaf=_is_schedule)

    # Use `cond`, because XLA updates arrays in place inside a branch. `jnp.where` would need both the old and the new values,
    # so XLA would first copy all parameters and moments.
    return jax.lax.cond(applies, update, keep)


def _is_schedule(state: Any) -> bool:
    return isinstance(state, optax.ScaleByScheduleState)


def _advance_schedule(state: Any) -> Any:
    return state._replace(count=optax.safe_increment(state.count)) if _is_schedule(state) else state


def _scale_aux_head(updates: Any, factor: float) -> Any:
    return {
        name: jax.tree.map(lambda x: factor * x, part) if name.startswith("aux_") else part for name, part in updates.items()
    }


def _select_kernels(params: Any) -> Any:
    """Return a tree that is True for convolution kernels, and False for biases and BatchNorm parameters."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _select_all(params: Any) -> Any:
    return jax.tree.map(lambda _: True, params)
