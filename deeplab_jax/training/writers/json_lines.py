"""Write `metrics.jsonl`, the log that reports and comparisons read."""

import contextlib
import datetime
import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from deeplab_jax.buckets import is_url
from deeplab_jax.files import write_atomically
from deeplab_jax.training.metrics_log import METRICS, parse_row
from deeplab_jax.training.writers.writer import Outcome, Row, RunStart, RunWriter


class JsonLines(RunWriter):
    """Writes one JSON row per line to `metrics.jsonl`. Rows that cannot be written are kept for the next attempt.

    Existing rows after `start_step` are dropped, because the run repeats those steps.
    """

    def __init__(self, run: RunStart) -> None:
        self._path = run.folder / METRICS
        self.target = str(self._path)
        self._unwritten = ""
        if self._path.exists():
            kept = [line + "\n" for line in _read_lines(self._path) if (row := parse_row(line)) and not is_repeated(row, run)]
            with write_atomically(self._path) as file:
                file.write("".join(kept).encode())

    def write_scalars(self, step: int, kind: str, row: Row) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._unwritten += json.dumps({"step": step, "kind": kind, "time": now, **row}) + "\n"
        self._append()

    def close(self, outcome: Outcome) -> None:
        if self._unwritten:
            self._append()

    def _append(self) -> None:
        # Without `os.stat`, epath would look up the owner's name, which user ids in containers often lack.
        size = os.stat(self._path).st_size if not is_url(self._path) and self._path.exists() else 0
        try:
            with self._path.open("a") as file:
                file.write(self._unwritten)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self._path, size)  # a full disk can take a part of a line
            raise
        self._unwritten = ""


def read_rows(run: RunStart) -> list[dict[str, Any]]:
    """Return the rows of earlier starts. Call this before `JsonLines` drops those that the run repeats."""
    path = run.folder / METRICS
    return [row for line in _read_lines(path) if (row := parse_row(line))] if path.exists() else []


def is_repeated(row: Mapping[str, Any], run: RunStart) -> bool:
    """Return whether a run writes the row of this step and kind again."""
    return bool(row["step"] > run.step or (row["step"] == run.step and row["kind"] != "train" and not run.is_scored))


def _read_lines(path: epath.Path) -> list[str]:
    return path.read_bytes().decode(errors="replace").splitlines()
