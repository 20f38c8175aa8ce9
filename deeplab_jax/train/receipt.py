"""The receipt of a run, kept in its folder, with which `verify` checks that the run was what it claims to be.

`run.json` says what was started (config, data, versions, devices), once for every start. `receipts.jsonl` has a row for every
checkpoint: a digest of all samples consumed so far, names and contents, and one of the state. `samples.tsv` has a fingerprint
of the files of every sample seen so far.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
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
from deeplab_jax.config import Config
from deeplab_jax.errors import CheckpointError, one_line
from deeplab_jax.files import replacing
from deeplab_jax.runtime import hosts
from deeplab_jax.train.state import TrainState, state_digest

RUN, RECEIPTS, SAMPLES = "run.json", "receipts.jsonl", "samples.tsv"
SKIPPED = "0" * 16  # the fingerprint of a sample that could not be read
_AWAY = "it was changed or is damaged; move it away to continue without the earlier receipt"
PACKAGES = ("deeplab-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow", "tensorflow-cpu")


@dataclasses.dataclass(frozen=True, slots=True)
class Start:
    """One start of a run.

    Attributes:
      step: of the state that it started from.
      date: UTC, to the second.
      config: whole, as `config.to_dict` gives it.
      data: digest of the training list.
      steps: where the run was to end.
      devices: what it ran on.
      versions: of what it ran with.
    """

    step: int
    date: str
    config: dict[str, Any]
    data: str
    steps: int
    devices: dict[str, Any]
    versions: dict[str, str]


def describe_start(step: int, config: Config, data: str, steps: int, mesh: Mesh) -> Start:
    """Return a start made now, on these devices, with the installed packages."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Start(step, date, config_module.to_dict(config), data, steps, describe_devices(mesh), list_versions())


def describe_devices(mesh: Mesh) -> dict[str, Any]:
    """Return what numbers may depend on to the last bit: processes, devices and their kind, and how the mesh uses them."""
    kind = mesh.devices.flat[0].device_kind
    if kind == "cpu":
        kind = f"cpu {platform.machine()}"
    return {"processes": jax.process_count(), "kind": kind, "mesh": dict(mesh.shape)}


def list_versions() -> dict[str, str]:
    """Return the versions of Python and the packages that compute, and the flags given to XLA."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    # The mesh gives the number of fake devices.
    return versions | {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}


def read_starts(workdir: str) -> list[Start]:
    """Return the starts that led to the run's present state, oldest first; none for a run without a receipt.

    Raises:
      CheckpointError: `run.json` cannot be read, or its config is not the one whose digest stands beside it.
    """
    path = epath.Path(workdir) / RUN
    if not path.exists():
        return []
    with _report_errors(path):
        rows = json.loads(path.read_text())["starts"]
        starts = [Start(**{field.name: row[field.name] for field in dataclasses.fields(Start)}) for row in rows]
        pairs = zip(starts, rows, strict=True)
        forged = [start.step for start, row in pairs if any(row[name] != text for name, text in _digests(start).items())]
    if forged:
        raise CheckpointError(f"{path}: the start at step {forged[0]} is not the one its digest was made of: {_AWAY}")
    return starts


def _digests(start: Start) -> dict[str, str]:
    values = dataclasses.asdict(start)
    return {"config_digest": config_module.digest_of(start.config), "digest": config_module.digest_of(values)}


def write_start(workdir: str, start: Start) -> None:
    """Add a start, in place of those whose steps it repeats."""
    kept = [earlier for earlier in read_starts(workdir) if earlier.step < start.step]
    rows = [dataclasses.asdict(each) | _digests(each) for each in [*kept, start]]
    with replacing(epath.Path(workdir) / RUN) as file:
        file.write((json.dumps({"starts": rows}, indent=1) + "\n").encode())


def read_receipts(workdir: str) -> dict[int, dict[str, str]]:
    """Return {step: {"samples", "state"}} of the run's checkpoints, kept or not, without a line that a crash truncated."""
    path = epath.Path(workdir) / RECEIPTS
    with _report_errors(path):
        lines = path.read_text().splitlines() if path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        return {row["step"]: {"samples": row["samples"], "state": row["state"]} for row in rows}


def read_samples(workdir: str) -> dict[str, str]:
    """Return {name of an image: fingerprint of its files, hexadecimal} of the samples that the run has seen."""
    path = epath.Path(workdir) / SAMPLES
    with _report_errors(path):
        lines = path.read_text().splitlines() if path.exists() else []
        return dict(line.rsplit("\t", 1) for line in lines)


@contextlib.contextmanager
def _report_errors(path: epath.Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({one_line(error)}): {_AWAY}") from None


class Consumed:
    """The samples that a run consumes, in order, over all processes.

    Args:
      names: of the images, by position in the list.
      digest: of what was consumed before; "" at the beginning of a run.
    """

    def __init__(self, names: Sequence[str], digest: str = "") -> None:
        self.digest = digest
        self._names = names
        self._rows: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, batch: Mapping[str, np.ndarray]) -> None:
        """Note this process's rows of a step."""
        self._rows.append((batch["index"], batch["fingerprint"]))

    def settle(self) -> dict[str, str]:
        """Bring `digest` up to date, and return {name: fingerprint} of what was added since; all processes must call it."""
        if not self._rows:
            return {}
        # [processes, steps, rows, ...] -> the steps' global batches, in which processes lie one after the other.
        indices, fingerprints = (np.swapaxes(hosts.gather(np.stack(each)), 0, 1) for each in zip(*self._rows, strict=True))
        steps, self._rows = len(self._rows), []
        seen: dict[str, str] = {}
        for index, prints in zip(indices.reshape(steps, -1), fingerprints.reshape(steps, -1, 8), strict=True):
            lines = [(self._names[i], row.tobytes().hex()) for i, row in zip(index, prints, strict=True)]
            seen |= {name: text for name, text in lines if text != SKIPPED}
            self.digest = extend_digest(self.digest, lines)
        return seen

    def latest_names(self) -> list[str]:
        """Return the samples of the global batch added last; all processes must call it."""
        return [self._names[i] for i in hosts.gather(self._rows[-1][0]).flat]


def extend_digest(digest: str, step: Iterable[tuple[str, str]]) -> str:
    """Return the SHA-256 of the digest so far and a step's lines `name<TAB>fingerprint`."""
    text = "".join(f"{name}\t{fingerprint}\n" for name, fingerprint in step)
    return hashlib.sha256(f"{digest}\n{text}".encode()).hexdigest()


class Receipts:
    """Writes the receipt of a run that is under way; every process makes one, the first one writes.

    Batches are added to its `consumed`.

    Args:
      workdir: the run's folder.
      start: of the run; rows of steps after it are dropped, since they come again.
      names: of the training images, by position in the list.
      warn: is given a line about samples whose files changed since the run saw them first.
    """

    def __init__(self, workdir: str, start: Start, names: Sequence[str], warn: Callable[[str], None]) -> None:
        self._workdir = epath.Path(workdir)
        self._warn = warn
        # A run that begins anew begins its receipt anew, whatever an earlier one left in the folder.
        rows = {step: row for step, row in read_receipts(workdir).items() if step <= start.step > 0}
        self.consumed = Consumed(names, rows[start.step]["samples"] if start.step in rows else "")
        self._samples = read_samples(workdir) if start.step else {}
        self._writes = jax.process_index() == 0
        hosts.barrier("receipts read")  # before the first process changes them
        if self._writes:
            write_start(workdir, start)
            with replacing(self._workdir / RECEIPTS) as file:
                file.write("".join(_line(step, row) for step, row in rows.items()).encode())

    def write(self, step: int, state: TrainState) -> None:
        """Add the row of a checkpoint that is about to be written. All processes must call it."""
        seen = self.consumed.settle()
        changed = sorted(name for name, text in seen.items() if self._samples.get(name, text) != text)
        if changed:
            self._warn(
                f"warning: {len(changed)} samples changed since this run saw them first, {changed[0]} among them: it is no "
                f"longer a function of its config and data"
            )
        if not self._writes:
            return
        if seen.keys() - self._samples.keys():
            self._samples = seen | self._samples
            with replacing(self._workdir / SAMPLES) as file:
                file.write("".join(f"{name}\t{text}\n" for name, text in sorted(self._samples.items())).encode())
        row = {"samples": self.consumed.digest, "state": state_digest(state)}
        with (self._workdir / RECEIPTS).open("a") as file:
            file.write(_line(step, row))


def _line(step: int, row: Mapping[str, str]) -> str:
    return json.dumps({"step": step, **row}) + "\n"
