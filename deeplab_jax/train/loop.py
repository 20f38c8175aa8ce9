"""The training loop: next batch, step, log, evaluate, save."""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from deeplab_jax.config import Config
from deeplab_jax.errors import ConfigError
from deeplab_jax.evaluation import inference, pictures, report
from deeplab_jax.evaluation.evaluate import score
from deeplab_jax.models import DeepLabV3
from deeplab_jax.sharding import check_batch, check_rows, make_mesh, prefetch, replicated
from deeplab_jax.train.checkpoint import Checkpoints, differences
from deeplab_jax.train.optimizer import make_optimizer, poly_schedule
from deeplab_jax.train.state import TrainState, init_state, with_variables
from deeplab_jax.train.step import compile_train_step
from deeplab_jax.train.writer import Writer

Batches = Iterable[dict[str, np.ndarray]]
STRIPS = 4  # of the first images of an evaluation


@dataclasses.dataclass(slots=True)
class _Interval:
    """Time since the last log line, and how much of it went into waiting for data."""

    start_step: int
    start: float = dataclasses.field(default_factory=time.perf_counter)
    waited: float = 0.0


def train(
    config: Config,
    workdir: str,
    *,
    steps: int,
    train_batches: Callable[[int], Batches],
    eval_batches: Callable[[], Batches],
    console: Console,
    pretrained: Callable[[], dict[str, Any]] | None = None,
) -> TrainState:
    """Trains to `steps`, from the newest checkpoint of `workdir` if there is one.

    Args:
      config: validated.
      workdir: the run's folder.
      steps: where the run ends.
      train_batches: batches from a given step on.
      eval_batches: one pass over the evaluation split, with labels.
      console: where progress is shown.
      pretrained: the variables that a new run starts from instead of random ones, a part of {"params", "batch_stats"}.

    Returns:
      The final state, or after SIGINT or SIGTERM the one reached; it is saved either way.

    Raises:
      ConfigError: the batch or the crops do not divide over the devices, or there are several processes.
      CheckpointError: the workdir holds a run of another network, or one that cannot be read.
    """
    mesh = _checked_mesh(config)
    model = DeepLabV3(config.model, config.labels.num_classes)
    optimizer = make_optimizer(config.optim, steps)
    lr = poly_schedule(config.optim, steps)
    step_fn = compile_train_step(mesh, model=model, optimizer=optimizer, aux_weight=config.optim.aux_weight, seed=config.seed)
    evaluate = _evaluator(config, mesh, eval_batches)
    every = config.train

    with Checkpoints(workdir, config) as checkpoints, _stop_signals(console) as stopped:
        state = _initial_state(model, optimizer, config, workdir, checkpoints, mesh, console, pretrained)
        step = int(state.step)
        first = step + 1
        if step >= steps:
            console.print(f"{workdir} is already at step {step} of {steps}: raise train.steps, or use another --workdir")
        batches = _timed(prefetch(train_batches(step), mesh))
        with Writer(workdir, step, steps, console) as writer:
            interval = _Interval(step)
            while step < steps and not stopped:
                wait, (_, batch) = next(batches)
                state, scalars = step_fn(state, batch)
                step += 1
                # The host must not run ahead: its batches would fill the device, and waiting for data would seem longer.
                jax.block_until_ready(scalars)
                interval.waited += wait
                if step == first and not _due(step, every.log_every, steps):
                    interval = _Interval(step)  # the first step compiles, which says nothing of the steps to come
                writer.advance(step)
                # The log comes before the evaluation, whose time is no step's; the save comes last, since which checkpoint
                # is the best follows from the evaluation.
                if _due(step, every.log_every, steps):
                    speed = _speed(interval, step, config.data.batch_size, scalars)
                    writer.train(step, speed | {"lr": float(lr(step - 1))}, (steps - step) * speed["seconds_per_step"])
                    interval = _Interval(step)
                scores = None
                if _due(step, every.eval_every, steps):
                    summary, strips = evaluate(state)
                    writer.evaluation(step, summary, strips)
                    scores = {"miou": summary["miou"]} if summary["miou"] is not None else None
                    interval = _Interval(step)
                if scores is not None or _due(step, every.save_every, steps):
                    checkpoints.save(state, step, scores)
        if stopped and step:
            checkpoints.save(state, step, None)
    if stopped and step < steps:
        where = f"saved in {workdir}: the same command goes on from there" if step else "nothing to save yet"
        console.print(f"stopped after step {step} of {steps}, {where}")
    return state


def _checked_mesh(config: Config) -> Mesh:
    """The mesh of the config, over which batches and crops divide."""
    if jax.process_count() > 1:
        raise ConfigError(
            f"training on {jax.process_count()} processes is not supported yet: start one, which uses all its devices"
        )
    mesh = make_mesh(config.mesh)
    check_batch(config.data.batch_size, mesh, "data.batch_size")
    check_batch(config.eval.batch_size, mesh, "eval.batch_size")
    check_rows(config.data.crop_size[0], config.model.output_stride, mesh)
    return mesh


def _initial_state(
    model: DeepLabV3,
    optimizer: Any,
    config: Config,
    workdir: str,
    checkpoints: Checkpoints,
    mesh: Mesh,
    console: Console,
    pretrained: Callable[[], dict[str, Any]] | None,
) -> TrainState:
    """The newest checkpoint's state or a new one, straight in its sharding."""
    whole = replicated(mesh)
    init = jax.jit(lambda: init_state(model, optimizer, config.seed), out_shardings=whole)
    if checkpoints.latest_step() is None:
        given = pretrained() if pretrained else None  # before what takes long
        return with_variables(init(), given) if given else init()
    changed = differences(workdir, config)
    console.print(f"resuming {workdir} after step {checkpoints.latest_step()}")
    if changed:
        console.print(f"the config differs from the checkpoint's: {'; '.join(changed)}")
    shapes = jax.eval_shape(init)
    return checkpoints.restore(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), shapes))


def _evaluator(
    config: Config, mesh: Mesh, eval_batches: Callable[[], Batches]
) -> Callable[[TrainState], tuple[dict[str, Any], list[np.ndarray]]]:
    """A function from a state to the scores and the first strips, compiled once for the run."""
    compiled = inference.compile_predict_and_count(config)

    def run(state: TrainState) -> tuple[dict[str, Any], list[np.ndarray]]:
        strips: list[np.ndarray] = []

        def show(batch: dict[str, np.ndarray], rows: Sequence[int], predictions: jax.Array) -> None:
            for i in rows[: STRIPS - len(strips)]:
                strips.append(pictures.strip(batch["image"][i], batch["label"][i], np.asarray(predictions[i]), config.labels))

        variables = {"params": state.params, "batch_stats": state.batch_stats}
        confusion = score(compiled, variables, eval_batches(), mesh, config.labels.num_classes, show)
        return report.summary(confusion, config.labels), strips

    return run


def _due(step: int, every: int, steps: int) -> bool:
    return step == steps or (every > 0 and step % every == 0)


def _timed(items: Iterator[Any]) -> Iterator[tuple[float, Any]]:
    """(seconds that the item was waited for, item)."""
    while True:
        start = time.perf_counter()
        item = next(items, None)
        if item is None:
            return
        yield time.perf_counter() - start, item


def _speed(interval: _Interval, step: int, batch_size: int, scalars: dict[str, jax.Array]) -> dict[str, float]:
    row = {name: float(value) for name, value in scalars.items()}
    seconds = time.perf_counter() - interval.start
    count = step - interval.start_step
    speed = {"images_per_second": count * batch_size / seconds, "seconds_per_step": seconds / count}
    return row | speed | {"data_wait": interval.waited / seconds}


@contextlib.contextmanager
def _stop_signals(console: Console) -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM: the step under way is finished and saved. A second signal ends the process at once."""
    received: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def receive(number: int, _: object) -> None:
        received.append(number)
        for each in signals:
            signal.signal(each, before[each])
        console.print("stopping after this step; once more stops at once")

    for number in signals:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number in signals:
            signal.signal(number, before[number])
