"""The training loop. Each iteration trains on one batch, and then logs, saves and evaluates when due."""

import contextlib
import dataclasses
import functools
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from rich.console import Console

from deeplab_jax.checkpoints.folders import CHECKPOINTS, Rank
from deeplab_jax.checkpoints.store import Checkpoints
from deeplab_jax.config import Config, to_dict
from deeplab_jax.errors import BucketError, DataError, DeeplabError, OutOfMemoryError, TrainingError
from deeplab_jax.evaluation.evaluate import StoppedError
from deeplab_jax.evaluation.scores import warn_of_infinite_logits
from deeplab_jax.runtime import hosts
from deeplab_jax.runtime.machine import fill_heap_gaps
from deeplab_jax.runtime.memory import report_out_of_memory, require_memory
from deeplab_jax.runtime.mesh import prefetch
from deeplab_jax.runtime.shared_errors import failing_together
from deeplab_jax.runtime.slow_processes import SlowProcessCheck
from deeplab_jax.training.begin import Pretrained, Setup, restore_or_create_state, set_up
from deeplab_jax.training.data import Data
from deeplab_jax.training.lock import lock_workdir
from deeplab_jax.training.log import Log
from deeplab_jax.training.metrics_log import read_log
from deeplab_jax.training.output import Output
from deeplab_jax.training.receipt import Receipts, describe_platform, describe_start
from deeplab_jax.training.schedules import describe_long_warmup, make_schedule
from deeplab_jax.training.scoring import Evaluate, make_evaluate
from deeplab_jax.training.signals import catch_stop_signals
from deeplab_jax.training.speed import Meter, ideal_step_seconds
from deeplab_jax.training.state import TrainState, to_trees
from deeplab_jax.training.step import compile_train_step
from deeplab_jax.training.stopping import LearningCheck, compute_rank, evaluation_interval, is_due, is_stalled

_MAX_ROWS = 10_000  # the largest number of steps whose mean loss is logged, so that train.log_every=0 needs little memory
_LESS_MEMORY = (
    "Lower data.batch_size or data.crop_size, raise train.micro_batches, or set model.dtype=bfloat16 or model.remat. "
    "`deeplab-jax plan` shows what fits. Other programs might use the same memory."
)


@dataclasses.dataclass(frozen=True, slots=True)
class _Tools:
    """The objects used by the training loop, created once per run."""

    workdir: str
    setup: Setup
    evaluate: Evaluate
    should_stop: Callable[..., bool]
    check_lock: Callable[[], None]
    checkpoints: Checkpoints
    receipts: Receipts
    output: Output
    watchdog: hosts.Watchdog
    find_slow_process: SlowProcessCheck
    on_evaluation: Callable[[int, dict[str, Any]], None]
    eval_every: int


class Result(NamedTuple):
    """What a run ends with.

    Attributes:
      state: The final state, or the latest one if a signal stopped the run. Either way, it has been saved.
      is_finished: Whether the run is complete: it has reached its last step or `train.patience`, and is evaluated.
    """

    state: TrainState
    is_finished: bool


def train(
    config: Config,
    workdir: str,
    *,
    steps: int,
    data: Data,
    console: Console,
    pretrained: Pretrained = None,
    on_evaluation: Callable[[int, dict[str, Any]], None] = lambda step, scores: None,
) -> Result:
    """Train up to step `steps`, from the newest intact checkpoint in `workdir` if there is one. All processes must call this.

    Args:
      config: The validated config.
      workdir: The run folder, shared by all processes.
      steps: The total number of training steps.
      data: The training and evaluation data.
      console: Console for progress messages. It should be quiet on all processes but the first.
      pretrained: Function that returns initial values for any part of a new run's {"params", "batch_stats"} tree. The rest is
        initialised randomly.
      on_evaluation: Function that is called after each evaluation with the step and its scores, from `scores.summary`. It may
        raise an error to stop the run, because the step has been saved.

    Raises:
      ConfigError: A batch cannot be divided evenly among the devices, the processes were started with different settings, or
        another run uses the workdir.
      CheckpointError: The workdir holds a run with a different network, or none of its checkpoints can be read.
      DataError, BucketError: An image or a label cannot be read. The steps before its batch are saved.
      OutOfMemoryError: A device or this machine has too little memory.
      TrainingError: The loss or its gradient is not finite and `train.nonfinite` is "stop", or nothing is learned any more.
    """
    start_time = time.perf_counter()
    setup = set_up(config, steps)
    with report_out_of_memory(_LESS_MEMORY), contextlib.ExitStack() as stack:
        # Keep the signal handlers installed until the last save is complete, so that SIGTERM cannot interrupt the save.
        signals = stack.enter_context(catch_stop_signals())
        check_lock = stack.enter_context(lock_workdir(workdir, functools.partial(console.print, markup=False)))
        log = stack.enter_context(Log(epath.Path(workdir) if jax.process_index() == 0 else None, console))
        parts = stack.enter_context(contextlib.ExitStack())
        # Trackers can take long to close, so close them after everything that must not wait.
        outputs = parts.enter_context(contextlib.ExitStack())
        checkpoints = parts.enter_context(Checkpoints(workdir, config))
        _require_same(config, workdir, data, checkpoints)
        log.print(describe_platform(setup.mesh))
        if warning := describe_long_warmup(config.optim, steps):
            log.print(warning)
        state, step = _restore(setup, workdir, checkpoints, log, pretrained)
        eval_every = evaluation_interval(config, data.epoch_size)
        checkpoints.rank_again(functools.partial(_rank, config=config))
        is_scored = _is_scored(step, setup, eval_every, checkpoints)
        watchdog = parts.enter_context(hosts.Watchdog(config.train.stall_timeout))
        should_stop = functools.partial(_has_any_signal, signals)
        tools = _Tools(
            workdir,
            setup,
            make_evaluate(setup, data, should_stop, watchdog.beat),
            should_stop,
            check_lock,
            checkpoints,
            Receipts(workdir, describe_start(step, config, data, steps, setup.mesh), data.names, log.print),
            outputs.enter_context(Output(config, workdir, step, steps, is_scored, log)),
            watchdog,
            SlowProcessCheck(),
            on_evaluation,
            eval_every,
        )
        result = _run(state, step, data, start_time, tools, is_scored=is_scored)
        parts.close()
        log.print(_describe_end(workdir, int(result.state.step), steps, result.is_finished))
    return result


def _restore(setup: Setup, workdir: str, checkpoints: Checkpoints, log: Log, pretrained: Pretrained) -> tuple[TrainState, int]:
    """Return the state with which this start begins, and its step."""
    state = restore_or_create_state(setup, workdir, checkpoints, log, pretrained)
    step = int(state.step)
    if step >= setup.steps:
        log.print(f"{workdir} is already at step {step} of {setup.steps}.")
    return state, step


def _is_scored(step: int, setup: Setup, eval_every: int, checkpoints: Checkpoints) -> bool:
    """Return whether the step with which this start begins has all scores that it should have."""
    # If train.steps was lowered below this step, the run ends here.
    is_evaluation_due = is_due(step, eval_every, max(step, setup.steps))
    return not (step and setup.config.train.evaluate and checkpoints.needs_scores(step, is_evaluation_due))


def _run(state: TrainState, step: int, data: Data, start_time: float, tools: _Tools, *, is_scored: bool) -> Result:
    """Train from `step` to the end of the run, or until a signal or `train.patience` stops it.

    `is_scored` says whether the evaluation that was due at `step` has been completed. If not, it is repeated first.
    """
    config, steps = tools.setup.config, tools.setup.steps
    if not is_scored:  # the run ended before this step's evaluation, or its scores are damaged
        tools.output.log.print(f"The scores of step {step} are missing or damaged, so it is evaluated now.")
        _evaluate(state, step, tools)
    if step == 0:
        tools.receipts.write(step, state)
    has_stalled = _is_stalled(tools)
    if step < steps and not has_stalled:
        state, step, has_stalled = _train_from(state, step, data, start_time, tools)
    is_scored = step < steps or not (config.train.evaluate and tools.checkpoints.needs_scores(step, is_due=True))
    is_finished = is_scored and (step >= steps or has_stalled)
    tools.output.outcome = "finished" if is_finished else "stopped"
    return Result(state, is_finished)


def _has_any_signal(signals: list[int], error: DeeplabError | None = None) -> bool:
    # Any process can receive a signal or have an error, but all processes must stop after the same batch.
    return hosts.is_true_on_any(bool(signals or error))


def _require_same(config: Config, workdir: str, data: Data, checkpoints: Checkpoints) -> None:
    hosts.require_same(
        config=to_dict(config),
        data=data.digest,
        eval_data=data.eval_digest,
        workdir=workdir,
        checkpoints=checkpoints.steps(),
    )


def _describe_end(workdir: str, step: int, steps: int, is_finished: bool) -> str:
    if step >= steps and not is_finished:
        return f"Finished step {step} of {steps}, but not the last evaluation. Run the same command to repeat it."
    if is_finished and step < steps:
        return f"Finished at step {step} of {steps}, because of train.patience. {workdir}/best is its best step."
    if step >= steps:
        return f"Finished at step {step} of {max(step, steps)}. The checkpoints are in {workdir}/checkpoints."
    outcome = f"Saved in {workdir}. Run the same command to resume." if step else "There was nothing to save yet."
    return f"Stopped after step {step} of {steps}. {outcome}"


def _train_from(state: TrainState, step: int, data: Data, start_time: float, tools: _Tools) -> tuple[TrainState, int, bool]:
    """Run the steps after `step`, or stop early on a signal or because of `train.patience`. The state's memory is reused.

    Return the last state, its step, and whether `train.patience` has ended the run.

    `start_time` is the value of time.perf_counter() when `train` was called.
    """
    config, steps, train_config = tools.setup.config, tools.setup.steps, tools.setup.config.train
    lr, meter = make_schedule(config.optim, steps), _make_meter(step, tools)
    batches = prefetch(data.train_batches(step, steps), tools.setup.mesh, config.model.output_stride)
    first, error = step + 1, None
    learning = LearningCheck(first, steps)
    rows: deque[dict[str, float]] = deque(maxlen=_MAX_ROWS)  # the scalars of each labelled step since the last log row
    while step < steps:
        with meter.waiting():
            pair, error = _read_batch(batches)
        if tools.should_stop(error):  # all processes stop at the same step, and save it
            break
        batch, on_device = pair
        if step + 1 == first:
            train_step = _compile(state, on_device, tools)
            meter.restart(step)  # compilation must not count towards the speed
        state, scalars = train_step(state, on_device)
        step += 1
        # `float` blocks until the step is done. Without it, the host would run ahead, fill device memory with batches and
        # overstate the data wait.
        row = {name: float(value) for name, value in scalars.items()}
        is_labelled = row.pop("labelled") > 0
        rows += [row] if is_labelled else []
        tools.watchdog.beat()
        tools.receipts.consumed.add(batch)
        is_finite = math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])
        if not is_finite and config.train.nonfinite == "stop":
            raise _describe_overflow(row, step, tools)
        learning.check(step, is_labelled=is_labelled, is_finite=is_finite)
        if step == first:
            tools.output.report_first_step(time.perf_counter() - start_time)
            if not is_due(step, train_config.log_every, steps):
                meter.restart(step)  # the first step is slower than later ones
        tools.output.advance(step)
        if is_due(step, train_config.log_every, steps):
            speed = meter.speed(step)
            row |= _average(rows) | {"lr": float(lr(step - 1))} | speed
            tools.output.log_training(step, row, (steps - step) * speed["seconds_per_step"])
            if warning := tools.find_slow_process(speed["data_wait"]):
                tools.output.log.print(warning)
            rows.clear()
            meter.restart(step)
        is_evaluation_due = train_config.evaluate and is_due(step, tools.eval_every, steps)
        # Save before evaluating, so that a failed or interrupted evaluation loses no steps.
        if is_evaluation_due or is_due(step, train_config.save_every, steps):
            _save(state, step, tools)
        if is_evaluation_due:
            if _evaluate(state, step, tools) and _is_stalled(tools):
                return state, step, True
            meter.restart(step)
    if 0 < step < steps:
        _save(state, step, tools)
    with failing_together():
        if error:
            raise _add_step(error, step) if step else error
    return state, step, False


def _read_batch(batches: Iterator[Any]) -> tuple[Any, DeeplabError | None]:
    """Return the next batch, or the error because of which it cannot be read."""
    try:
        return next(batches), None
    except (DataError, BucketError) as error:
        return None, error


def _add_step(error: DeeplabError, step: int) -> DeeplabError:
    return type(error)(f"{error} Step {step} is saved.")


def _make_meter(step: int, tools: _Tools) -> Meter:
    config = tools.setup.config
    ideal_seconds, mfu_basis = ideal_step_seconds(config, tools.setup.mesh)
    tools.output.log.print(mfu_basis)
    return Meter(step, config.data.batch_size, ideal_seconds)


def _compile(state: TrainState, batch: dict[str, jax.Array], tools: _Tools) -> Any:
    setup = tools.setup
    step = compile_train_step(setup.mesh, config=setup.config, model=setup.model, optimizer=setup.optimizer)
    with tools.output.log.waiting_for("compiling the training step"):
        program = hosts.compile_together(step, state, batch)
        fill_heap_gaps()
    with failing_together():
        require_memory(program, setup.mesh.local_devices, "The training step", _LESS_MEMORY)
    return program


def _average(rows: Collection[dict[str, float]]) -> dict[str, float]:
    """Return the mean loss and accuracy of the steps with a finite loss, or nan if there are none."""
    finite = [row for row in rows if math.isfinite(row["loss"])]
    names = ("loss", "accuracy")
    return {f"mean_{name}": float(np.mean([row[name] for row in finite])) if finite else math.nan for name in names}


def _save(state: TrainState, step: int, tools: _Tools) -> None:
    # Write the receipt before the checkpoint, because damage to a checkpoint without a receipt could go unnoticed.
    if tools.checkpoints.latest_step() != step:
        tools.check_lock()
        tools.receipts.write(step, state)
        tools.checkpoints.save(to_trees(state), step)


def _evaluate(state: TrainState, step: int, tools: _Tools) -> bool:
    """Evaluate a saved state, and return True. If a signal stops the run, return False. The run repeats it when it resumes."""
    try:
        with tools.output.log.waiting_for(f"evaluating step {step}"):
            summary, strips = tools.evaluate(state)
    except OutOfMemoryError as error:
        raise OutOfMemoryError(error.reason, f"{error.advice} Step {step} is saved.") from error
    except (DataError, BucketError) as error:
        raise _add_step(error, step) from error
    except StoppedError:
        tools.output.log.print(f"The evaluation of step {step} was interrupted. The run will start with it when it resumes.")
        return False
    tools.output.log_evaluation(step, summary, strips)
    if warning := warn_of_infinite_logits(summary):
        tools.output.log.print(warning)
    rank = _rank(summary, tools.setup.config)
    if rank.value is None:
        tools.output.log.print(
            f"warning: step {step} has no {rank.metric}, so it cannot be the best step. See train.best_metric."
        )
    tools.checkpoints.add_scores(step, summary, rank)
    tools.output.upload_checkpoint(step)
    tools.on_evaluation(step, summary)
    return True


def _rank(scores: Mapping[str, Any], config: Config) -> Rank:
    return Rank(config.train.best_metric, compute_rank(scores, config.train.best_metric))


def _is_stalled(tools: _Tools) -> bool:
    """Return whether `train.patience` ends the run, judged by the evaluations in its log. All processes must call this."""
    config = tools.setup.config
    if not config.train.patience:
        return False
    stalled = False
    with failing_together():
        if jax.process_index() == 0:  # which writes the log
            ranks = [compute_rank(row, config.train.best_metric) for row in read_log(tools.workdir, "eval")]
            stalled = is_stalled(ranks, config.train.patience)
    return hosts.is_true_on_any(stalled)


def _describe_overflow(row: Mapping[str, float], step: int, tools: _Tools) -> TrainingError:
    """Return an error about a step whose loss or gradient is not finite."""
    names = ", ".join(tools.receipts.consumed.latest_names())
    last = tools.checkpoints.latest_step()
    advice = "Lower optim.lr"
    if last and last == step - 1:  # the loss and the gradient depend on the checkpoint, but not on the rate
        folder = f"{tools.workdir}/{CHECKPOINTS}/{last}"
        advice = f"A lower optim.lr is too late for that one. Move {folder} away to resume from an earlier one"
    return TrainingError(
        f"Step {step} has a loss of {row['loss']} and a gradient norm of {row['grad_norm']}, so its update was not applied. "
        f"Last checkpoint: {'none' if last is None else f'step {last}'}. {advice}, set train.nonfinite=skip, or inspect the "
        f"samples of this step: {names}"
    )
