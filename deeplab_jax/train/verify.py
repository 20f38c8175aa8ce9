"""Replays steps of a run and compares them with the receipt that it left."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from deeplab_jax.config import Config, from_dict
from deeplab_jax.errors import CheckpointError, ConfigError
from deeplab_jax.models import DeepLabV3
from deeplab_jax.sharding import prefetch
from deeplab_jax.train import receipt
from deeplab_jax.train.checkpoint import FOLDER, Checkpoints, resolve, restore_variables, stored_config
from deeplab_jax.train.loop import Data, abstract_state, checked_mesh, new_state
from deeplab_jax.train.optimizer import make_optimizer
from deeplab_jax.train.receipt import Consumed, Start, read_receipts, read_samples, read_starts
from deeplab_jax.train.seal import broken_seal
from deeplab_jax.train.state import TrainState, state_digest
from deeplab_jax.train.step import compile_train_step
from deeplab_jax.train.writer import METRICS

SCALARS = ("loss", "accuracy", "grad_norm")


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
    """The config under which the run went on from `step`, and the start that it belongs to.

    Raises:
      CheckpointError: the run has no receipt, or it cannot be read.
    """
    starts = [start for start in read_starts(workdir) if start.step <= step]
    if not starts:
        raise CheckpointError(f"`run` (={workdir!r}) has no {receipt.RUN} of step {step}: it was made by another version")
    return from_dict(starts[-1].config), starts[-1]


def verify(
    workdir: str,
    start: int,
    steps: int,
    data: Data,
    fingerprint: Callable[[int], str],
    pretrained: Callable[[], dict[str, Any]] | None = None,
) -> Iterator[Finding]:
    """Replays `steps` steps from the checkpoint at `start` (0: from the beginning), and yields what it finds as it goes.

    Args:
      workdir: the run's folder.
      start: step of a checkpoint that is kept.
      steps: how many to replay.
      data: of the run's config, read anew.
      fingerprint: of the files of the training sample at a position in the list, hexadecimal.
      pretrained: what the run started from.

    Raises:
      ConfigError: there is no such interval in the run.
      CheckpointError: the checkpoint cannot be read at all.
    """
    config, begun = config_at(workdir, start)
    receipts, samples = read_receipts(workdir), read_samples(workdir)
    end = start + steps
    _require_interval(workdir, start, end, begun)
    mesh = checked_mesh(config)
    yield from _files(workdir, start)
    yield _list(data, begun)
    yield _contents(data, samples, fingerprint)

    model = DeepLabV3(config.model, config.labels.num_classes)
    optimizer = make_optimizer(config.optim, begun.steps)
    if start:
        with Checkpoints(workdir, config) as checkpoints:
            state = checkpoints.load(start, abstract_state(config, model, optimizer, mesh))
    else:
        state = new_state(config, model, optimizer, mesh, pretrained)
    yield from _compared("state", start, receipts, state_digest(state))

    now = receipt.start_of(start, config, data.digest, begun.steps, mesh)
    starts = [begun, *(other for other in read_starts(workdir) if start < other.step < end)]
    differing = next(filter(None, (_differing(then, now) for then in starts)), "")
    yield Finding(None, f"replaying on {differing}" if differing else "replaying on the run's devices and versions")
    exact = not differing
    consumed = Consumed(data.names, receipts.get(start, {}).get("samples", ""))
    logged = _logged(workdir)
    train_step = compile_train_step(mesh, config=config, model=model, optimizer=optimizer)
    batches = prefetch(data.train_batches(start, end), mesh, config.model.output_stride)
    for step, (batch, on_device) in enumerate(batches, start=start + 1):
        state, scalars = train_step(state, on_device)
        consumed.add(batch)
        if step in logged:
            yield _scalars(step, {name: float(scalars[name]) for name in SCALARS}, logged[step], exact)
        if step in receipts:
            consumed.settle()
            yield from _compared("samples", step, receipts, consumed.digest)
            if exact:
                yield from _compared("state", step, receipts, state_digest(state))
    if not exact:
        yield _distance(workdir, end, state)
    if not any(start < step <= end for step in (*receipts, *logged)):
        yield Finding(False, f"steps {start + 1} to {end} hold neither a checkpoint nor a log line: replay more")


def _require_interval(workdir: str, start: int, end: int, begun: Start) -> None:
    later = [other.step for other in read_starts(workdir) if start < other.step < end and other.config != begun.config]
    if later:
        raise ConfigError(f"`--steps` (={end - start}) passes step {later[0]}, where the config changed: verify up to there")
    if end > begun.steps:
        raise ConfigError(f"`--steps` (={end - start}) passes the run's end at step {begun.steps}: use {begun.steps - start}")


def _files(workdir: str, start: int) -> Iterator[Finding]:
    """The checkpoint's files as they were written, and its config as the run had it."""
    if not start:
        return
    folder = resolve(str(epath.Path(workdir) / FOLDER / str(start)))
    broken = broken_seal(folder)
    if broken is None:
        yield Finding(None, f"{folder} has no seal: the run ended before it was made")
    else:
        yield Finding(not broken, f"files of {folder}: {', '.join(broken[:3]) + ' changed' if broken else 'as written'}")
    # It was saved by the start before, if the run was started anew from it.
    written = config_at(workdir, start - 1)[0]
    if stored_config(str(folder)) != written:
        yield Finding(False, f"the config in {folder} is not that of {receipt.RUN}")


def _list(data: Data, begun: Start) -> Finding:
    same = data.digest == begun.data
    return Finding(same, f"training list: {'the same' if same else 'not the one of the run'}")


def _contents(data: Data, samples: Mapping[str, str], fingerprint: Callable[[int], str]) -> Finding:
    """Every sample that the run has seen, read again."""
    known = [(i, name) for i, name in enumerate(data.names) if name in samples]
    changed = [name for i, name in known if fingerprint(i) != samples[name]]
    if changed:
        return Finding(False, f"images and labels: {len(changed)} of {len(known)} changed, {', '.join(changed[:3])} among them")
    return Finding(True, f"images and labels: {len(known)} as the run saw them")


def _compared(what: str, step: int, receipts: Mapping[int, Mapping[str, str]], digest: str) -> Iterator[Finding]:
    if step not in receipts:
        yield Finding(False, f"step {step}: no receipt of the {what}")
        return
    same = receipts[step][what] == digest
    verb = ("agree" if same else "differ") + ("" if what == "samples" else "s")
    yield Finding(same, f"step {step}: {what} {verb}")


def _scalars(step: int, found: Mapping[str, float], logged: Mapping[str, float], exact: bool) -> Finding:
    apart = max(abs(found[name] - logged[name]) / max(abs(logged[name]), 1e-30) for name in SCALARS)
    if apart == 0 or not exact:
        return Finding(True if apart == 0 else None, f"step {step}: loss {found['loss']:.6f}, {apart:.1e} from the log")
    return Finding(False, f"step {step}: loss {found['loss']!r}, the log has {logged['loss']!r}")


def _differing(then: Start, now: Start) -> str:
    """What makes equal bits unlikely, in words."""
    pairs = [(f"{name}", then.devices.get(name), value) for name, value in now.devices.items()]
    pairs += [(name, then.versions.get(name), value) for name, value in now.versions.items()]
    return ", ".join(f"{name} {new!r} for {old!r}" for name, old, new in pairs if old != new)


def _distance(workdir: str, step: int, state: TrainState) -> Finding:
    """How far parameters are from the run's, where those are kept."""
    folder = epath.Path(workdir) / FOLDER / str(step)
    if not folder.exists():
        return Finding(None, f"step {step}: no checkpoint is kept to say how far apart the parameters are")
    theirs = restore_variables(str(folder))["params"]
    ours = state.params if state.ema_params is None else state.ema_params
    pairs = zip(jax.tree.leaves(jax.device_get(ours)), jax.tree.leaves(theirs), strict=True)
    difference, size = np.sum([(np.sum(np.square(a - b)), np.sum(np.square(b))) for a, b in pairs], axis=0)
    apart = float(np.sqrt(difference / size))
    return Finding(None, f"step {step}: parameters {apart:.1e} from the run's, |a - b| / |b| over all of them")


def _logged(workdir: str) -> dict[int, dict[str, float]]:
    path = epath.Path(workdir) / METRICS
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    return {row["step"]: row for row in rows if row["kind"] == "train" and all(name in row for name in SCALARS)}
