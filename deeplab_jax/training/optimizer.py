"""Build optax optimizers by name, and apply their updates."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Bool, Float, PyTree

from deeplab_jax.config import OptimConfig
from deeplab_jax.errors import ConfigError, one_line
from deeplab_jax.models.stages import FIRST_LAYERS
from deeplab_jax.training.parts import compute_lr_factor, list_blocks, list_paths, matches
from deeplab_jax.training.schedules import make_schedule

# The arguments of optax's optimizers that other config fields set.
_RESERVED = {"weight_decay", "mask", "weight_decay_mask"}
_RESERVED |= {"adam_weight_decay", "adam_learning_rate", "muon_weight_dimension_numbers"}  # Muon's
# Optimizers for matrices only, for the gradients of single images, and with a random key, which checkpoints cannot store.
_UNSUITABLE = ("galore", "dpsgd", "noisy_sgd")
_EXAMPLES = "sgd, adamw, lion, lamb or muon"


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Return the optax optimizer for a config, including its schedule.

    Apply `prepare_gradient` to the gradients before each update. Together, they match a PyTorch loop with one parameter group
    for each learning rate. With "sgd", it has torch.optim.SGD without dampening: g += weight_decay * p; m = momentum * m + g;
    p -= lr(step) * m.

    Raises:
      ConfigError: The optimizer or schedule does not exist, or the optimizer does not accept one of the options or its value.
    """
    make, accepted = _find_optimizer(config.name)
    options: dict[str, Any] = dict(config.options)
    if unknown := sorted(set(options) - accepted | set(options) & _RESERVED):
        raise ConfigError(
            f"`optim.options` (={config.options!r}) cannot be used: optax.{config.name} does not accept {unknown[0]!r} here. "
            f"Choose from {', '.join(sorted(accepted - _RESERVED))}."
        )
    if "momentum" in options and config.momentum != OptimConfig().momentum:
        raise ConfigError(
            f"`optim.momentum` (={config.momentum}) has no effect, because optim.options sets momentum={options['momentum']}. "
            "Set only one of them."
        )
    if "momentum" in accepted:
        options = {"momentum": config.momentum} | options
    elif config.momentum != OptimConfig().momentum:
        raise ConfigError(
            f"`optim.momentum` (={config.momentum}) has no effect, because optax.{config.name} has no such argument. Leave it "
            f"at {OptimConfig().momentum}, and set optim.options."
        )
    if mask := _find_mask_argument(accepted):
        options = {"weight_decay": config.weight_decay, mask: functools.partial(_select_decaying, config)} | options
    schedule = make_schedule(config, steps)
    try:
        optimizer = _make_muon(config, schedule) if config.name == "muon" else make(learning_rate=schedule, **options)
        kernel = {"kernel": jnp.zeros((1, 1, 2, 1))}  # a matrix for Muon
        _, state = jax.eval_shape(lambda x: optimizer.update(x, optimizer.init(x), x), kernel)
        _require_schedule(state)
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        what, values = f"`optim.name` (={config.name!r}) cannot be used here", ""
        if config.options:
            what, values = f"`optim.options` (={config.options!r}) cannot be used with optax.{config.name}", "other values, or "
        raise ConfigError(f"{what} ({one_line(error)}). Choose {values}a different optimizer, such as {_EXAMPLES}.") from None
    return optax.chain(optimizer, optax.stateless(lambda updates, _: _scale_parts(updates, config)))


def prepare_gradient(config: OptimConfig, grads: PyTree, params: PyTree, norm: Float[Array, ""]) -> PyTree:
    """Return the gradient that the optimizer receives: clipped as by torch.nn.utils.clip_grad_norm_, and with the L2 penalty's.

    Optimizers with built-in decoupled weight decay need no penalty.

    Args:
      config: The config.
      grads: The gradient of the loss.
      params: The parameters.
      norm: The L2 norm of `grads`.
    """
    if config.clip_norm:
        # The small number is PyTorch's.
        scale = jnp.minimum(config.clip_norm / (norm + 1e-6), 1.0)
        grads = jax.tree.map(lambda x: scale * x, grads)
    if _find_mask_argument(_find_optimizer(config.name)[1]):
        return grads
    penalty = optax.add_decayed_weights(config.weight_decay, functools.partial(_select_decaying, config))
    return penalty.update(grads, penalty.init(params), params)[0]


def _find_optimizer(name: str) -> tuple[Callable[..., optax.GradientTransformation], set[str]]:
    """Return the function called `name` in optax or optax.contrib, and its argument names other than `learning_rate`."""
    make: Any = None
    if name not in _UNSUITABLE and not name.startswith(("_", "scale_by")):
        make = getattr(optax, name, getattr(optax.contrib, name, None))
    accepted = set(inspect.signature(make).parameters) if inspect.isfunction(make) else set()
    if "learning_rate" not in accepted:
        raise ConfigError(
            f"`optim.name` (={name!r}) is not an optax optimizer that can be used here. Choose one, such as {_EXAMPLES}."
        )
    return make, accepted - {"learning_rate"}


def _find_mask_argument(accepted: set[str]) -> str:
    """Return the argument that selects the parameters with decoupled weight decay, or "" if the optimizer has no such decay."""
    return next((name for name in ("mask", "weight_decay_mask") if {"weight_decay", name} <= accepted), "")


def _require_schedule(state: PyTree) -> None:
    """Raise a ValueError if the optimizer does not work in a run, although it accepts our arguments."""
    parts = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, optax.contrib.ScheduleFreeState) or _is_schedule(part))
    if any(isinstance(part, optax.contrib.ScheduleFreeState) for part in parts):
        raise ValueError("evaluation would need other parameters than training")
    if not any(map(_is_schedule, parts)):
        raise ValueError("its learning rate would not follow the schedule after a skipped update")


def _select_decaying(config: OptimConfig, params: PyTree) -> PyTree:
    """Return a boolean tree that is True where weight decay applies.

    It is used even if all parameters decay, so that the optimizer state has the same structure either way.
    """
    return _map_paths(lambda path, _: not matches(path, config.no_decay), params)


def _make_muon(config: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return optax's Muon with our weight decay, because its own ignores the mask where Adam updates the parameters."""
    return optax.chain(
        optax.contrib.muon(1.0, muon_weight_dimension_numbers=_choose_muon_matrices, **dict(config.options)),
        optax.add_decayed_weights(-config.weight_decay, functools.partial(_select_decaying, config)),
        optax.scale_by_schedule(schedule),
    )


def _choose_muon_matrices(params: PyTree) -> PyTree:
    """Return which arrays Muon updates, and which of their axes are the rows of a matrix. Adam updates the others.

    As Jordan et al. (2024, https://kellerjordan.github.io/posts/muon) advise, Muon updates the kernels of hidden convolutions,
    as matrices of [height * width * inputs, outputs], but not the first and last layers. Depthwise kernels are not matrices.
    The kernel of a convolution with a few groups is one matrix for all groups.
    """
    dimensions = optax.contrib.MuonDimensionNumbers((0, 1, 2), (3,))

    def choose(path: str, x: Array) -> Any:
        is_hidden = x.ndim == 4 and x.shape[2] > 1 and not {*FIRST_LAYERS, "classifier", "aux_classifier"} & {*path.split("/")}
        return dimensions if is_hidden else None

    return _map_paths(choose, params)


def _scale_parts(updates: PyTree, config: OptimConfig) -> PyTree:
    """Multiply the updates by their learning-rate factors."""
    blocks = list_blocks(list_paths(updates))
    return _map_paths(lambda path, x: x * compute_lr_factor(path, config, blocks), updates)


def _map_paths(function: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
    """Return a tree of the results of `function`, which receives the path and the value of each leaf."""
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return jax.tree_util.tree_map_with_path(lambda path, x: function(name(path), x), tree)


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
