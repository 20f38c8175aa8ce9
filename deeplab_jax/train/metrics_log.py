"""`metrics.jsonl`, the scalars of a run, as everything else reads it. writers.py writes it."""

import json
from typing import Any

from etils import epath

from deeplab_jax.errors import CheckpointError

METRICS = "metrics.jsonl"


def read_log(workdir: str, kind: str) -> list[dict[str, Any]]:
    """Return the rows of a kind, "train" or "eval", in their order; none if there is no file.

    A last line that a crash truncated is left out.

    Raises:
      CheckpointError: the file is damaged.
    """
    path = epath.Path(workdir) / METRICS
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().decode(errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if row["kind"] == kind and isinstance(row["step"], int):
                rows.append(row)
        except (ValueError, KeyError, TypeError):
            raise CheckpointError(f"{path}, line {number} is no row of a run's log: take the line out") from None
    return rows
