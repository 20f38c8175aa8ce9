"""Write and read a run's receipt, the record that `verify` checks the run against.

The receipt consists of three files in the run folder:

- `run.json` records every start of the run, with its config, data, versions and devices.
- `receipts.jsonl` has one row per checkpoint, with a digest of the state and a digest of the names and contents of all samples
  consumed so far.
- `samples.tsv` lists every sample seen so far, with a fingerprint of its files.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from deeplab_jax import config as config_module
from deeplab_jax.checkpoints.folders import read_if_exists
from deeplab_jax.config import Config, from_dict
from deeplab_jax.errors import CheckpointError, ConfigError, one_line
from deeplab_jax.files import report_write_errors, write_atomically
from deeplab_jax.runtime import hosts
from deeplab_jax.runtime.machine import list_packages
from deeplab_jax.runtime.shared_errors import failing_together
from deeplab_jax.training.data import Data
from deeplab_jax.training.schedules import make_schedule
from deeplab_jax.training.state import TrainState, state_digest

RUN, RECEIPTS, SAMPLES = "run.json", "receipts.jsonl", "samples.tsv"
_DIGESTS = ("config_digest", "digest")
SKIPPED = "0" * 16  # the fingerprint of an unreadable sample
_HOW_TO_CONTINUE = "The file was changed or is damaged. Move it to a different folder to continue without the earlier receipt."
MAX_RISE = 0.01  # in the learning rate; a larger relative rise is reported


@dataclasses.dataclass(frozen=True, slots=True)
class Start:
    """One start of a run: the first one, or a later resumption.

    Attributes:
      step: The step that training continued from, or 0 for a new run.
      date: The start time in UTC, to the second.
      config: The full config, as returned by `config.to_dict`.
      data: The digest of the training list.
      steps: The planned total number of steps.
      devices: The devices, from `describe_devices`.
      versions: The software versions, from `list_versions`.
      images: The number of training images. This field and the next two are None in receipts from before version 0.2.
      eval_data: The digest of the evaluation list, or None for a run without evaluations.
      eval_images: The number of evaluation images.
    """

    step: int
    date: str
    config: dict[str, Any]
    data: str
    steps: int
    devices: dict[str, Any]
    versions: dict[str, str]
    images: int | None = None
    eval_data: str | None = None
    eval_images: int | None = None


def describe_start(step: int, config: Config, data: Data, steps: int, mesh: Mesh) -> Start:
    """Return a `Start` with the current time, the mesh's devices and the installed versions."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Start(
        step=step,
        date=date,
        config=config_module.to_dict(config),
        data=data.digest,
        steps=steps,
        devices=describe_devices(mesh),
        versions=list_versions(),
        images=len(data.names),
        eval_data=data.eval_digest,
        eval_images=data.eval_size,
    )


def describe_devices(mesh: Mesh) -> dict[str, Any]:
    """Return the device properties that can change the last bits of a result.

    Returns:
      The number of processes, the device kind and the mesh shape.
    """
    kind = mesh.devices.flat[0].device_kind
    if kind == "cpu":
        kind = f"cpu {platform.machine()}"
    return {"processes": jax.process_count(), "kind": kind, "mesh": dict(mesh.shape)}


def describe_platform(mesh: Mesh) -> str:
    """Return a log line with the devices and the most important versions."""
    devices, versions = describe_devices(mesh), list_versions()
    processes = f" in {devices['processes']} processes" if devices["processes"] > 1 else ""
    software = ", ".join(f"{name} {versions[name]}" for name in ("deeplab-jax", "jax", "flax", "python"))
    return f"Training on {mesh.size} x {devices['kind']}{processes}, with {software}."


def list_versions() -> dict[str, str]:
    """Return the XLA flags and the versions of Python and the numerical packages."""
    # JAX_NUM_CPU_DEVICES is omitted, because the mesh shape already gives the number of devices.
    return {"python": platform.python_version()} | list_packages() | {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}


def read_starts(workdir: str) -> list[Start]:
    """Return the starts that led to the run's current state, oldest first. The list is empty if there is no receipt.

    Raises:
      CheckpointError: `run.json` cannot be read, or one of its starts does not match its digest.
    """
    path = epath.Path(workdir) / RUN
    text = read_if_exists(path)
    if text is None:
        return []
    with _report_errors(path):
        rows = json.loads(text)["starts"]
        starts = [Start(**{name: value for name, value in row.items() if name not in _DIGESTS}) for row in rows]
        pairs = zip(starts, rows, strict=True)
        changed = [
            start.step for start, row in pairs if any(row[name] != text for name, text in _compute_digests(start).items())
        ]
    if changed:
        raise CheckpointError(
            f"The run start recorded at step {changed[0]} in {path} does not match its digest. {_HOW_TO_CONTINUE}"
        )
    return starts


def _compute_digests(start: Start) -> dict[str, str]:
    values = {name: value for name, value in dataclasses.asdict(start).items() if value is not None}
    return dict(zip(_DIGESTS, (config_module.digest_of(start.config), config_module.digest_of(values)), strict=True))


def find_changes(then: Start, now: Start) -> list[str]:
    """Return what differs between two starts and can change the results, except for the config, as one line each."""
    changes = []
    if then.data != now.data:
        changes.append(f"the training list{_describe_sizes(then.images, now.images)}")
    if now.eval_data and then.eval_data not in (None, now.eval_data):
        sizes = _describe_sizes(then.eval_images, now.eval_images)
        changes.append(f"the evaluation list{sizes}, so earlier scores are not comparable")
    if then.steps != now.steps and then.config["train"]["steps"] == now.config["train"]["steps"]:  # set by epochs
        changes.append(f"the length of the run: {now.steps} steps instead of {then.steps}, which changes the learning rate")
    return changes + _find_rising_rate(then, now) + find_platform_changes(then, now)


def _find_rising_rate(then: Start, now: Start) -> list[str]:
    """Return a line if the learning rate rises in the next step because the schedules of the two starts differ."""
    try:
        old, new = (make_schedule(from_dict(start.config).optim, start.steps) for start in (then, now))
    except ConfigError:  # the earlier start had the schedule of another recipe
        return []
    before, planned, rate = float(old(now.step - 1)), float(old(now.step)), float(new(now.step))
    if now.step >= now.steps or rate <= max(before, planned) * (1 + MAX_RISE):
        return []
    return [f"the schedule: the learning rate rises from {before:.2e} in step {now.step} to {rate:.2e} in step {now.step + 1}"]


def find_platform_changes(then: Start, now: Start) -> list[str]:
    """Return the devices and versions that differ between two starts. Each can change the last bits of a result."""
    pairs = [(name, then.devices.get(name), value) for name, value in now.devices.items()]
    pairs += [(name, then.versions.get(name), value) for name, value in now.versions.items()]
    return [f"{name} {new!r} instead of {old!r}" for name, old, new in pairs if old != new]


def _describe_sizes(then: int | None, now: int | None) -> str:
    size = f"{now} image{'s' if now != 1 else ''}"
    return f" ({size})" if then in (None, now) else f" ({size} instead of {then})"


def write_start(workdir: str, start: Start) -> None:
    """Add a start to `run.json`. Starts at the same or a later step are removed, because the run repeats those steps."""
    kept = [earlier for earlier in read_starts(workdir) if earlier.step < start.step]
    rows = [dataclasses.asdict(each) | _compute_digests(each) for each in [*kept, start]]
    with write_atomically(epath.Path(workdir) / RUN) as file:
        file.write((json.dumps({"starts": rows}, indent=1) + "\n").encode())


def read_receipts(workdir: str) -> dict[int, dict[str, str]]:
    """Return a dict mapping each checkpoint's step to {"samples": digest, "state": digest}.

    Checkpoints that have since been deleted are included. If a crash truncated the last line, that line is skipped.

    Raises:
      CheckpointError: `receipts.jsonl` cannot be read.
    """
    path = epath.Path(workdir) / RECEIPTS
    with _report_errors(path):
        lines = (read_if_exists(path) or b"").decode().splitlines()
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        return {row["step"]: {"samples": row["samples"], "state": row["state"]} for row in rows}


def read_samples(workdir: str) -> dict[str, str]:
    """Return a dict mapping the image name of every sample seen by the run to its hexadecimal fingerprint.

    Raises:
      CheckpointError: `samples.tsv` cannot be read.
    """
    path = epath.Path(workdir) / SAMPLES
    with _report_errors(path):
        # Names can contain other line breaks than "\n": those of Unicode, and "\r".
        lines = (read_if_exists(path) or b"").decode().split("\n")[:-1]
        return dict(line.rsplit("\t", 1) for line in lines)


@contextlib.contextmanager
def _report_errors(path: epath.Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"Cannot read {path} ({one_line(error)}). {_HOW_TO_CONTINUE}") from None


class ConsumedSamples:
    """Records the samples consumed by all of a run's processes, in order.

    Args:
      names: The image names, indexed by position in the training list.
      digest: The digest of all samples consumed so far, or "" for a new run.
    """

    def __init__(self, names: Sequence[str], digest: str = "") -> None:
        self.digest = digest
        self._names = names
        self._rows: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, batch: Mapping[str, np.ndarray]) -> None:
        """Add this process's slice of a training batch."""
        self._rows.append((batch["index"], batch["fingerprint"]))

    def flush(self) -> dict[str, str]:
        """Update `digest` with the samples added since the last call. All processes must call this method.

        Returns:
          A dict mapping these samples' names to fingerprints. Unreadable samples are omitted.
        """
        if not self._rows:
            return {}
        # [processes, steps, rows, ...] -> [steps, processes, rows, ...], which is the row order of the global batches.
        indices, fingerprints = (np.swapaxes(hosts.gather(np.stack(each)), 0, 1) for each in zip(*self._rows, strict=True))
        steps, self._rows = len(self._rows), []
        seen: dict[str, str] = {}
        for index, prints in zip(indices.reshape(steps, -1), fingerprints.reshape(steps, -1, 8), strict=True):
            lines = [(self._names[i], row.tobytes().hex()) for i, row in zip(index, prints, strict=True)]
            seen |= {name: text for name, text in lines if text != SKIPPED}
            self.digest = extend_digest(self.digest, lines)
        return seen

    def latest_names(self) -> list[str]:
        """Return the names of the samples in the most recent global batch. All processes must call this method."""
        return [self._names[i] for i in hosts.gather(self._rows[-1][0]).flat]


def extend_digest(digest: str, step: Iterable[tuple[str, str]]) -> str:
    """Return the SHA-256 of the previous digest followed by one step's `name<TAB>fingerprint` lines."""
    text = "".join(f"{name}\t{fingerprint}\n" for name, fingerprint in step)
    return hashlib.sha256(f"{digest}\n{text}".encode()).hexdigest()


class Receipts:
    """Writes the receipt for a run in progress.

    Every process creates one, but only the first process writes files. Pass each batch to `consumed.add`.

    Args:
      workdir: The run folder.
      start: The current start of the run. Rows for later steps are dropped, because the run repeats those steps.
      names: The image names, indexed by position in the training list.
      warn: Function that is called with a line about each thing that has changed since the last start, such as the devices, and
        with a warning if sample files have changed since the run first read them.
    """

    def __init__(self, workdir: str, start: Start, names: Sequence[str], warn: Callable[[str], None]) -> None:
        self._workdir = epath.Path(workdir)
        self._warn = warn
        with failing_together():
            # A run that starts at step 0 ignores an earlier run's receipt in the same folder.
            rows = {step: row for step, row in read_receipts(workdir).items() if step <= start.step > 0}
            self.consumed = ConsumedSamples(names, rows[start.step]["samples"] if start.step in rows else "")
            self._samples = read_samples(workdir) if start.step else {}
            previous = next(reversed(read_starts(workdir)), None) if start.step else None
        # Every process has read the files now, so the first one can rewrite them.
        self._is_writer = jax.process_index() == 0
        with failing_together():
            if self._is_writer:
                for change in find_changes(previous, start) if previous else ():
                    self._warn(f"changed since the last start: {change}")
                if start.step and start.step not in rows:
                    self._warn(
                        f"warning: {self._workdir / RECEIPTS} has no line for step {start.step}. The digests of samples begin "
                        "again here, so they will not be those of an uninterrupted run."
                    )
                write_start(workdir, start)
                with write_atomically(self._workdir / RECEIPTS) as file:
                    file.write("".join(_format_row(step, row) for step, row in rows.items()).encode())

    def write(self, step: int, state: TrainState) -> None:
        """Add the row for a checkpoint that is about to be saved. All processes must call this method.

        Raises:
          ConfigError: A file cannot be written.
        """
        seen = self.consumed.flush()
        changed = sorted(name for name, text in seen.items() if self._samples.get(name, text) != text)
        if changed:
            self._warn(
                f"warning: the files of {len(changed)} samples have changed since this run first read them, for example "
                f"{changed[0]}. The run can no longer be reproduced from its config and data."
            )
        with failing_together():
            if self._is_writer:
                self._write_files(step, state, seen)

    def _write_files(self, step: int, state: TrainState, seen: dict[str, str]) -> None:
        if seen.keys() - self._samples.keys():
            self._samples = seen | self._samples
            with write_atomically(self._workdir / SAMPLES) as file:
                file.write("".join(f"{name}\t{text}\n" for name, text in sorted(self._samples.items())).encode())
        row = {"samples": self.consumed.digest, "state": state_digest(state)}
        path = self._workdir / RECEIPTS
        with report_write_errors(path), path.open("a") as file:
            file.write(_format_row(step, row))


def _format_row(step: int, row: Mapping[str, str]) -> str:
    return json.dumps({"step": step, **row}) + "\n"
