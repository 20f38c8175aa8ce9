"""Report a run's progress on the terminal and in the files written by `writers.WRITERS`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from deeplab_jax.evaluation.metrics import OVERALL_METRICS
from deeplab_jax.training.writers import WRITERS


class Output:
    """A context manager for a run's terminal and file output.

    Every process creates one, but only the first process writes files.

    Args:
      workdir: The run folder.
      start_step: The step at which the run starts or resumes.
      steps: The step at which the run ends.
      console: Console for the log lines and, on a terminal, the progress bar.
    """

    def __init__(self, workdir: str, start_step: int, steps: int, console: Console) -> None:
        folder, is_first = epath.Path(workdir), jax.process_index() == 0
        if is_first:
            folder.mkdir(parents=True, exist_ok=True)
        self._writers = [make(folder, start_step) for make in WRITERS] if is_first else []
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task("compiling", total=steps, completed=start_step)
        self._extra: dict[str, float] = {}  # extra scalars for the next training row only

    def __enter__(self) -> "Output":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        for writer in self._writers:
            writer.close()

    def advance(self, step: int) -> None:
        """Move the progress bar to `step`."""
        self._progress.update(self._task, completed=step)

    def report_first_step(self, seconds: float) -> None:
        """Print how long the run took to complete its first step, and add this time to the next training row."""
        self._extra = {"seconds_to_first_step": seconds}
        self._progress.console.print(f"first step done after {seconds:.1f} s, including compilation")

    def log_training(self, step: int, row: Mapping[str, float], seconds_left: float) -> None:
        """Write a row of training scalars, and print its main values and the time left.

        `row` must contain all printed values except "skipped", which is optional.
        """
        self._write_scalars(step, "train", {**row, **self._extra})
        self._extra = {}
        skipped = f"  {row['skipped']:.0f} skipped" if row.get("skipped") else ""
        left = f"{format_duration(seconds_left)} left{skipped}"
        line = (
            f"loss {row['loss']:.4f}  accuracy {row['accuracy']:.3f}  lr {row['lr']:.2e}  "
            f"{row['images_per_second']:.1f} images/s  MFU {row['mfu']:.1%}  data wait {row['data_wait']:.1%}  {left}"
        )
        self._progress.update(self._task, description=line)
        self._progress.console.print(f"step {step:>6}  {line}")

    def log_evaluation(self, step: int, summary: Mapping[str, Any], strips: Sequence[UInt8[np.ndarray, "h w 3"]]) -> None:
        """Write the scores from `evaluation.scores.summary` and the comparison images (image | label | prediction)."""
        scores = {name: summary[name] for name in OVERALL_METRICS}
        self._write_scalars(step, "eval", scores | {f"iou/{name}": iou for name, iou in summary["iou"].items()})
        for writer in self._writers:
            writer.write_images(step, strips)
        text = "  ".join(f"{name} {'-' if value is None else f'{value:.4f}'}" for name, value in scores.items())
        self._progress.console.print(f"step {step:>6}  evaluation: {text}")

    def _write_scalars(self, step: int, kind: str, row: Mapping[str, float | None]) -> None:
        row = {name: None if value is None or not math.isfinite(value) else value for name, value in row.items()}
        for writer in self._writers:
            writer.write_scalars(step, kind, row)


def format_duration(seconds: float) -> str:
    """Format a duration as "3 min 05 s", or as "1 h 02 min" if it is at least an hour."""
    minutes, hours = int(seconds // 60) % 60, int(seconds // 3600)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {int(seconds) % 60:02} s"
