"""Where the scalars and pictures of a run go. A new writer is a class here and a line in `WRITERS`."""

import json
import os
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import UInt8
from tensorboardX import SummaryWriter

from deeplab_jax.files import replacing
from deeplab_jax.train.metrics_log import METRICS

Row = Mapping[str, float | None]
Strips = Sequence[UInt8[np.ndarray, "h w 3"]]


class RunWriter:
    """A place that a run writes to.

    Args:
      folder: the run's.
      start_step: where the run starts or resumes.
    """

    def __init__(self, folder: epath.Path, start_step: int) -> None:
        pass

    def scalars(self, step: int, kind: str, row: Row) -> None:
        """Write the scalars of a step; `kind` is "train" or "eval", and None is a number that is not finite."""

    def images(self, step: int, strips: Strips) -> None:
        """Write pictures of image | label | prediction."""

    def close(self) -> None:
        """Write what is left."""


class JsonLines(RunWriter):
    """`metrics.jsonl`, a row a line. Rows after `start_step` are dropped, since the run repeats those steps."""

    def __init__(self, folder: epath.Path, start_step: int) -> None:
        self._path = folder / METRICS
        if self._path.exists():
            lines = self._path.read_bytes().decode(errors="replace").splitlines()
            with replacing(self._path) as file:
                file.write("".join(line + "\n" for line in lines if _is_row_until(line, start_step)).encode())

    def scalars(self, step: int, kind: str, row: Row) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "kind": kind, **row}) + "\n")


class TensorBoard(RunWriter):
    """TensorBoard's events."""

    def __init__(self, folder: epath.Path, start_step: int) -> None:
        self._events = SummaryWriter(os.fspath(folder / "tensorboard"), purge_step=start_step + 1)

    def scalars(self, step: int, kind: str, row: Row) -> None:
        for name, value in row.items():
            if value is not None:
                self._events.add_scalar(f"{kind}/{name}", value, step)
        self._events.flush()

    def images(self, step: int, strips: Strips) -> None:
        for i, strip in enumerate(strips):
            self._events.add_image(f"eval/strip_{i}", strip, step, dataformats="HWC")

    def close(self) -> None:
        self._events.close()


WRITERS: tuple[type[RunWriter], ...] = (JsonLines, TensorBoard)


def _is_row_until(line: str, step: int) -> bool:
    """Return whether a line is a row up to `step`: a crash cuts lines short."""
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
