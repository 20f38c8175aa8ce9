"""What a run begins with: its data, mesh, network and optimizer, and the state that it starts from. No step is taken here."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from rich.console import Console

from deeplab_jax.checkpoints.store import Checkpoints, DamagedError, Trees
from deeplab_jax.config import Config
from deeplab_jax.losses import check_terms
from deeplab_jax.models import DeepLabV3
from deeplab_jax.runtime.compilation import quick_options
from deeplab_jax.runtime.mesh import check_batch, make_mesh, replicated
from deeplab_jax.train.optimizer import make_optimizer
from deeplab_jax.train.receipt import read_receipts
from deeplab_jax.train.state import TrainState, from_trees, init_state, state_digest, to_trees, with_variables

Batch = dict[str, np.ndarray]
# Variables that a new run starts from instead of random ones, a part of {"params", "batch_stats"}.
Pretrained = Callable[[], dict[str, Any]] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Data:
    """What a run reads. `data/` makes it: this package knows neither files nor TensorFlow.

    Attributes:
      names: of the training images, by position in the list.
      digest: of the training list.
      eval_digest: of the evaluation list.
      train_batches: this process's rows of the batches of the steps in [first, end).
      eval_batches: this process's rows of one pass over the evaluation split, with labels.
    """

    names: Sequence[str]
    digest: str
    eval_digest: str
    train_batches: Callable[[int, int], Iterable[Batch]]
    eval_batches: Callable[[], Iterable[Batch]]


@dataclasses.dataclass(frozen=True, slots=True)
class Setup:
    """A run's fixed parts. `steps` is where it ends, which the learning rate depends on."""

    config: Config
    steps: int
    mesh: Mesh
    model: DeepLabV3
    optimizer: optax.GradientTransformation


def set_up(config: Config, steps: int, devices: Sequence[jax.Device] = ()) -> Setup:
    """Make network and optimizer of a validated config, on the given devices or all that there are.

    Raises:
      ConfigError: there are too few devices, batches do not divide over them, or a loss or the optimizer is not known.
    """
    check_terms(config)
    mesh = make_mesh(config.mesh, devices)
    check_batch(config.data.batch_size, mesh, "data.batch_size", config.train.micro_batches)
    check_batch(config.eval.batch_size, mesh, "eval.batch_size")
    model = DeepLabV3(config.model, config.labels.num_classes)
    return Setup(config, steps, mesh, model, make_optimizer(config.optim, steps))


def new_state(setup: Setup, pretrained: Pretrained) -> TrainState:
    """Return the state at step 0, on all devices."""
    given = pretrained() if pretrained else None  # before what takes long
    options = quick_options(setup.mesh.devices.flat[0].platform)
    state = jax.jit(_init(setup), out_shardings=replicated(setup.mesh), compiler_options=options)()
    return with_variables(state, given) if given else state


def abstract_state(setup: Setup) -> TrainState:
    """Return the shapes of the state, laid out on all devices."""
    whole = replicated(setup.mesh)
    shapes = jax.eval_shape(_init(setup))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), shapes)


def starting_state(
    setup: Setup, workdir: str, checkpoints: Checkpoints, console: Console, pretrained: Pretrained
) -> TrainState:
    """Return the newest good checkpoint's state or a new one, straight in its sharding."""
    if checkpoints.latest_step() is None:
        return new_state(setup, pretrained)
    receipts = read_receipts(workdir)
    step, trees = checkpoints.restore(
        to_trees(abstract_state(setup)),
        check=lambda step, trees: require_expected(trees, step, receipts.get(step, {}).get("state")),
        warn=lambda line: console.print(f"warning: {line}"),
    )
    console.print(f"resuming {workdir} after step {step}")
    if changed := checkpoints.differences(step):
        console.print(f"the config differs from the checkpoint's: {'; '.join(changed)}")
    return from_trees(trees)


def require_expected(trees: Trees, step: int, digest: str | None) -> None:
    """Raise DamagedError if trees are not the state of `step`, or have another digest than its receipt (None: unknown)."""
    state = from_trees(trees)
    if int(state.step) != step:
        raise DamagedError(f"it holds the state after step {int(state.step)}")
    if digest is not None and state_digest(state) != digest:
        raise DamagedError("its state has another digest than the one that was saved")


def _init(setup: Setup) -> Callable[[], TrainState]:
    config = setup.config
    return functools.partial(init_state, setup.model, setup.optimizer, config.seed, config.optim.ema_decay > 0)
