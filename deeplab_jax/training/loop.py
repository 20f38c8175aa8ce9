"""The training loop. Each iteration trains on one batch, and then logs, evaluates and saves when due."""

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
from deeplab_jax.training.begin import Batch, Data, Pretrained, restore_or_create_state, set_up
from deeplab_jax.training.output import Output
from deeplab_jax.training.receipt import Receipts, describe_start
from deeplab_jax.training.schedules import make_schedule
from deeplab_jax.training.speed import Meter, ideal_step_seconds
from deeplab_jax.training.state import TrainState, to_trees
from deeplab_jax.training.step import compile_train_step

STRIPS = 4  # comparison images logged per evaluation


@dataclasses.dataclass(frozen=True, slots=True)
class _Tools:
    """The objects used by the training loop, created once per run."""

    config: Config
    steps: int
    train_step: Any  # the jitted step
    evaluate: Callable[[TrainState], tuple[dict[str, Any], list[np.ndarray]]]
    checkpoints: Checkpoints
    receipts: Receipts
    output: Output
    watchdog: hosts.Watchdog
    ideal_step_seconds: float  # seconds per step if all devices ran at their peak rate
    start_time: float  # time.perf_counter() when `train` was called


def train(
    config: Config,
    workdir: str,
    *,
    steps: int,
    data: Data,
    console: Console,
    pretrained: Pretrained = None,
) -> TrainState:
    """Train up to step `steps`, resuming from the newest intact checkpoint in `workdir` if there is one.

    Every process in the run must call this function.

    Args:
      config: The validated config.
      workdir: The run folder, shared by all processes.
      steps: The total number of training steps.
      data: The training and evaluation data.
      console: Console for progress messages. It should be quiet on all processes but the first.
      pretrained: Function that returns initial values for any part of a new run's {"params", "batch_stats"} tree. The rest is
        initialised randomly.

    Returns:
      The final state, or the latest one if SIGINT or SIGTERM stopped the run. Either way, the state has been saved.

    Raises:
      ConfigError: A batch cannot be divided evenly among the devices, or the processes were started with different settings.
      CheckpointError: The workdir holds a run with a different network, or none of its checkpoints can be read.
      TrainingError: The loss or the gradient is not finite and `train.nonfinite` is "stop".
    """
    start_time = time.perf_counter()
    setup = set_up(config, steps)
    with contextlib.ExitStack() as stack:
        # Keep the signal handlers installed until the last save is complete, so that SIGTERM cannot interrupt the save.
        stopped = stack.enter_context(_stop_signals(console))
        checkpoints = stack.enter_context(Checkpoints(workdir, config))
        hosts.require_same(
            config=to_dict(config),
            data=data.digest,
            eval_data=data.eval_digest,
            workdir=workdir,
            checkpoints=checkpoints.steps(),
        )
        state = restore_or_create_state(setup, workdir, checkpoints, console, pretrained)
        step = int(state.step)
        ideal_seconds, mfu_basis = ideal_step_seconds(config, setup.mesh)
        if step >= steps:
            console.print(
                f"{workdir} is already at step {step} of {steps}. Increase train.steps or choose a different --workdir."
            )
        else:
            console.print(mfu_basis)
            console.print("Compiling the training step. On a CPU, this can take a minute or two.")
        watchdog = stack.enter_context(hosts.Watchdog(config.train.stall_timeout))
        tools = _Tools(
            config,
            steps,
            compile_train_step(setup.mesh, config=config, model=setup.model, optimizer=setup.optimizer),
            _make_evaluate(config, setup.mesh, data.eval_batches, watchdog.beat),
            checkpoints,
            Receipts(workdir, describe_start(step, config, data.digest, steps, setup.mesh), data.names, console.print),
            stack.enter_context(Output(workdir, step, steps, console)),
            watchdog,
            ideal_seconds,
            start_time,
        )
        if step == 0:
            tools.receipts.write(step, state)
        batches = prefetch(data.train_batches(step, steps), setup.mesh, config.model.output_stride)
        state, step = _train_from(state, step, batches, stopped, tools)
    console.print(_describe_end(workdir, step, steps))
    return state


def _describe_end(workdir: str, step: int, steps: int) -> str:
    if step >= steps:
        return f"Finished at step {step} of {steps}. The checkpoints are in {workdir}/checkpoints."
    outcome = f"Saved in {workdir}. Run the same command to resume." if step else "There was nothing to save yet."
    return f"Stopped after step {step} of {steps}. {outcome}"


def _train_from(
    state: TrainState, step: int, batches: Iterator[tuple[Batch, dict[str, jax.Array]]], stopped: list[int], tools: _Tools
) -> tuple[TrainState, int]:
    """Run the remaining steps, or stop early on a signal. Return the last state and its step."""
    config, steps, train_config = tools.config, tools.steps, tools.config.train
    lr = make_schedule(config.optim, steps)
    meter = Meter(step, config.data.batch_size, tools.ideal_step_seconds)
    first = step + 1
    # Any process can receive the signal, but all processes must stop after the same step.
    while step < steps and not hosts.is_true_on_any(bool(stopped)):
        with meter.waiting():
            batch, on_device = next(batches)
        if step + 1 == first:
            train_step = hosts.compile_together(tools.train_step, state, on_device)
        state, scalars = train_step(state, on_device)
        step += 1
        # `float` blocks until the step is done. Without it, the host would run ahead, fill device memory with batches and
        # overstate the data wait.
        row = {name: float(value) for name, value in scalars.items()}
        tools.watchdog.beat()
        tools.receipts.consumed.add(batch)
        if config.train.nonfinite == "stop":
            _require_finite(row, step, tools)
        if step == first:
            tools.output.report_first_step(time.perf_counter() - tools.start_time)
            if not _is_due(step, train_config.log_every, steps):
                meter.restart(step)  # compilation must not count towards the speed of later steps
        tools.output.advance(step)
        # Log before evaluating, so that evaluation does not count as training time. Save after evaluating, because the scores
        # decide which checkpoint is best.
        if _is_due(step, train_config.log_every, steps):
            speed = meter.speed(step)
            tools.output.log_training(
                step, row | {"lr": float(lr(step - 1))} | speed, (steps - step) * speed["seconds_per_step"]
            )
            meter.restart(step)
        scores = None
        if _is_due(step, train_config.eval_every, steps):
            summary, strips = tools.evaluate(state)
            tools.output.log_evaluation(step, summary, strips)
            scores = {"miou": summary["miou"]} if summary["miou"] is not None else None
            meter.restart(step)
        if scores is not None or _is_due(step, train_config.save_every, steps):
            _save(state, step, scores, tools)
    if 0 < step < steps:
        _save(state, step, None, tools)
    return state, step


def _save(state: TrainState, step: int, scores: dict[str, float] | None, tools: _Tools) -> None:
    # Write the receipt before the checkpoint, because damage to a checkpoint without a receipt could go unnoticed.
    if tools.checkpoints.latest_step() != step:
        tools.receipts.write(step, state)
        tools.checkpoints.save(to_trees(state), step, scores)


def _require_finite(row: Mapping[str, float], step: int, tools: _Tools) -> None:
    if math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]):
        return
    names = ", ".join(tools.receipts.consumed.latest_names())
    last = tools.checkpoints.latest_step()
    raise TrainingError(
        f"Step {step} has a loss of {row['loss']} and a gradient norm of {row['grad_norm']}, so its update was not applied. "
        f"Last good checkpoint: {'none' if last is None else f'step {last}'}. Lower optim.lr, set train.nonfinite=skip, or "
        f"inspect the samples of this step: {names}"
    )


def _make_evaluate(
    config: Config, mesh: Mesh, eval_batches: Callable[[], Iterable[Batch]], beat: Callable[[], None]
) -> Callable[[TrainState], tuple[dict[str, Any], list[np.ndarray]]]:
    """Return a function that evaluates a state and returns the scores and this process's first comparison images.

    The evaluation is compiled only once per run.
    """
    evaluator = Evaluator(config, mesh)

    def evaluate(state: TrainState) -> tuple[dict[str, Any], list[np.ndarray]]:
        strips: list[np.ndarray] = []

        def collect_strips(batch: Batch, rows: Sequence[int], predictions: jax.Array) -> None:
            beat()
            chosen = rows[: STRIPS - len(strips)]
            if chosen:
                on_host = local_rows(predictions)
                strips.extend(
                    pictures.draw_comparison(batch["image"][i], batch["label"][i], on_host[i], config.labels) for i in chosen
                )

        params = state.params if state.ema_params is None else state.ema_params
        confusion = score(evaluator, {"params": params, "batch_stats": state.batch_stats}, eval_batches(), collect_strips)
        return report.summary(confusion, config.labels), strips

    return evaluate


def _is_due(step: int, every: int, steps: int) -> bool:
    return step == steps or (every > 0 and step % every == 0)


@contextlib.contextmanager
def _stop_signals(console: Console) -> Iterator[list[int]]:
    """Catch SIGINT and SIGTERM so that the run can finish its current step and save.

    A second signal ends the process immediately.

    Yields:
      A list of the signals received so far.
    """
    received: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in signals}

    def receive(number: int, _: object) -> None:
        received.append(number)
        for each in signals:
            signal.signal(each, signal.SIG_DFL)
        console.print("Stopping after this step. A second signal stops the run immediately.")

    for number in signals:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number in signals:
            signal.signal(number, previous[number])
