"""Read `metrics.jsonl`, the scalar log written by `writers.JsonLines`."""

import json
from typing import Any

from etils import epath

from deeplab_jax.checkpoints.folders import read_if_exists
from deeplab_jax.errors import CheckpointError

METRICS = "metrics.jsonl"


def read_log(workdir: str, kind: str) -> list[dict[str, Any]]:
    """Return all "train" or all "eval" rows in file order, or an empty list if there is no log file.

    If a crash truncated the last line, that line is skipped.

    Raises:
      CheckpointError: The file is damaged or cannot be read.
    """
    path = epath.Path(workdir) / METRICS
    *lines, _ = (read_if_exists(path) or b"").decode(errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        row = parse_row(line)
        if row is None:
            raise CheckpointError(f"{path}, line {number} is not a valid log row. Delete this line.")
        rows += [row] if row["kind"] == kind else []
    return rows


def parse_row(line: str) -> dict[str, Any] | None:
    """Return the row in a line of the log, or None for a damaged line, such as the last one after a crash."""
    try:
        row: dict[str, Any] = json.loads(line)
        return row if isinstance(row["step"], int) and isinstance(row["kind"], str) else None
    except (ValueError, KeyError, TypeError):
        return None
