"""Compare runs: their configs, curves, scores and predictions."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from etils import epath
from markupsafe import Markup
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deeplab_jax.checkpoints.compare import find_differences
from deeplab_jax.checkpoints.folders import CHECKPOINTS, DamagedError, find_best, find_steps, make_absolute, read_scores
from deeplab_jax.checkpoints.paths import ALIASES
from deeplab_jax.checkpoints.store import resolve, restore_model, stored_config
from deeplab_jax.config import Config, from_dict
from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.evaluation import scores as score_file
from deeplab_jax.evaluation.evaluate import Batch, evaluate, require_labels
from deeplab_jax.evaluation.metrics import OVERALL_METRICS
from deeplab_jax.files import write_atomically
from deeplab_jax.pages import charts, html_page
from deeplab_jax.pages.disagreements import Disagreement, Disagreements
from deeplab_jax.training.metrics_log import read_log
from deeplab_jax.training.receipt import Start, read_starts

MAX_RUNS = 8  # the number of colours in templates/compare.css
_NOT_SCALARS = ("step", "kind", "time")

Rows = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as it was stored.

    Attributes:
      name: A name that no other run in the comparison has.
      config: The config of the checkpoint, or of the last start if there is no checkpoint.
      checkpoint: The step folder of the best checkpoint, or None if the run has not saved any.
      scores: The scores of the checkpoint, with the keys of scores.json, or {} if it was not evaluated.
      train: The training rows of the log.
      evaluations: The evaluation rows of the log.
      start: The last start in the receipt, or None for weights that were imported.
    """

    name: str
    config: Config
    checkpoint: epath.Path | None
    scores: dict[str, Any]
    train: Rows
    evaluations: Rows
    start: Start | None

    @property
    def progress(self) -> str:
        """Return how far the run got, such as "400 of 550"."""
        done = max((row["step"] for row in (*self.train, *self.evaluations)), default=None)
        steps = self.start.steps if self.start else None
        return "-" if done is None else f"{done:,}" if steps is None else f"{done:,} of {steps:,}"

    @property
    def step(self) -> str:
        """Return the step of the checkpoint, or "-"."""
        return self.checkpoint.name if self.checkpoint else "-"


def read_runs(paths: Sequence[str]) -> list[Run]:
    """Read the runs to compare.

    Args:
      paths: Run folders, whose best checkpoint is used, or their latest one if none was evaluated. Other checkpoints can be
        given in any form that `resolve` accepts.

    Raises:
      ConfigError: There are fewer than two paths, more than eight, or two are the same.
      CheckpointError: A path is something else, or a file is damaged.
    """
    if not 2 <= len(paths) <= MAX_RUNS:
        raise ConfigError(f"`RUN` (={' '.join(paths)!r}) cannot be compared. Give 2 to {MAX_RUNS} runs.")
    absolute = [str(make_absolute(path)) for path in paths]
    for path, folder in zip(paths, absolute, strict=True):
        if absolute.count(folder) > 1:
            raise ConfigError(f"`RUN` (={path!r}) is given twice. Give different runs.")
    return [_read_run(path, name) for path, name in zip(paths, _shorten(absolute), strict=True)]


def _shorten(paths: Sequence[str]) -> list[str]:
    """Return the last parts of each path, as few as tell all paths apart. A step alone is not a name."""
    parts = [path.replace(f"/{CHECKPOINTS}/", "/").rstrip("/").split("/") for path in paths]
    for count in range(1, max(map(len, parts))):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names) and not any(name.isdigit() or name in ALIASES for name in names):
            return names
    return list(paths)


def _read_run(path: str, name: str) -> Run:
    folder = make_absolute(path)
    starts = read_starts(str(folder))
    is_run = (folder / CHECKPOINTS).is_dir()
    steps = find_steps(folder) if is_run else []
    if is_run and not steps and starts:
        checkpoint, config, workdir = None, from_dict(starts[-1].config), folder
    else:
        checkpoint = (find_best(steps) or steps[-1]) if steps else resolve(path, "RUN")
        config, workdir = stored_config(str(checkpoint)), checkpoint.parent.parent
        starts = starts or read_starts(str(workdir))
    train, evaluations = (read_log(str(workdir), kind) for kind in ("train", "eval"))
    return Run(name, config, checkpoint, _read_scores(checkpoint), train, evaluations, starts[-1] if starts else None)


def _read_scores(checkpoint: epath.Path | None) -> dict[str, Any]:
    try:
        return (read_scores(checkpoint) if checkpoint else None) or {}
    except DamagedError:
        return {}


def list_notes(runs: Sequence[Run]) -> list[str]:
    """Return what limits the comparison of stored scores."""
    notes = []
    if len({run.config.labels.names for run in runs}) > 1:
        counts = ", ".join(f"{run.name} {run.config.labels.num_classes}" for run in runs)
        notes.append(f"The runs have different classes ({counts}), so their mean scores are not comparable.")
    lists = {run.start.eval_data for run in runs if run.start and run.start.eval_data}
    if len(lists) > 1:
        notes.append("The runs were evaluated on different images during training, so their logs are not comparable.")
    notes += [f"{run.name} has no log." for run in runs if not run.train and not run.evaluations]
    notes += [f"{run.name} has no checkpoint yet." for run in runs if not run.checkpoint]
    notes += [f"{run.name}: step {run.step} has no scores." for run in runs if run.checkpoint and not run.scores]
    return notes


def scalar_scores(runs: Sequence[Run]) -> dict[str, list[float | None]]:
    """Return the scores that are single numbers, such as "miou", with each run's value."""
    names = {name: None for run in runs for name, value in run.scores.items() if not isinstance(value, Mapping)}
    return {name: [run.scores.get(name) for run in runs] for name in names}


def class_scores(runs: Sequence[Run]) -> dict[str, list[float | None]]:
    """Return the IoU of each class that at least two runs have, with each run's value."""
    tables = [run.scores.get("iou", {}) for run in runs]
    names = {name: None for table in tables for name in table}
    shared = [name for name in names if sum(name in table for table in tables) > 1]
    return {name: [table.get(name) for table in tables] for name in shared}


def print_table(runs: Sequence[Run], console: Console) -> None:
    """Print the progress, scores and differing config fields. Differences to the first run are in brackets."""
    table = Table("", *(escape(run.name) for run in runs))
    for column in table.columns[1:]:
        column.justify, column.overflow = "right", "fold"

    def add_row(*cells: str) -> None:
        table.add_row(*map(escape, cells))  # a regular expression in a config field can look like rich's markup

    add_row("steps", *(run.progress for run in runs))
    add_row("checkpoint", *(run.step for run in runs))
    table.add_section()
    for name, values in scalar_scores(runs).items():
        add_row(_label(name), *_with_differences(name, values))
    table.add_section()
    for name, values in class_scores(runs).items():
        add_row(f"IoU % {name}", *_with_differences("iou", values))
    table.add_section()
    for field, settings in format_differences(runs).items():
        add_row(field, *settings)
    console.print(table)
    for note in list_notes(runs):
        console.print(f"note: {note}", markup=False)


def format_differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return the config fields that differ, with each run's value as text. Of a label set, only the name is shown."""
    differences = find_differences([run.config for run in runs])
    return {
        field: ["-" if value is None else _format_value(value) for value in values]
        for field, values in differences.items()
        if not field.startswith("labels.") or field == "labels.name"
    }


def _format_value(value: Any) -> str:
    return ", ".join(map(_format_value, value)) or "()" if isinstance(value, list) else str(value)


def _label(name: str) -> str:
    title = OVERALL_METRICS[name].title if name in OVERALL_METRICS else name
    return title + (" %" if _is_share(name) else "")


def _is_share(name: str) -> bool:
    return name not in OVERALL_METRICS or OVERALL_METRICS[name].is_share


def _number(name: str, value: float | None, sign: str = "") -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{100 * value:{sign}.2f}" if _is_share(name) else f"{value:{sign}.4f}"


def _with_differences(name: str, values: Sequence[float | None]) -> list[str]:
    first, *others = values
    shown = [_number(name, first)]
    for value in others:
        difference = "" if value is None or first is None else f" ({_number(name, value - first, '+')})"
        shown.append(_number(name, value) + difference)
    return shown


def require_same_classes(runs: Sequence[Run], images: int) -> None:
    """Raise ConfigError unless the predictions of all runs can be compared."""
    advice = "Use --images 0 to compare their curves and stored scores."
    for run in runs:
        if not run.checkpoint:
            raise ConfigError(f"`--images` (={images}) needs checkpoints, and {run.name} has none yet. {advice}")
        first, labels = runs[0].config.labels, run.config.labels
        if labels.names != first.names:
            raise ConfigError(
                f"`--images` (={images}) needs runs with the same classes. {runs[0].name} has {first.num_classes} "
                f"({first.name}), and {run.name} has {labels.num_classes} ({labels.name}). {advice}"
            )


@dataclasses.dataclass(frozen=True)
class Split:
    """The images on which a run is evaluated.

    Attributes:
      config: The run's config for the evaluation.
      names: The image names.
      batches: A function that returns the batches.
    """

    config: Config
    names: Sequence[str]
    batches: Callable[[], Iterable[Batch]]


def evaluate_runs(
    runs: Sequence[Run], splits: Sequence[Split], count: int, console: Console
) -> tuple[list[Run], list[list[Disagreement]]]:
    """Evaluate all runs on the same images.

    Args:
      runs: The runs.
      splits: Each run's split.
      count: The number of images to return, over all runs.
      console: The console for the progress.

    Returns:
      The runs with the scores of this evaluation, and for each run the images that it predicts better than the others.

    Raises:
      DataError: The runs' splits have different images, or no labels.
      CheckpointError: A checkpoint cannot be read.
      OutOfMemoryError: A batch does not fit into memory.
    """
    split = splits[0].config.eval.split
    for run, each in zip(runs, splits, strict=True):
        if list(each.names) != list(splits[0].names):
            raise DataError(
                f"The split {split!r} of {run.name} has other images ({len(each.names)}) than that of {runs[0].name} "
                f"({len(splits[0].names)}). Give the folder of one data set with --root, or use --images 0."
            )
    disagreements = Disagreements(splits[0].names, runs[0].config.labels, len(runs), count)
    scored = []
    for run, each in zip(runs, splits, strict=True):
        console.print(f"Evaluating {run.name}, step {run.step}, on {split} ({len(each.names)} images)", markup=False)
        variables = restore_model(str(run.checkpoint), like=each.config, given=run.name)
        totals = evaluate(each.config, variables, each.batches(), len(each.names), [disagreements.add], console, each.names)
        require_labels(totals, split)
        scores = score_file.summary(totals, run.config.labels)
        if warning := score_file.warn_of_infinite_logits(scores):
            console.print(warning)
        scored.append(dataclasses.replace(run, scores=scores))
    return scored, disagreements.by_winner()


def write_page(runs: Sequence[Run], images: Sequence[Sequence[Disagreement]], source: str, out: str) -> None:
    """Write the HTML page to `out`. No partial file is left behind after an error.

    Args:
      runs: The runs.
      images: For each run, the images that it predicts better than the others, or ().
      source: Where the scores come from, as a sentence.
      out: The file to write.
    """
    page = render_page(runs, images, source)
    with write_atomically(epath.Path(out)) as file:
        file.write(page.encode(errors="backslashreplace"))  # file names need not be valid UTF-8


def render_page(runs: Sequence[Run], images: Sequence[Sequence[Disagreement]], source: str) -> str:
    """Return the HTML page. Takes the arguments of `write_page`."""
    return html_page.render(
        "compare.html",
        title="Comparison of " + ", ".join(run.name for run in runs),
        runs=runs,
        source=source,
        notes=list_notes(runs),
        scores={_label(name): _with_differences(name, values) for name, values in scalar_scores(runs).items()},
        classes={
            name: list(zip(values, _with_differences("iou", values), strict=True))
            for name, values in class_scores(runs).items()
        },
        charts=_draw_charts(runs),
        differences=format_differences(runs),
        images=images,
        labels=runs[0].config.labels,
    )


def _draw_charts(runs: Sequence[Run]) -> list[Markup]:
    names = {name: None for run in runs for row in run.evaluations for name in row}
    scores = [name for name in names if name not in _NOT_SCALARS and not name.startswith("iou/")]

    def lines(rows: Callable[[Run], Rows], name: str, factor: float = 1) -> dict[str, charts.Points]:
        # A run without points keeps its place, and thus its colour.
        return {run.name: [(row["step"], factor * row[name]) for row in rows(run) if row.get(name) is not None] for run in runs}

    drawn = [charts.draw_lines("training loss", lines(lambda run: run.train, "loss"))]
    for name in sorted(scores, key=lambda name: name != "miou"):
        series = lines(lambda run: run.evaluations, name, 100 if _is_share(name) else 1)
        drawn.append(charts.draw_lines(f"evaluation: {_label(name)}", series, dots=True))
    drawn.append(charts.draw_lines("learning rate", lines(lambda run: run.train, "lr")))
    return [chart for chart in drawn if chart]
