"""The base class of writers."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from etils import epath
from jaxtyping import UInt8

Row = Mapping[str, float | None]
Strips = Sequence[UInt8[np.ndarray, "h w 3"]]
# "stopped" is a run that a signal ended or that was killed. It can be resumed.
Outcome = Literal["finished", "stopped", "failed"]


@dataclasses.dataclass(frozen=True, slots=True)
class RunStart:
    """A start of a run.

    Attributes:
      workdir: The run folder.
      step: The step at which the run starts or resumes.
      is_scored: Whether the evaluation of `step`, if there was one, was complete. Otherwise, the run repeats it.
      config: The config's values, keyed by dotted field name.
    """

    workdir: str
    step: int
    is_scored: bool
    config: dict[str, Any]

    @property
    def folder(self) -> epath.Path:
        """Return the run folder."""
        return epath.Path(self.workdir)


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
      step: The step number.
      folder: The step folder.
      miou: The mean IoU from 0 to 1, or None if no pixel was counted.
      is_best: Whether the checkpoint is the best one so far.
    """

    step: int
    folder: str
    miou: float | None
    is_best: bool


class RunWriter:
    """Base class for writers. Its methods do nothing.

    An error in a method does not stop the run, and the methods are called again for later rows.

    Attributes:
      target: The file, folder or service that this writer writes to, for messages.
      takes_checkpoints: Whether `write_checkpoint` does something.

    Args:
      run: The start of the run.
    """

    target: str
    takes_checkpoints = False

    def __init__(self, run: RunStart) -> None:
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

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Store a copy of a checkpoint. Its files may be deleted after the call."""

    def has_checkpoint(self, step: int) -> bool:
        """Return whether an earlier start of the run has stored a copy of this checkpoint or a later one."""
        return False

    def close(self, outcome: Outcome) -> None:
        """Flush buffered data, record how the run ended and close the writer."""
