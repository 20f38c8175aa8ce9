"""Read `metrics.jsonl`, the scalar log written by `writers.JsonLines`."""

import json
from typing import Any

from etils import epath

from deeplab_jax.errors import CheckpointError

METRICS = "metrics.jsonl"


def read_log(workdir: str, kind: str) -> list[dict[str, Any]]:
    """Return all "train" or all "eval" rows in file order, or an empty list if there is no log file.

    If a crash truncated the last line, that line is skipped.

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
