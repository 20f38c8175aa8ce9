"""Report a run's progress in its log, on the terminal's progress bar and in the files written by `writers.WRITERS`."""

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from deeplab_jax.errors import one_line
from deeplab_jax.evaluation.metrics import OVERALL_METRICS
from deeplab_jax.files import report_write_errors
from deeplab_jax.runtime.shared_errors import failing_together
from deeplab_jax.training.log import Log, format_duration
from deeplab_jax.training.writers import WRITERS, RunWriter

PRINTED_SCORES = ("miou", "pixel_accuracy", "boundary_miou", "ece", "loss")  # the scores that fit on the line of an evaluation


class Output:
    """A context manager for a run's terminal and file output.

    Every process creates one, but only the first process writes files.

    Args:
      workdir: The run folder.
      start_step: The step at which the run starts or resumes.
      steps: The step at which the run ends.
      is_scored: Whether the evaluation of `start_step`, if there was one, was complete.
      log: The run's log. Its console shows the progress bar if it is a terminal.
    """

    def __init__(self, workdir: str, start_step: int, steps: int, is_scored: bool, log: Log) -> None:
        folder, is_first = epath.Path(workdir), jax.process_index() == 0
        self.log = log
        self._writers: list[RunWriter] = []
        with failing_together(), report_write_errors(folder):
            if is_first:
                folder.mkdir(parents=True, exist_ok=True)
                self._writers = [make(folder, start_step, is_scored) for make in WRITERS]
        self._failed: set[RunWriter] = set()
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=log.console, disable=not log.console.is_terminal)
        self._task = self._progress.add_task("compiling", total=steps, completed=start_step)
        self._extra: dict[str, float] = {}  # extra scalars for the next training row only

    def __enter__(self) -> "Output":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        self._write(lambda writer: writer.close())

    def advance(self, step: int) -> None:
        """Move the progress bar to `step`."""
        self._progress.update(self._task, completed=step)

    def report_first_step(self, seconds: float) -> None:
        """Print how long the run took to complete its first step, and add this time to the next training row."""
        self._extra = {"seconds_to_first_step": seconds}
        self.log.print(f"first step done after {seconds:.1f} s, including compilation")

    def log_training(self, step: int, row: Mapping[str, float], seconds_left: float) -> None:
        """Write a row of training scalars, and print its main values and the time left.

        `row` must contain all printed values except "skipped", which is optional.
        """
        self._write_scalars(step, "train", {**row, **self._extra})
        self._extra = {}
        skipped = f"  {row['skipped']:.0f} skipped" if row.get("skipped") else ""
        left = f"{format_duration(seconds_left)} left{skipped}"
        line = (
            f"loss {row['mean_loss']:.4f}  accuracy {row['mean_accuracy']:.3f}  lr {row['lr']:.2e}  "
            f"{row['images_per_second']:.1f} images/s  MFU {row['mfu']:.1%}  data wait {row['data_wait']:.1%}  {left}"
        )
        self._progress.update(self._task, description=line)
        self._print_step(step, line)

    def log_evaluation(self, step: int, summary: Mapping[str, Any], strips: Sequence[UInt8[np.ndarray, "h w 3"]]) -> None:
        """Write the scores from `evaluation.scores.summary` and the comparison images (image | label | prediction).

        Of the scores by class, only the IoU is logged. The others are in the checkpoint's scores.json.
        """
        scores = {name: summary[name] for name in OVERALL_METRICS}
        self._write_scalars(step, "eval", scores | {f"iou/{name}": iou for name, iou in summary["iou"].items()})
        self._write(lambda writer: writer.write_images(step, strips))
        printed = {OVERALL_METRICS[name].title: scores[name] for name in PRINTED_SCORES}
        text = "  ".join(f"{title} {'-' if value is None else f'{value:.4f}'}" for title, value in printed.items())
        self._print_step(step, f"evaluation: {text}")

    def _print_step(self, step: int, line: str) -> None:
        self.log.print(f"step {step:>6}  {line}  {datetime.datetime.now():%H:%M:%S}")

    def _write_scalars(self, step: int, kind: str, row: Mapping[str, float | None]) -> None:
        row = {name: None if value is None or not math.isfinite(value) else value for name, value in row.items()}
        self._write(lambda writer: writer.write_scalars(step, kind, row))

    def _write(self, write: Callable[[RunWriter], None]) -> None:
        """Call `write` with each writer. A writer that fails must not stop the run, so this only prints a warning."""
        for writer in self._writers:
            try:
                write(writer)
                self._failed.discard(writer)
            except Exception as error:  # writers use other libraries, which raise many kinds of errors
                if writer not in self._failed:
                    reason = one_line(error)
                    self.log.print(f"warning: {writer.path} cannot be written ({reason}). The run continues without it.")
                self._failed.add(writer)
