"""SGD with momentum, L2 penalty and the poly schedule, with PyTorch's arithmetic."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from deeplab_jax.config import OptimConfig


def poly_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """lr(step) = lr_end + (lr - lr_end) (1 - step / steps) ** power, times (step + 1) / warmup_steps while that is below 1.

    The first update uses step 0; the poly curve runs under the warm-up rather than after it, as mmsegmentation's does.
    """

    def lr(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, float)  # of the default width: int32 would make float32 of it under x64 too
        left = jnp.maximum(1.0 - step / steps, 0.0)
        warm = jnp.minimum((step + 1) / max(config.warmup_steps, 1), 1.0)
        return (config.lr_end + (config.lr - config.lr_end) * left**config.power) * warm

    return lr


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformationExtraArgs:
    """g += weight_decay * p;  m = momentum * m + g;  p -= lr(step) * m: torch.optim.SGD without dampening.

    The auxiliary head's lr is `aux_lr_factor` times as large, as a parameter group of its own makes it in PyTorch. The update
    takes `applies`, a bool scalar: where it is False, m stays as it was, and what is returned means nothing.
    """
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, None if config.decay_norm_and_bias else _kernels),
        _momentum(config.momentum),
        optax.scale_by_learning_rate(poly_schedule(config, steps)),
        optax.stateless(lambda updates, _: _scale_aux_head(updates, config.aux_lr_factor)),
    )


def _momentum(decay: float) -> optax.GradientTransformationExtraArgs:
    """`optax.trace`, which may leave its state alone.

    Parameters are then updated with the momentum that is stored: XLA can overwrite one after the other. With a choice between
    old and new at the end it reads both for both, and copies all parameters and all momenta first.
    """

    def update(grads: Any, state: optax.TraceState, params: Any = None, *, applies: Any = True) -> tuple[Any, optax.TraceState]:
        trace = jax.tree.map(lambda m, g: jnp.where(applies, decay * m + g, m), state.trace, grads)
        return trace, optax.TraceState(trace)

    return optax.GradientTransformationExtraArgs(optax.trace(decay).init, update)


def _scale_aux_head(updates: Any, factor: float) -> Any:
    return {
        name: jax.tree.map(lambda x: factor * x, part) if name.startswith("aux_") else part for name, part in updates.items()
    }


def _kernels(params: Any) -> Any:
    """True for convolution kernels, False for BatchNorm's scale and bias and for biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
