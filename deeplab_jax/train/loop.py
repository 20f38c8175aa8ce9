"""The training loop: next batch, step, log, evaluate, save."""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from deeplab_jax.checkpoints.store import Checkpoints
from deeplab_jax.config import Config, to_dict
from deeplab_jax.errors import TrainingError
from deeplab_jax.evaluation import pictures
from deeplab_jax.evaluation import scores as report
from deeplab_jax.evaluation.evaluate import score
from deeplab_jax.evaluation.inference import Evaluator
from deeplab_jax.runtime import hosts
from deeplab_jax.runtime.mesh import local_rows, prefetch
from deeplab_jax.train.begin import Batch, Data, Pretrained, set_up, starting_state
from deeplab_jax.train.output import Output
from deeplab_jax.train.receipt import Receipts, describe_start
from deeplab_jax.train.schedules import make_schedule
from deeplab_jax.train.speed import Meter, least_seconds
from deeplab_jax.train.state import TrainState, to_trees
from deeplab_jax.train.step import compile_train_step

STRIPS = 4  # of the first images of an evaluation


@dataclasses.dataclass(frozen=True, slots=True)
class _Tools:
    """What the loop works with, made once for the run."""

    config: Config
    steps: int
    train_step: Any  # jitted
    evaluate: Callable[[TrainState], tuple[dict[str, Any], list[np.ndarray]]]
    checkpoints: Checkpoints
    receipts: Receipts
    output: Output
    watchdog: hosts.Watchdog
    least_seconds: float  # of a step at the devices' peak rate
    began: float  # by the clock of time.perf_counter


def train(
    config: Config,
    workdir: str,
    *,
    steps: int,
    data: Data,
    console: Console,
    pretrained: Pretrained = None,
) -> TrainState:
    """Train to `steps`, from the newest good checkpoint of `workdir` if there is one. Every process of a run calls it.

    Args:
      config: validated.
      workdir: the run's folder, which all processes share.
      steps: where the run ends.
      data: what it reads.
      console: where progress is shown; quiet on all processes but the first.
      pretrained: the variables that a new run starts from instead of random ones, a part of {"params", "batch_stats"}.

    Returns:
      The final state, or after SIGINT or SIGTERM the one reached; it is saved either way.

    Raises:
      ConfigError: the batch does not divide over the devices, or the processes were started differently.
      CheckpointError: the workdir holds a run of another network, or none of its checkpoints can be read.
      TrainingError: loss or gradient is not finite, and `train.nonfinite` is "stop".
    """
    began = time.perf_counter()
    setup = set_up(config, steps)
    with contextlib.ExitStack() as stack:
        # The signals outlast the last save, which a SIGTERM must not cut off.
        stopped = stack.enter_context(_stop_signals(console))
        checkpoints = stack.enter_context(Checkpoints(workdir, config))
        hosts.require_same(
            config=to_dict(config),
            data=data.digest,
            eval_data=data.eval_digest,
            workdir=workdir,
            checkpoints=checkpoints.steps(),
        )
        state = starting_state(setup, workdir, checkpoints, console, pretrained)
        step = int(state.step)
        if step >= steps:
            console.print(f"{workdir} is already at step {step} of {steps}: raise train.steps, or use another --workdir")
        least, how = least_seconds(config, setup.mesh)
        console.print(how)
        watchdog = stack.enter_context(hosts.Watchdog(config.train.stall_timeout))
        tools = _Tools(
            config,
            steps,
            compile_train_step(setup.mesh, config=config, model=setup.model, optimizer=setup.optimizer),
            _evaluator(config, setup.mesh, data.eval_batches, watchdog.beat),
            checkpoints,
            Receipts(workdir, describe_start(step, config, data.digest, steps, setup.mesh), data.names, console.print),
            stack.enter_context(Output(workdir, step, steps, console)),
            watchdog,
            least,
            began,
        )
        if step == 0:
            tools.receipts.write(step, state)
        batches = prefetch(data.train_batches(step, steps), setup.mesh, config.model.output_stride)
        state, step = _train_from(state, step, batches, stopped, tools)
    if step < steps:
        where = f"saved in {workdir}: the same command goes on from there" if step else "nothing to save yet"
        console.print(f"stopped after step {step} of {steps}, {where}")
    return state


def _train_from(
    state: TrainState, step: int, batches: Iterator[tuple[Batch, dict[str, jax.Array]]], stopped: list[int], tools: _Tools
) -> tuple[TrainState, int]:
    """The state at the end of the run, or at the step after which a signal stopped it; and that step."""
    config, steps, every = tools.config, tools.steps, tools.config.train
    lr = make_schedule(config.optim, steps)
    meter = Meter(step, config.data.batch_size, tools.least_seconds)
    first = step + 1
    # Each process may get the signal; all must stop after the same step.
    while step < steps and not hosts.anywhere(bool(stopped)):
        with meter.waiting():
            batch, on_device = next(batches)
        if step + 1 == first:
            train_step = hosts.compile_together(tools.train_step, state, on_device)
        state, scalars = train_step(state, on_device)
        step += 1
        # The host must not run ahead: its batches would fill the device, and waiting for data would seem longer.
        row = {name: float(value) for name, value in scalars.items()}
        tools.watchdog.beat()
        tools.receipts.consumed.add(batch)
        if config.train.nonfinite == "stop":
            _require_finite(row, step, tools)
        if step == first:
            tools.output.started(time.perf_counter() - tools.began)
            if not _due(step, every.log_every, steps):
                meter.restart(step)  # the first step compiles, which says nothing of the steps to come
        tools.output.advance(step)
        # The log comes before the evaluation, whose time is no step's; the save comes last, since which checkpoint is the
        # best follows from the evaluation.
        if _due(step, every.log_every, steps):
            speed = meter.speed(step)
            tools.output.train(step, row | {"lr": float(lr(step - 1))} | speed, (steps - step) * speed["seconds_per_step"])
            meter.restart(step)
        scores = None
        if _due(step, every.eval_every, steps):
            summary, strips = tools.evaluate(state)
            tools.output.evaluation(step, summary, strips)
            scores = {"miou": summary["miou"]} if summary["miou"] is not None else None
            meter.restart(step)
        if scores is not None or _due(step, every.save_every, steps):
            _save(state, step, scores, tools)
    if 0 < step < steps:
        _save(state, step, None, tools)
    return state, step


def _save(state: TrainState, step: int, scores: dict[str, float] | None, tools: _Tools) -> None:
    # The receipt comes first: without it, damage to the checkpoint could go unnoticed.
    if tools.checkpoints.latest_step() != step:
        tools.receipts.write(step, state)
        tools.checkpoints.save(to_trees(state), step, scores)


def _require_finite(row: Mapping[str, float], step: int, tools: _Tools) -> None:
    if math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]):
        return
    names = ", ".join(tools.receipts.consumed.latest_names())
    last = tools.checkpoints.latest_step()
    raise TrainingError(
        f"step {step} has the loss {row['loss']} and a gradient of norm {row['grad_norm']}: the update was not applied; last "
        f"good checkpoint: {'none' if last is None else f'step {last}'}; lower optim.lr, set train.nonfinite=skip, or look at "
        f"the samples: {names}"
    )


def _evaluator(
    config: Config, mesh: Mesh, eval_batches: Callable[[], Iterable[Batch]], beat: Callable[[], None]
) -> Callable[[TrainState], tuple[dict[str, Any], list[np.ndarray]]]:
    """A function from a state to the scores and this process's first strips, compiled once for the run."""
    evaluator = Evaluator(config, mesh)

    def run(state: TrainState) -> tuple[dict[str, Any], list[np.ndarray]]:
        strips: list[np.ndarray] = []

        def show(batch: Batch, rows: Sequence[int], predictions: jax.Array) -> None:
            beat()
            wanted = rows[: STRIPS - len(strips)]
            if wanted:
                on_host = local_rows(predictions)
                strips.extend(pictures.strip(batch["image"][i], batch["label"][i], on_host[i], config.labels) for i in wanted)

        params = state.params if state.ema_params is None else state.ema_params
        confusion = score(evaluator, {"params": params, "batch_stats": state.batch_stats}, eval_batches(), show)
        return report.summary(confusion, config.labels), strips

    return run


def _due(step: int, every: int, steps: int) -> bool:
    return step == steps or (every > 0 and step % every == 0)


@contextlib.contextmanager
def _stop_signals(console: Console) -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM: the step under way is finished and saved. A second signal ends the process at once."""
    received: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def receive(number: int, _: object) -> None:
        received.append(number)
        for each in signals:
            signal.signal(each, signal.SIG_DFL)
        console.print("stopping after this step; once more stops at once")

    for number in signals:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number in signals:
            signal.signal(number, before[number])
