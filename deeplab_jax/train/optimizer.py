"""Optax's optimizers by name, and the update that a step makes with them."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PyTree

from deeplab_jax.config import OptimConfig
from deeplab_jax.errors import ConfigError, one_line
from deeplab_jax.train.schedules import make_schedule


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Return optax's optimizer of the config, under its schedule, for gradients that have been through `add_penalty`.

    So "sgd" is torch.optim.SGD without dampening: g += weight_decay * p; m = momentum * m + g; p -= lr(step) * m. The auxiliary
    head's updates are `aux_lr_factor` times as large, as a parameter group with a learning rate of its own makes them in
    PyTorch.

    Raises:
      ConfigError: there is no such optimizer or schedule, or the optimizer takes no such option.
    """
    make, takes = _find(config.name)
    options: dict[str, Any] = dict(config.options)
    if unknown := sorted(set(options) - takes | set(options) & {"mask"}):
        raise ConfigError(
            f"`optim.options` (={config.options!r}) cannot be used: optax.{config.name} takes no {unknown[0]!r}, "
            f"use {', '.join(sorted(takes - {'mask'}))}"
        )
    if "momentum" in takes:
        options = {"momentum": config.momentum} | options
    if _decays_by_itself(takes):
        options = {"weight_decay": config.weight_decay, "mask": _decay_mask(config)} | options
    schedule = make_schedule(config, steps)
    try:
        optimizer = make(learning_rate=schedule, **options)
        jax.eval_shape(lambda x: optimizer.update(x, optimizer.init(x), x), {"kernel": jnp.zeros((1, 1, 1, 1))})
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"`optim.name` (={config.name!r}) cannot be used here ({one_line(error)}): use sgd, adamw, lion, lamb or another"
        ) from None
    return optax.chain(optimizer, optax.stateless(lambda updates, _: _scale_aux_head(updates, config.aux_lr_factor)))


def add_penalty(config: OptimConfig, grads: PyTree, params: PyTree) -> PyTree:
    """Return the gradients with the L2 penalty's; as they are where the optimizer has a weight decay of its own, decoupled."""
    if _decays_by_itself(_find(config.name)[1]):
        return grads
    penalty = optax.add_decayed_weights(config.weight_decay, _decay_mask(config))
    return penalty.update(grads, penalty.init(params), params)[0]


def _find(name: str) -> tuple[Callable[..., optax.GradientTransformation], set[str]]:
    """Return optax's function of that name and its arguments besides the learning rate."""
    make: Any = None if name.startswith(("_", "scale_by")) else getattr(optax, name, None)
    takes = set(inspect.signature(make).parameters) if inspect.isfunction(make) else set()
    if "learning_rate" not in takes:
        raise ConfigError(f"`optim.name` (={name!r}) is no optimizer of optax: use sgd, adamw, lion, lamb or another")
    return make, takes - {"learning_rate"}


def _decays_by_itself(takes: set[str]) -> bool:
    return {"weight_decay", "mask"} <= takes


def _decay_mask(config: OptimConfig) -> Callable[[PyTree], PyTree]:
    """Return a function from parameters to which of them decay. Always one: the state's tree must not depend on the switch."""
    return _everything if config.decay_norm_and_bias else _kernels


def apply_where(
    applies: Bool[Array, ""], optimizer: optax.GradientTransformation, grads: PyTree, opt_state: PyTree, params: PyTree
) -> tuple[PyTree, PyTree]:
    """Return parameters and optimizer state after an update; where it does not apply, as they were.

    The schedule goes on either way: the learning rate follows from the number of the step.
    """

    def update() -> tuple[PyTree, PyTree]:
        updates, new_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), new_state

    def keep() -> tuple[PyTree, PyTree]:
        return params, jax.tree.map(_go_on, opt_state, is_leaf=_is_schedule)

    # A branch, in which XLA overwrites one array after the other. A choice between old and new at the end reads both for both:
    # it copies all parameters and moments first.
    return jax.lax.cond(applies, update, keep)


def _is_schedule(state: Any) -> bool:
    return isinstance(state, optax.ScaleByScheduleState)


def _go_on(state: Any) -> Any:
    return state._replace(count=optax.safe_increment(state.count)) if _is_schedule(state) else state


def _scale_aux_head(updates: Any, factor: float) -> Any:
    return {
        name: jax.tree.map(lambda x: factor * x, part) if name.startswith("aux_") else part for name, part in updates.items()
    }


def _kernels(params: Any) -> Any:
    """True for convolution kernels, False for BatchNorm's scale and bias and for biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _everything(params: Any) -> Any:
    return jax.tree.map(lambda _: True, params)
