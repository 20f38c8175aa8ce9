"""Replay some of a run's steps and compare the results with its receipt."""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence

import jax
import numpy as np
from etils import epath

from deeplab_jax.checkpoints.folders import CHECKPOINTS, CHECKSUMS, find_changed_files, list_steps
from deeplab_jax.checkpoints.paths import resolve
from deeplab_jax.checkpoints.store import Checkpoints, Trees
from deeplab_jax.config import Config, from_dict
from deeplab_jax.errors import CheckpointError, ConfigError, DataError
from deeplab_jax.runtime.mesh import prefetch
from deeplab_jax.training import receipt
from deeplab_jax.training.begin import Pretrained, abstract_state, create_state, set_up
from deeplab_jax.training.data import Data
from deeplab_jax.training.metrics_log import read_log
from deeplab_jax.training.receipt import ConsumedSamples, Start, read_receipts, read_samples, read_starts
from deeplab_jax.training.state import TrainState, from_trees, state_digest, to_trees
from deeplab_jax.training.step import compile_train_step

SCALARS = ("loss", "accuracy", "grad_norm")
# The largest relative differences that rounding on different devices can explain.
MAX_FIRST_STEP_DIFFERENCE, MAX_PARAMETER_DIFFERENCE = 0.02, 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """The result of one comparison.

    Attributes:
      agrees: True if the compared values agree, False if they contradict the receipt, or None if the comparison is
        inconclusive.
      text: A description of what was compared, with the result.
    """

    agrees: bool | None
    text: str


def config_at(workdir: str, step: int) -> tuple[Config, Start]:
    """Return the config that the run used right after `step`, and the start that recorded this config.

    Raises:
      CheckpointError: The run has no receipt, or the receipt cannot be read.
      ConfigError: The receipt starts after `step`.
    """
    starts = read_starts(workdir)
    earlier = [start for start in starts if start.step <= step]
    if not starts:
        raise CheckpointError(f"`run` (={workdir!r}) does not contain {receipt.RUN}. Pass the --workdir of a train.py run.")
    if not earlier:
        raise ConfigError(
            f"`--from` (={step}) is before the first step of the receipt. Choose step {starts[0].step} or a later checkpoint."
        )
    return from_dict(earlier[-1].config), earlier[-1]


def verify(
    workdir: str,
    start: int,
    steps: int,
    data: Data,
    fingerprint: Callable[[int], str],
    pretrained: Pretrained = None,
) -> Iterator[Finding]:
    """Replay `steps` steps from the checkpoint at step `start`, or from the beginning if `start` is 0, and yield the findings.

    Args:
      workdir: The run folder.
      start: The step of an existing checkpoint, or 0.
      steps: The number of steps to replay.
      data: The data named in the run's config, in its current state.
      fingerprint: Function that takes a position in the training list and returns the hexadecimal fingerprint of that sample's
        files.
      pretrained: Function that returns the run's initial variables, or None if they were random.

    Yields:
      One finding per comparison.

    Raises:
      ConfigError: The run does not contain this interval, or its mesh needs more devices than are available.
      CheckpointError: The checkpoint cannot be read.
    """
    config, run_start = config_at(workdir, start)
    receipts, samples = read_receipts(workdir), read_samples(workdir)
    end = start + steps
    log = {row["step"]: row for row in read_log(workdir, "train") if all(name in row for name in SCALARS)}
    _check_interval(workdir, start, end, run_start)
    saved = list_steps(epath.Path(workdir) / CHECKPOINTS)
    _require_recorded(start, end, {*receipts, *log, *saved})
    _require_checkpoint(start, saved)  # reading every sample, which comes next, can take hours
    setup = set_up(config, run_start.steps)
    yield from _compare_lists(data, run_start)
    yield _compare_contents(data, samples, fingerprint)
    replay_start = receipt.describe_start(start, config, data, run_start.steps, setup.mesh)
    starts = [run_start, *(other for other in read_starts(workdir) if start < other.step < end)]
    differences = next(filter(None, (", ".join(receipt.find_platform_changes(each, replay_start)) for each in starts)), "")
    is_exact = not differences
    with Checkpoints(workdir, config) as checkpoints:
        check_checkpoint = functools.partial(
            _check_checkpoint, workdir, receipts=receipts, checkpoints=checkpoints, abstract=to_trees(abstract_state(setup))
        )
        if start:
            state = yield from check_checkpoint(start)
        else:
            state = create_state(setup, pretrained)
            if is_exact:
                yield _compare_digests("state", start, receipts, state_digest(state))
        yield Finding(None, f"replaying with {differences or 'the same devices and versions as the run'}")
        consumed = ConsumedSamples(data.names, receipts.get(start, {}).get("samples", ""))
        train_step = compile_train_step(setup.mesh, config=config, model=setup.model, optimizer=setup.optimizer)
        batches = prefetch(data.train_batches(start, end), setup.mesh, config.model.output_stride)
        for step, (batch, on_device) in enumerate(batches, start=start + 1):
            state, scalars = train_step(state, on_device)
            row = {name: float(scalars[name]) for name in SCALARS}
            consumed.add(batch)
            if step in log:
                yield _compare_scalars(step, row, log[step], is_exact, is_first=step == start + 1)
            if step in receipts:
                consumed.flush()
                yield _compare_digests("samples", step, receipts, consumed.digest)
                if is_exact:
                    yield _compare_digests("state", step, receipts, state_digest(state))
            if step in saved:
                stored = yield from check_checkpoint(step)
                if not is_exact:
                    yield _compare_parameters(step, state, stored)


def _compare_lists(data: Data, run_start: Start) -> Iterator[Finding]:
    digests: dict[str, tuple[str | None, str]] = {"training": (data.digest, run_start.data)}
    if run_start.eval_data is not None:  # receipts from before version 0.2 do not name it
        digests["evaluation"] = data.eval_digest, run_start.eval_data
    for name, (now, then) in digests.items():
        yield Finding(now == then, f"{name} list: {'unchanged' if now == then else 'differs from the run'}")


def _check_interval(workdir: str, start: int, end: int, run_start: Start) -> None:
    same = (run_start.config, run_start.data, run_start.steps)
    later = [other for other in read_starts(workdir) if start < other.step < end]
    changed = [other.step for other in later if (other.config, other.data, other.steps) != same]
    if changed:
        raise ConfigError(
            f"`--steps` (={end - start}) goes past step {changed[0]}, where the run was restarted with a different config, "
            f"data or length. Replay at most {changed[0] - start} steps."
        )
    if not start < end <= run_start.steps:
        advice = f"Use 1 to {run_start.steps - start}." if start < run_start.steps else f"Use --from below {run_start.steps}."
        raise ConfigError(
            f"`--steps` (={end - start}) is out of range from step {start} in a {run_start.steps}-step run. {advice}"
        )


def _require_recorded(start: int, end: int, recorded: Collection[int]) -> None:
    """Check that at least one step after `start` and up to `end` has a result to compare with."""
    after = sorted(step for step in recorded if step > start)
    if after and after[0] <= end:
        return
    steps = f"step {end}" if end == start + 1 else f"steps {start + 1} to {end}"
    advice = f"Use --steps {after[0] - start} or more" if after else "Use a smaller --from"
    first, last = min((step for step in recorded if step), default=0), max(recorded, default=0)
    raise ConfigError(
        f"`--steps` (={end - start}) replays only {steps}, of which the run recorded no result to compare with. Its first "
        f"recorded step is {first}, and its last is {last}. {advice}."
    )


def _require_checkpoint(start: int, saved: Sequence[int]) -> None:
    """Check that the step to start from has a checkpoint, or is 0."""
    if start and start not in saved:
        raise ConfigError(f"`--from` (={start}) has no checkpoint. Use one of the steps {', '.join(map(str, (0, *saved)))}.")


def _check_checkpoint(
    workdir: str, step: int, *, receipts: Mapping[int, Mapping[str, str]], checkpoints: Checkpoints, abstract: Trees
) -> Generator[Finding, None, TrainState]:
    """Check a checkpoint's files, config and state against its checksums and the receipt. Return the state."""
    folder = resolve(str(epath.Path(workdir) / CHECKPOINTS / str(step)))
    changed = find_changed_files(folder)
    if changed is None:
        yield Finding(None, f"{folder} has no {CHECKSUMS}, because the run ended before it was written")
    else:
        yield Finding(not changed, f"files of {folder}: {', '.join(changed[:3]) + ' changed' if changed else 'unchanged'}")
    stored, trees = checkpoints.load(step, abstract)
    # This checkpoint was saved by the last start before `step`, even if the run was later resumed from this checkpoint.
    earlier = [start for start in read_starts(workdir) if start.step < step]
    if earlier and stored != from_dict(earlier[-1].config):
        yield Finding(False, f"the config in {folder} differs from the config in {receipt.RUN}")
    state = from_trees(trees)
    yield _compare_digests("stored state", step, receipts, state_digest(state))
    return state


def _compare_contents(data: Data, samples: Mapping[str, str], fingerprint: Callable[[int], str]) -> Finding:
    """Reread every sample that the run has seen, and compare its fingerprint with the receipt."""
    if not samples:
        return Finding(None, "images and labels: the run has no fingerprints to compare with")
    seen = [(i, name) for i, name in enumerate(data.names) if name in samples]
    changed = [name for i, name in seen if _read_fingerprint(fingerprint, i) != samples[name]]
    if changed:
        return Finding(False, f"images and labels: {len(changed)} of {len(seen)} changed, for example {', '.join(changed[:3])}")
    return Finding(True, f"images and labels: all {len(seen)} samples of the run are unchanged")


def _read_fingerprint(fingerprint: Callable[[int], str], i: int) -> str | None:
    try:
        return fingerprint(i)
    except DataError:
        return None


def _compare_digests(what: str, step: int, receipts: Mapping[int, Mapping[str, str]], digest: str) -> Finding:
    if step not in receipts:
        return Finding(False, f"step {step}: the receipt has no row for the {what}")
    same = receipts[step][what.split()[-1]] == digest
    verb = ("agree" if same else "differ") + ("" if what == "samples" else "s")
    return Finding(same, f"step {step}: {what} {verb}")


def _compare_scalars(
    step: int, row: Mapping[str, float], logged: Mapping[str, float | None], is_exact: bool, is_first: bool
) -> Finding:
    """Compare the loss, accuracy and gradient norm with the log, where None stands for a non-finite value."""
    difference = max(_relative_difference(row[name], logged[name]) for name in SCALARS)
    text = (
        f"step {step}: loss {row['loss']:.6f}; the loss, accuracy and gradient norm differ from the log by up to "
        f"{difference:.1e} (relative)"
    )
    if is_exact:
        return Finding(difference == 0, text)
    # Rounding errors in one step are far below this limit. In later steps, the two runs can drift apart,
    # which proves nothing.
    return Finding(False if is_first and difference > MAX_FIRST_STEP_DIFFERENCE else None, text)


def _relative_difference(value: float, logged: float | None) -> float:
    if logged is None or not math.isfinite(value):
        return 0.0 if logged is None and not math.isfinite(value) else math.inf
    return abs(value - logged) / max(abs(logged), 1e-30)


def _compare_parameters(step: int, replayed: TrainState, stored: TrainState) -> Finding:
    pairs = zip(jax.tree.leaves(jax.device_get(replayed.params)), jax.tree.leaves(jax.device_get(stored.params)), strict=True)
    squared_difference, squared_norm = np.sum([(np.sum(np.square(a - b)), np.sum(np.square(b))) for a, b in pairs], axis=0)
    distance = float(np.sqrt(squared_difference / squared_norm))
    text = f"step {step}: the relative L2 distance between the replayed and the stored parameters is {distance:.1e}"
    return Finding(False if not distance < MAX_PARAMETER_DIFFERENCE else None, text)
