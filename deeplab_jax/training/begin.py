"""Set up the mesh, network, optimizer and initial state for a run. No training steps run here."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from deeplab_jax.checkpoints.store import Checkpoints, DamagedError, Trees
from deeplab_jax.config import Config
from deeplab_jax.errors import ConfigError, summarize
from deeplab_jax.losses import check_terms
from deeplab_jax.models import DeepLabV3, check_effects
from deeplab_jax.models.graph import abstract_variables
from deeplab_jax.runtime.compilation import quick_options
from deeplab_jax.runtime.mesh import check_batch, make_mesh, replicated_sharding
from deeplab_jax.training.log import Log
from deeplab_jax.training.optimizer import make_optimizer
from deeplab_jax.training.parts import check_patterns, list_paths, matches, split
from deeplab_jax.training.receipt import read_receipts
from deeplab_jax.training.schedules import check_schedule
from deeplab_jax.training.state import TrainState, from_trees, init_state, replace_variables, state_digest, to_trees
from deeplab_jax.training.stopping import check_metric

# An optional function that returns initial values for any part of a new run's {"params", "batch_stats"} tree. The rest is
# initialised randomly.
Pretrained = Callable[[], dict[str, Any]] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Setup:
    """The parts of a run that do not change during training.

    `steps` is the total number of training steps, which determines the learning-rate schedule.
    """

    config: Config
    steps: int
    mesh: Mesh
    model: DeepLabV3
    optimizer: optax.GradientTransformation


def set_up(config: Config, steps: int, devices: Sequence[jax.Device] = ()) -> Setup:
    """Build the mesh, network and optimizer for a validated config. By default, the mesh uses all available devices.

    Raises:
      ConfigError: There are too few devices, a batch cannot be divided evenly among them, BatchNorm would see a single image,
        or the config names an unknown loss or optimizer.
    """
    check_effects(config.model)
    check_terms(config)
    check_schedule(config.optim)
    check_metric(config.train, config.labels)
    mesh = make_mesh(config.mesh, devices)
    check_batch(config.data.batch_size, mesh, "data.batch_size", config.train.micro_batches)
    _require_two_images(config)
    if config.train.evaluate:
        check_batch(config.eval.batch_size, mesh, "eval.batch_size")
    model = DeepLabV3(config.model, config.labels.num_classes)
    if config.optim.frozen or config.optim.lr_factors or config.optim.no_decay or config.optim.layer_decay < 1:
        check_patterns(config.optim, abstract_variables(model))
    return Setup(config, steps, mesh, model, make_optimizer(config.optim, steps))


def _require_two_images(config: Config) -> None:
    # The pooled branch has one value per image, whose variance over one image is 0.
    if matches("aspp/branch_pool/bn/mean", config.optim.frozen):
        return
    size, parts = config.data.batch_size, config.train.micro_batches
    if size // parts < 2:
        raise ConfigError(
            f"`data.batch_size` (={size}) with train.micro_batches={parts} gives BatchNorm one image at a time, but its "
            f"statistics need two. Use a batch of at least {2 * parts}{', fewer micro-batches' if parts > 1 else ''}, or "
            "freeze the statistics of pretrained weights: --config.optim.frozen=\"('.*/(mean|var)',)\"."
        )


def create_state(setup: Setup, pretrained: Pretrained, say: Callable[[str], None] = print) -> TrainState:
    """Return the state at step 0, replicated across all devices. `say` receives a warning if frozen arrays are random."""
    variables = pretrained() if pretrained else None  # load these first, so that errors appear before the slow compilation
    options = quick_options(setup.mesh.devices.flat[0].platform)
    state = jax.jit(_init(setup), out_shardings=replicated_sharding(setup.mesh), compiler_options=options)()
    if names := _list_random_frozen(setup.config, state, variables or {}):
        say(
            f"warning: `optim.frozen` (={setup.config.optim.frozen!r}) keeps {summarize(names, 1)} fixed, with "
            "initial values that no weights replace. Start from weights that have them (model.pretrained), or train them."
        )
    return _start_from(setup, state, variables) if variables else state


def _start_from(setup: Setup, state: TrainState, variables: dict[str, Any]) -> TrainState:
    """Return the state with some variables replaced, and with an optimizer state for them, as some optimizers store them."""
    state = replace_variables(state, variables)
    trained, _ = split(state.params, setup.config.optim.frozen)
    options = quick_options(setup.mesh.devices.flat[0].platform)
    init = jax.jit(setup.optimizer.init, out_shardings=replicated_sharding(setup.mesh), compiler_options=options)
    return state.replace(opt_state=init(trained))


def _list_random_frozen(config: Config, state: TrainState, variables: dict[str, Any]) -> list[str]:
    """Return the paths of the frozen arrays that `variables` does not have."""
    paths = [*list_paths(state.params), *list_paths(state.batch_stats)]
    loaded = {path for tree in variables.values() for path in list_paths(tree)}
    return [path for path in paths if matches(path, config.optim.frozen) and path not in loaded]


def abstract_state(setup: Setup) -> TrainState:
    """Return the state's shapes and dtypes, with shardings that replicate it across all devices."""
    sharding = replicated_sharding(setup.mesh)
    shapes = jax.eval_shape(_init(setup))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)


def restore_or_create_state(
    setup: Setup, workdir: str, checkpoints: Checkpoints, log: Log, pretrained: Pretrained
) -> TrainState:
    """Restore the newest intact checkpoint, or create a new state if the run has no checkpoints."""
    if checkpoints.latest_step() is None:
        if read_receipts(workdir):
            log.print(f"{workdir} has the log of a run, but no checkpoint. The run starts at step 0, and its log is replaced.")
        return create_state(setup, pretrained, log.print)
    receipts = read_receipts(workdir)
    step, trees = checkpoints.restore(
        to_trees(abstract_state(setup)),
        check=lambda step, trees: check_restored_state(trees, step, receipts.get(step, {}).get("state")),
        warn=lambda line: log.print(f"warning: {line}"),
    )
    log.print(f"resuming {workdir} after step {step}")
    for change in checkpoints.find_config_changes(step):
        log.print(f"changed since this checkpoint: {change}")
    return from_trees(trees)


def check_restored_state(trees: Trees, step: int, digest: str | None) -> None:
    """Raise DamagedError if the state in `trees` is from a different step or does not match the digest.

    Args:
      trees: The restored trees.
      step: The checkpoint's step.
      digest: The state digest from the receipt, or None if the receipt has none.
    """
    state = from_trees(trees)
    if int(state.step) != step:
        raise DamagedError(f"it holds the state of step {int(state.step)}")
    if digest is not None and state_digest(state) != digest:
        raise DamagedError("the digest of its state does not match the receipt")


def _init(setup: Setup) -> Callable[[], TrainState]:
    config = setup.config
    return functools.partial(
        init_state, setup.model, setup.optimizer, config.seed, config.optim.ema_decay > 0, config.optim.frozen
    )
