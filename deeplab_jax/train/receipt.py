"""Write and read the receipt of a run, with which `verify` checks what the run did.

The receipt consists of three files in the folder of the run:

- `run.json` describes every start of the run: its config, data, versions and devices.
- `receipts.jsonl` has a row per checkpoint, with one digest of the names and contents of all samples consumed so far and one
  digest of the state.
- `samples.tsv` has a fingerprint of the files of every sample seen so far.
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
from deeplab_jax.files import write_atomically
from deeplab_jax.runtime import hosts
from deeplab_jax.train.state import TrainState, state_digest

RUN, RECEIPTS, SAMPLES = "run.json", "receipts.jsonl", "samples.tsv"
SKIPPED = "0" * 16  # the fingerprint of a sample that could not be read
_HOW_TO_CONTINUE = "The file was changed or is damaged. Move it to a different folder to continue without the earlier receipt."
PACKAGES = ("deeplab-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow", "tensorflow-cpu")


@dataclasses.dataclass(frozen=True, slots=True)
class Start:
    """One start of a run, either its beginning or a later resumption.

    Attributes:
      step: The step of the state that the run started from.
      date: The time in UTC, to the second.
      config: The full config, as returned by `config.to_dict`.
      data: The digest of the training list.
      steps: The step at which the run was to end.
      devices: The devices of the run; see `describe_devices`.
      versions: The versions of the software; see `list_versions`.
    """

    step: int
    date: str
    config: dict[str, Any]
    data: str
    steps: int
    devices: dict[str, Any]
    versions: dict[str, str]


def describe_start(step: int, config: Config, data: str, steps: int, mesh: Mesh) -> Start:
    """Return a start with the current time, the devices of the mesh and the installed versions."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Start(step, date, config_module.to_dict(config), data, steps, describe_devices(mesh), list_versions())


def describe_devices(mesh: Mesh) -> dict[str, Any]:
    """Return the properties of the devices that can change the last bits of a result.

    Returns:
      The number of processes, the kind of device, and the shape of the mesh.
    """
    kind = mesh.devices.flat[0].device_kind
    if kind == "cpu":
        kind = f"cpu {platform.machine()}"
    return {"processes": jax.process_count(), "kind": kind, "mesh": dict(mesh.shape)}


def list_versions() -> dict[str, str]:
    """Return the versions of Python and of the numerical packages, and the XLA flags."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    # JAX_NUM_CPU_DEVICES is not listed, because the mesh shape contains the number of devices.
    return versions | {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}


def read_starts(workdir: str) -> list[Start]:
    """Return the starts that led to the current state of the run, oldest first. Without a receipt, the list is empty.

    Raises:
      CheckpointError: `run.json` cannot be read, or a start in it does not match its digest.
    """
    path = epath.Path(workdir) / RUN
    if not path.exists():
        return []
    with _report_errors(path):
        rows = json.loads(path.read_text())["starts"]
        starts = [Start(**{field.name: row[field.name] for field in dataclasses.fields(Start)}) for row in rows]
        pairs = zip(starts, rows, strict=True)
        changed = [
            start.step for start, row in pairs if any(row[name] != text for name, text in _compute_digests(start).items())
        ]
    if changed:
        raise CheckpointError(f"The start at step {changed[0]} in {path} does not match its digest. {_HOW_TO_CONTINUE}")
    return starts


def _compute_digests(start: Start) -> dict[str, str]:
    values = dataclasses.asdict(start)
    return {"config_digest": config_module.digest_of(start.config), "digest": config_module.digest_of(values)}


def write_start(workdir: str, start: Start) -> None:
    """Add a start. Earlier starts at this step or a later one are removed, because the run repeats their steps."""
    kept = [earlier for earlier in read_starts(workdir) if earlier.step < start.step]
    rows = [dataclasses.asdict(each) | _compute_digests(each) for each in [*kept, start]]
    with write_atomically(epath.Path(workdir) / RUN) as file:
        file.write((json.dumps({"starts": rows}, indent=1) + "\n").encode())


def read_receipts(workdir: str) -> dict[int, dict[str, str]]:
    """Return {step: {"samples": digest, "state": digest}} of all checkpoints of the run, including deleted ones.

    A last line that was truncated by a crash is left out.

    Raises:
      CheckpointError: The file cannot be read.
    """
    path = epath.Path(workdir) / RECEIPTS
    with _report_errors(path):
        lines = path.read_text().splitlines() if path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        return {row["step"]: {"samples": row["samples"], "state": row["state"]} for row in rows}


def read_samples(workdir: str) -> dict[str, str]:
    """Return {image name: fingerprint} of the samples that the run has seen. Fingerprints are hexadecimal.

    Raises:
      CheckpointError: The file cannot be read.
    """
    path = epath.Path(workdir) / SAMPLES
    with _report_errors(path):
        lines = path.read_text().splitlines() if path.exists() else []
        return dict(line.rsplit("\t", 1) for line in lines)


@contextlib.contextmanager
def _report_errors(path: epath.Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"Cannot read {path} ({one_line(error)}). {_HOW_TO_CONTINUE}") from None


class ConsumedSamples:
    """The samples that a run consumes, in order and over all processes.

    Args:
      names: The names of the images, by position in the list.
      digest: The digest of the samples consumed earlier, or "" at the beginning of a run.
    """

    def __init__(self, names: Sequence[str], digest: str = "") -> None:
        self.digest = digest
        self._names = names
        self._rows: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, batch: Mapping[str, np.ndarray]) -> None:
        """Add this process's rows of the batch of a step."""
        self._rows.append((batch["index"], batch["fingerprint"]))

    def flush(self) -> dict[str, str]:
        """Update `digest` with the samples added since the last call. All processes must call this method.

        Returns:
          {name: fingerprint} of these samples, without those that could not be read.
        """
        if not self._rows:
            return {}
        # [processes, steps, rows, ...] -> [steps, processes, rows, ...], in the order of the rows in the global batches.
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
    """Return the SHA-256 of the previous digest and of a step's lines `name<TAB>fingerprint`."""
    text = "".join(f"{name}\t{fingerprint}\n" for name, fingerprint in step)
    return hashlib.sha256(f"{digest}\n{text}".encode()).hexdigest()


class Receipts:
    """Writes the receipt of a run in progress.

    Every process makes one, but only the first process writes. Add each batch to its attribute `consumed`.

    Args:
      workdir: The folder of the run.
      start: The start of the run. Rows of later steps are dropped, because the run repeats those steps.
      names: The names of the training images, by position in the list.
      warn: Function that receives a line about samples whose files have changed since the run first read them.
    """

    def __init__(self, workdir: str, start: Start, names: Sequence[str], warn: Callable[[str], None]) -> None:
        self._workdir = epath.Path(workdir)
        self._warn = warn
        # A run that starts at step 0 ignores the receipt of an earlier run in the same folder.
        rows = {step: row for step, row in read_receipts(workdir).items() if step <= start.step > 0}
        self.consumed = ConsumedSamples(names, rows[start.step]["samples"] if start.step in rows else "")
        self._samples = read_samples(workdir) if start.step else {}
        self._is_writer = jax.process_index() == 0
        hosts.barrier("receipts read")  # before the first process rewrites them
        if self._is_writer:
            write_start(workdir, start)
            with write_atomically(self._workdir / RECEIPTS) as file:
                file.write("".join(_format_row(step, row) for step, row in rows.items()).encode())

    def write(self, step: int, state: TrainState) -> None:
        """Add the row of a checkpoint that is about to be saved. All processes must call this method."""
        seen = self.consumed.flush()
        changed = sorted(name for name, text in seen.items() if self._samples.get(name, text) != text)
        if changed:
            self._warn(
                f"warning: the files of {len(changed)} samples have changed since this run first read them, for example "
                f"{changed[0]}. The run can no longer be reproduced from its config and data."
            )
        if not self._is_writer:
            return
        if seen.keys() - self._samples.keys():
            self._samples = seen | self._samples
            with write_atomically(self._workdir / SAMPLES) as file:
                file.write("".join(f"{name}\t{text}\n" for name, text in sorted(self._samples.items())).encode())
        row = {"samples": self.consumed.digest, "state": state_digest(state)}
        with (self._workdir / RECEIPTS).open("a") as file:
            file.write(_format_row(step, row))


def _format_row(step: int, row: Mapping[str, str]) -> str:
    return json.dumps({"step": step, **row}) + "\n"
