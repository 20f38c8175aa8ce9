"""Writers for a run's scalars and images. To add one, define a class here and add it to `WRITERS`."""

import json
import os
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import UInt8
from tensorboardX import SummaryWriter

from deeplab_jax.files import write_atomically
from deeplab_jax.training.metrics_log import METRICS

Row = Mapping[str, float | None]
Strips = Sequence[UInt8[np.ndarray, "h w 3"]]


class RunWriter:
    """Base class for writers. Its methods do nothing.

    Args:
      folder: The run folder.
      start_step: The step at which the run starts or resumes.
    """

    def __init__(self, folder: epath.Path, start_step: int) -> None:
        pass

    def write_scalars(self, step: int, kind: str, row: Row) -> None:
        """Write one step's scalars.

        Args:
          step: The step number.
          kind: "train" or "eval".
          row: Scalars by name, with None for non-finite values.
        """

    def write_images(self, step: int, strips: Strips) -> None:
        """Write an evaluation's comparison images (image | label | prediction)."""

    def close(self) -> None:
        """Flush buffered data and close the writer."""


class JsonLines(RunWriter):
    """Writes one JSON row per line to `metrics.jsonl`.

    Existing rows after `start_step` are dropped, because the run repeats those steps.
    """

    def __init__(self, folder: epath.Path, start_step: int) -> None:
        self._path = folder / METRICS
        if self._path.exists():
            lines = self._path.read_bytes().decode(errors="replace").splitlines()
            with write_atomically(self._path) as file:
                file.write("".join(line + "\n" for line in lines if _is_row_until(line, start_step)).encode())

    def write_scalars(self, step: int, kind: str, row: Row) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "kind": kind, **row}) + "\n")


class TensorBoard(RunWriter):
    """Writes TensorBoard event files."""

    def __init__(self, folder: epath.Path, start_step: int) -> None:
        self._events = SummaryWriter(os.fspath(folder / "tensorboard"), purge_step=start_step + 1)

    def write_scalars(self, step: int, kind: str, row: Row) -> None:
        for name, value in row.items():
            if value is not None:
                self._events.add_scalar(f"{kind}/{name}", value, step)
        self._events.flush()

    def write_images(self, step: int, strips: Strips) -> None:
        for i, strip in enumerate(strips):
            self._events.add_image(f"eval/strip_{i}", strip, step, dataformats="HWC")

    def close(self) -> None:
        self._events.close()


WRITERS: tuple[type[RunWriter], ...] = (JsonLines, TensorBoard)


def _is_row_until(line: str, step: int) -> bool:
    """Return whether a line is a complete row for `step` or an earlier step. A crash can leave a truncated line."""
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
