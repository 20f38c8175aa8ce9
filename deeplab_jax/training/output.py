"""Report a run's progress in its log, on the terminal's progress bar and by its writers."""

import datetime
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from deeplab_jax.checkpoints.folders import CHECKPOINTS, find_best, find_steps, make_absolute, read_scores
from deeplab_jax.config import Config, flatten
from deeplab_jax.errors import BucketOutageError, one_line
from deeplab_jax.evaluation.metrics import OVERALL_METRICS
from deeplab_jax.files import report_write_errors
from deeplab_jax.runtime.shared_errors import failing_together
from deeplab_jax.training.log import Log, format_duration
from deeplab_jax.training.writers import Checkpoint, Outcome, RunStart, RunWriter, TrackerProcess, open_writers

PRINTED_SCORES = ("miou", "pixel_accuracy", "boundary_miou", "ece", "loss")  # the scores that fit on the line of an evaluation


class Output:
    """A context manager for a run's terminal and file output.

    Every process creates one, but only the first process writes files.

    Attributes:
      outcome: How the run ends, unless an error ends it. The loop sets it to "finished" when the run is complete.

    Args:
      config: The run's config.
      workdir: The run folder.
      start_step: The step at which the run starts or resumes.
      steps: The step at which the run ends.
      is_scored: Whether the evaluation of `start_step`, if there was one, was complete.
      log: The run's log. Its console shows the progress bar if it is a terminal.
    """

    def __init__(self, config: Config, workdir: str, start_step: int, steps: int, is_scored: bool, log: Log) -> None:
        folder, is_first = make_absolute(workdir), jax.process_index() == 0
        self.log = log
        self.outcome: Outcome = "stopped"
        self._folder, self._uploads = folder, config.train.upload_checkpoints
        self._writers: list[RunWriter] = []
        with failing_together(), report_write_errors(folder):
            if is_first:
                folder.mkdir(parents=True, exist_ok=True)
                start = RunStart(str(folder), start_step, is_scored, flatten(config))
                self._writers = open_writers(config.train.writers, start, log.print)
        self._failed: set[RunWriter] = set()
        if self._uploads != "none" and start_step and is_scored and any(writer.takes_checkpoints for writer in self._writers):
            for step in find_steps(folder):
                self._write(functools.partial(self._upload_missing, step=step))
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=log.console, disable=not log.console.is_terminal)
        self._task = self._progress.add_task("compiling", total=steps, completed=start_step)
        self._extra: dict[str, float] = {}  # extra scalars for the next training row only

    def __enter__(self) -> "Output":
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._progress.stop()
        outcome: Outcome = "failed" if kind and issubclass(kind, Exception) else self.outcome
        if kind and issubclass(kind, BucketOutageError):  # writers that upload to the bucket would only wait and fail
            self._writers = [writer for writer in self._writers if isinstance(writer, TrackerProcess)]
        self._write(lambda writer: writer.close(outcome))

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

    def upload_checkpoint(self, step: int) -> None:
        """Give a step's checkpoint to the writers, if `train.upload_checkpoints` says so. It must be complete and scored."""
        if self._uploads != "none":
            self._write(lambda writer: self._upload(writer, self._folder / CHECKPOINTS / str(step)))

    def _upload_missing(self, writer: RunWriter, step: epath.Path) -> None:
        """Upload an evaluated checkpoint if the writer lacks it, because an earlier start ended during the upload."""
        if writer.takes_checkpoints and not writer.has_checkpoint(int(step.name)) and read_scores(step) is not None:
            self._upload(writer, step)

    def _upload(self, writer: RunWriter, step: epath.Path) -> None:
        if not writer.takes_checkpoints:
            return
        is_best = find_best(find_steps(self._folder)) == step
        if is_best or self._uploads == "all":
            writer.write_checkpoint(Checkpoint(int(step.name), str(step), (read_scores(step) or {}).get("miou"), is_best))

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
                    self.log.print(f"warning: {writer.target} cannot be written ({reason}). The run continues without it.")
                self._failed.add(writer)
