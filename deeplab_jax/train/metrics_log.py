"""Read `metrics.jsonl`, the file with the scalars of a run. `writers.py` writes it."""

import json
from typing import Any

from etils import epath

from deeplab_jax.errors import CheckpointError

METRICS = "metrics.jsonl"


def read_log(workdir: str, kind: str) -> list[dict[str, Any]]:
    """Return the rows of a kind, "train" or "eval", in file order. Without a log file, the list is empty.

    A last line that was truncated by a crash is left out.

    Raises:
      CheckpointError: The file is damaged.
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
            raise CheckpointError(f"{path}, line {number} is not a valid log row. Delete this line.") from None
    return rows
