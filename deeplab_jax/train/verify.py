"""Replay steps of a run and compare them with the receipt that it left."""

import dataclasses
import functools
import math
from collections.abc import Callable, Generator, Iterator, Mapping

import jax
import numpy as np
from etils import epath

from deeplab_jax.checkpoints.folders import CHECKPOINTS, CHECKSUMS, find_changed_files, resolve
from deeplab_jax.checkpoints.store import Checkpoints, Trees
from deeplab_jax.config import Config, from_dict
from deeplab_jax.errors import CheckpointError, ConfigError, DataError
from deeplab_jax.runtime.mesh import prefetch
from deeplab_jax.train import receipt
from deeplab_jax.train.begin import Data, Pretrained, abstract_state, new_state, set_up
from deeplab_jax.train.metrics_log import read_log
from deeplab_jax.train.receipt import Consumed, Start, read_receipts, read_samples, read_starts
from deeplab_jax.train.state import TrainState, from_trees, state_digest, to_trees
from deeplab_jax.train.step import compile_train_step

SCALARS = ("loss", "accuracy", "grad_norm")
# What rounding on other devices does not explain.
FIRST_STEP_APART, PARAMETERS_APART = 0.02, 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One comparison.

    Attributes:
      agrees: None where there is nothing to object to, and nothing that proves anything.
      text: what was compared, and how it came out.
    """

    agrees: bool | None
    text: str


def config_at(workdir: str, step: int) -> tuple[Config, Start]:
    """Return the config under which the run continued from `step`, and the start that it belongs to.

    Raises:
      CheckpointError: the run has no receipt, or it cannot be read.
    """
    starts = read_starts(workdir)
    earlier = [start for start in starts if start.step <= step]
    if not starts:
        raise CheckpointError(f"`run` (={workdir!r}) holds no {receipt.RUN}: give the folder of a run of train.py")
    if not earlier:
        raise ConfigError(f"`--from` (={step}) lies before what the receipt knows: use a checkpoint from step {starts[0].step}")
    return from_dict(earlier[-1].config), earlier[-1]


def verify(
    workdir: str,
    start: int,
    steps: int,
    data: Data,
    fingerprint: Callable[[int], str],
    pretrained: Pretrained = None,
) -> Iterator[Finding]:
    """Replay `steps` steps from the checkpoint at `start` (0: from the beginning), and yield findings on the way.

    Args:
      workdir: the run's folder.
      start: step of a checkpoint that is kept.
      steps: how many to replay.
      data: of the run's config, read anew.
      fingerprint: of the files of the training sample at a position in the list, hexadecimal.
      pretrained: what the run started from.

    Raises:
      ConfigError: there is no such interval in the run, or its mesh needs more devices than there are.
      CheckpointError: the checkpoint cannot be read at all.
    """
    config, begun = config_at(workdir, start)
    receipts, samples = read_receipts(workdir), read_samples(workdir)
    end = start + steps
    _require_interval(workdir, start, end, begun)
    setup = set_up(config, begun.steps)
    same_list = data.digest == begun.data
    yield Finding(same_list, f"training list: {'the same' if same_list else 'not the one of the run'}")
    yield _compare_contents(data, samples, fingerprint)
    now = receipt.describe_start(start, config, data.digest, begun.steps, setup.mesh)
    starts = [begun, *(other for other in read_starts(workdir) if start < other.step < end)]
    differing = next(filter(None, (_describe_differences(then, now) for then in starts)), "")
    exact = not differing
    with Checkpoints(workdir, config) as checkpoints:
        kept = set(checkpoints.steps())
        check_checkpoint = functools.partial(
            _check_checkpoint, workdir, receipts=receipts, checkpoints=checkpoints, abstract=to_trees(abstract_state(setup))
        )
        if start:
            state = yield from check_checkpoint(start)
        else:
            state = new_state(setup, pretrained)
            if exact:
                yield _compare_digests("state", start, receipts, state_digest(state))
        yield Finding(None, f"replaying on {differing}" if differing else "replaying on the run's devices and versions")
        consumed = Consumed(data.names, receipts.get(start, {}).get("samples", ""))
        log = {row["step"]: row for row in read_log(workdir, "train") if all(name in row for name in SCALARS)}
        train_step = compile_train_step(setup.mesh, config=config, model=setup.model, optimizer=setup.optimizer)
        batches = prefetch(data.train_batches(start, end), setup.mesh, config.model.output_stride)
        for step, (batch, on_device) in enumerate(batches, start=start + 1):
            state, scalars = train_step(state, on_device)
            row = {name: float(scalars[name]) for name in SCALARS}
            consumed.add(batch)
            if step in log:
                yield _compare_scalars(step, row, log[step], exact, is_first=step == start + 1)
            if step in receipts:
                consumed.settle()
                yield _compare_digests("samples", step, receipts, consumed.digest)
                if exact:
                    yield _compare_digests("state", step, receipts, state_digest(state))
            if step in kept:
                theirs = yield from check_checkpoint(step)
                if not exact:
                    yield _compare_parameters(step, state, theirs)
    if not any(start < step <= end for step in (*receipts, *log)):
        yield Finding(False, f"steps {start + 1} to {end} hold neither a checkpoint nor a log line: replay more")


def _require_interval(workdir: str, start: int, end: int, begun: Start) -> None:
    same = (begun.config, begun.data, begun.steps)
    later = [other for other in read_starts(workdir) if start < other.step < end]
    changed = [other.step for other in later if (other.config, other.data, other.steps) != same]
    if changed:
        raise ConfigError(f"`--steps` (={end - start}) passes step {changed[0]}, where the run changed: verify up to there")
    if not start < end <= begun.steps:
        most = f"use 1 to {begun.steps - start}" if start < begun.steps else f"use --from below {begun.steps}"
        raise ConfigError(f"`--steps` (={end - start}) does not fit after step {start} of a run of {begun.steps}: {most}")


def _check_checkpoint(
    workdir: str, step: int, *, receipts: Mapping[int, Mapping[str, str]], checkpoints: Checkpoints, abstract: Trees
) -> Generator[Finding, None, TrainState]:
    """Compare a checkpoint's files with their checksums, its config and state with the run's; return the state."""
    folder = resolve(str(epath.Path(workdir) / CHECKPOINTS / str(step)))
    changed = find_changed_files(folder)
    if changed is None:
        yield Finding(None, f"{folder} has no {CHECKSUMS}: the run ended before it was written")
    else:
        yield Finding(not changed, f"files of {folder}: {', '.join(changed[:3]) + ' changed' if changed else 'as written'}")
    stored, trees = checkpoints.load(step, abstract)
    # It was saved by the start before, if the run was started anew from it.
    before = [start for start in read_starts(workdir) if start.step < step]
    if before and stored != from_dict(before[-1].config):
        yield Finding(False, f"the config in {folder} is not that of {receipt.RUN}")
    state = from_trees(trees)
    yield _compare_digests("stored state", step, receipts, state_digest(state))
    return state


def _compare_contents(data: Data, samples: Mapping[str, str], fingerprint: Callable[[int], str]) -> Finding:
    """Read every sample that the run has seen again, and compare it."""
    if not samples:
        return Finding(None, "images and labels: the run keeps no fingerprints to compare them with")
    known = [(i, name) for i, name in enumerate(data.names) if name in samples]
    changed = [name for i, name in known if _read_fingerprint(fingerprint, i) != samples[name]]
    if changed:
        return Finding(False, f"images and labels: {len(changed)} of {len(known)} changed, {', '.join(changed[:3])} among them")
    return Finding(True, f"images and labels: {len(known)} as the run saw them")


def _read_fingerprint(fingerprint: Callable[[int], str], i: int) -> str | None:
    try:
        return fingerprint(i)
    except DataError:
        return None


def _compare_digests(what: str, step: int, receipts: Mapping[int, Mapping[str, str]], digest: str) -> Finding:
    if step not in receipts:
        return Finding(False, f"step {step}: no receipt of the {what}")
    same = receipts[step][what.split()[-1]] == digest
    verb = ("agree" if same else "differ") + ("" if what == "samples" else "s")
    return Finding(same, f"step {step}: {what} {verb}")


def _compare_scalars(
    step: int, row: Mapping[str, float], logged: Mapping[str, float | None], exact: bool, is_first: bool
) -> Finding:
    """Compare loss, accuracy and gradient norm with the log, in which what is not finite is null."""
    difference = max(_relative_difference(row[name], logged[name]) for name in SCALARS)
    text = f"step {step}: loss {row['loss']:.6f}, {difference:.1e} from the log"
    if exact:
        return Finding(difference == 0, text)
    # One step's rounding is far smaller; later ones drift apart.
    return Finding(False if is_first and difference > FIRST_STEP_APART else None, text)


def _relative_difference(value: float, logged: float | None) -> float:
    if logged is None or not math.isfinite(value):
        return 0.0 if logged is None and not math.isfinite(value) else math.inf
    return abs(value - logged) / max(abs(logged), 1e-30)


def _describe_differences(then: Start, now: Start) -> str:
    """Return what makes equal bits unlikely, in words."""
    pairs = [(f"{name}", then.devices.get(name), value) for name, value in now.devices.items()]
    pairs += [(name, then.versions.get(name), value) for name, value in now.versions.items()]
    return ", ".join(f"{name} {new!r} for {old!r}" for name, old, new in pairs if old != new)


def _compare_parameters(step: int, ours: TrainState, theirs: TrainState) -> Finding:
    pairs = zip(jax.tree.leaves(jax.device_get(ours.params)), jax.tree.leaves(jax.device_get(theirs.params)), strict=True)
    difference, size = np.sum([(np.sum(np.square(a - b)), np.sum(np.square(b))) for a, b in pairs], axis=0)
    apart = float(np.sqrt(difference / size))
    text = f"step {step}: parameters {apart:.1e} from the run's, |a - b| / |b| over all of them"
    return Finding(False if not apart < PARAMETERS_APART else None, text)
