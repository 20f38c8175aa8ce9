"""What a run leaves for people: `metrics.jsonl`, TensorBoard events, lines and a progress bar on the terminal."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from tensorboardX import SummaryWriter

from deeplab_jax.evaluation.metrics import OVERALL_METRICS
from deeplab_jax.files import replacing
from deeplab_jax.train.metrics_log import METRICS


class Writer:
    """Use as a context manager. Every process of a run makes one; the first one writes.

    Args:
      workdir: the run's folder. Rows of `metrics.jsonl` after `start_step` are dropped: the run repeats those steps.
      start_step: where the run starts or resumes.
      steps: where it ends.
      console: where lines and, on a terminal, the progress bar go.
    """

    def __init__(self, workdir: str, start_step: int, steps: int, console: Console) -> None:
        folder = epath.Path(workdir)
        self._path = folder / METRICS
        self._events = None
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            _truncate(self._path, start_step)
            self._events = SummaryWriter(os.fspath(folder / "tensorboard"), purge_step=start_step + 1)
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task("compiling", total=steps, completed=start_step)
        self._once: dict[str, float] = {}  # what the next row of training scalars has besides

    def __enter__(self) -> "Writer":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        if self._events:
            self._events.close()

    def advance(self, step: int) -> None:
        """Moves the progress bar."""
        self._progress.update(self._task, completed=step)

    def started(self, seconds: float) -> None:
        """The first step is done, so long after `train` was called: a line, and a scalar of the next row."""
        self._once = {"seconds_to_first_step": seconds}
        self._progress.console.print(f"first step after {seconds:.1f} s, compilation included")

    def train(self, step: int, row: Mapping[str, float], seconds_left: float) -> None:
        """A row of training scalars; `row` holds at least those of the line below."""
        self._scalars(step, "train", {**row, **self._once})
        self._once = {}
        skipped = f"  {row['skipped']:.0f} skipped" if row.get("skipped") else ""
        left = f"left {duration(seconds_left)}{skipped}"
        line = (
            f"loss {row['loss']:.4f}  accuracy {row['accuracy']:.3f}  lr {row['lr']:.2e}  "
            f"{row['images_per_second']:.1f} images/s  MFU {row['mfu']:.1%}  data wait {row['data_wait']:.1%}  {left}"
        )
        self._progress.update(self._task, description=line)
        self._progress.console.print(f"step {step:>6}  {line}")

    def evaluation(self, step: int, summary: Mapping[str, Any], strips: Sequence[UInt8[np.ndarray, "h w 3"]]) -> None:
        """The scores of `evaluation.scores.summary`, and pictures of image | label | prediction."""
        scores = {name: summary[name] for name in OVERALL_METRICS}
        self._scalars(step, "eval", scores | {f"iou/{name}": iou for name, iou in summary["iou"].items()})
        if self._events:
            for i, strip in enumerate(strips):
                self._events.add_image(f"eval/strip_{i}", strip, step, dataformats="HWC")
        text = "  ".join(f"{name} {'-' if value is None else f'{value:.4f}'}" for name, value in scores.items())
        self._progress.console.print(f"step {step:>6}  evaluation: {text}")

    def _scalars(self, step: int, kind: str, row: Mapping[str, float | None]) -> None:
        # JSON knows no nan.
        row = {name: None if value is None or not math.isfinite(value) else value for name, value in row.items()}
        if not self._events:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "kind": kind, **row}) + "\n")
        for name, value in row.items():
            if value is not None:
                self._events.add_scalar(f"{kind}/{name}", value, step)
        self._events.flush()


def duration(seconds: float) -> str:
    """In minutes and seconds, from an hour on in hours and minutes."""
    minutes, hours = int(seconds // 60) % 60, int(seconds // 3600)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {int(seconds) % 60:02} s"


def _truncate(path: epath.Path, step: int) -> None:
    """Keeps the rows up to `step`; what a crash cut short or garbled goes as well."""
    if not path.exists():
        return
    kept = [line for line in path.read_bytes().decode(errors="replace").splitlines() if _is_row_until(line, step)]
    with replacing(path) as file:
        file.write("".join(line + "\n" for line in kept).encode())


def _is_row_until(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
