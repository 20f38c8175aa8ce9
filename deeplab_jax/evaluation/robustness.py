"""Score a network on corrupted images (see `corruptions`), and keep the scores in a file after each corruption and severity."""

import collections
import csv
import dataclasses
import io
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from deeplab_jax.config import Config
from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.evaluation import scores
from deeplab_jax.evaluation.corruptions import corrupt
from deeplab_jax.evaluation.evaluate import Batch, open_evaluator, require_labels, score
from deeplab_jax.evaluation.scores import make_table, percent
from deeplab_jax.files import write_atomically
from deeplab_jax.labels import LabelSet
from deeplab_jax.runtime.machine import usable_cores

FILE, TABLE = "robustness.json", "robustness.csv"
SEED = 0  # not the run's, so that all runs see the same images
AHEAD = 2  # batches to corrupt while the device is busy

# How an error message describes stored scores if a setting differs: "the folder has scores of ...".
DIFFERENCES = {
    "step": "another checkpoint",
    "weights": "other weights",
    "model": "another network",
    "labels": "another label set",
    "split": "other images",
    "images": "other images",
    "files": "other images or labels",
    "data": "images that were read differently",
    "eval": "another evaluation protocol",
    "seed": "other random numbers",
    "versions": "other library versions",
}
IMPLIED = {"step": {"weights"}, "split": {"images", "files"}, "images": {"files"}}  # what else differs if a setting does
DIGESTS = ("weights", "labels", "files")

Cell = tuple[str, int]  # a corruption and a severity
CLEAN: Cell = ("clean", 0)
Scores = Mapping[str, Any]  # see `scores.summary`


@dataclasses.dataclass(frozen=True, slots=True)
class Robustness:
    """The scores of a network on corrupted images.

    Attributes:
      settings: Everything that the scores depend on, as JSON values.
      cells: The scores by corruption and severity. Those of the uncorrupted images are under CLEAN.
    """

    settings: Mapping[str, Any]
    cells: Mapping[Cell, Scores] = dataclasses.field(default_factory=dict)

    def corruptions(self) -> list[str]:
        """Return the corruptions, in the order in which they were evaluated."""
        return list(dict.fromkeys(name for name, _ in self.cells if name != CLEAN[0]))

    def severities(self) -> list[int]:
        """Return the severities of any corruption, in ascending order."""
        return sorted({severity for _, severity in self.cells} - {CLEAN[1]})

    def miou(self, name: str, severity: int) -> float | None:
        """Return a cell's mIoU, or None if it has not been evaluated."""
        return self.cells[name, severity]["miou"] if (name, severity) in self.cells else None

    def shared_severities(self) -> list[int]:
        """Return the severities that all corruptions have, in ascending order. All means are over these."""
        corruptions = self.corruptions()
        return [severity for severity in self.severities() if all((name, severity) in self.cells for name in corruptions)]

    def mean_miou(self, name: str) -> float | None:
        """Return a corruption's mean mIoU over the shared severities, or None if there are none."""
        return _mean([self.miou(name, severity) for severity in self.shared_severities()])

    def class_iou(self, name: str, class_name: str) -> float | None:
        """Return a class's mean IoU over a corruption's shared severities, or None if some have no value."""
        return _mean([self.cells[name, severity]["iou"][class_name] for severity in self.shared_severities()])

    def summary(self) -> dict[str, Any]:
        """Return the shared severities, the mIoU of each corruption, their mean, and its share of the mIoU on clean images.

        A score is None if it is unknown.
        """
        by_corruption = {name: self.mean_miou(name) for name in self.corruptions()}
        clean, mean = self.miou(*CLEAN), _mean(list(by_corruption.values()))
        return {
            "severities": self.shared_severities(),
            "clean": clean,
            "mean": mean,
            "relative": mean / clean if mean is not None and clean else None,
            "corruptions": by_corruption,
        }

    def describe_means(self) -> str:
        """Return what the means are over, such as "mean over severities 1, 3 and 5", or "" without corrupted images."""
        if not self.corruptions():
            return ""
        if not (shared := self.shared_severities()):
            return "no mean, because the corruptions have no severity in common"
        *others, last = map(str, shared)
        return f"mean over severities {', '.join(others)} and {last}" if others else f"mean over severity {last}"


def read_results(folder: epath.Path) -> Robustness | None:
    """Return the results in a folder, or None if there are none.

    Raises:
      DataError: The file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        rows = {(row.pop("corruption"), row.pop("severity")): row for row in content["scores"]}
        return Robustness(dict(content["settings"]), rows)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"Cannot read {path} ({error}). Delete it and run `deeplab-jax robustness` again.") from None


def write_results(folder: epath.Path, results: Robustness) -> None:
    """Write robustness.json, and robustness.csv with a row for each corruption and severity.

    Raises:
      ConfigError: The folder is not writable.
    """
    rows = [{"corruption": name, "severity": severity, **each} for (name, severity), each in results.cells.items()]
    content = {"settings": results.settings, "summary": results.summary(), "scores": rows}
    with write_atomically(folder / FILE) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())
    text = io.StringIO()
    flat = [
        {key: value for key, value in row.items() if not isinstance(value, Mapping)}
        | {f"iou/{name}": value for name, value in row["iou"].items()}
        for row in rows
    ]
    writer = csv.DictWriter(text, flat[0] if flat else ["corruption", "severity"])
    writer.writeheader()
    writer.writerows(flat)
    with write_atomically(folder / TABLE) as file:
        file.write(text.getvalue().encode())


def add_results(folder: epath.Path, results: Robustness) -> Robustness:
    """Add scores to those that a folder already has, and return all of them.

    Two commands can take turns in the same folder. If both save in the same instant, one of them loses a score.

    Raises:
      ConfigError: The folder has scores with other settings, or is not writable.
      DataError: The folder's file is damaged.
    """
    stored = read_results(folder)
    cells = stored.cells if stored else {}
    if stored and cells and (others := _describe_differences(stored.settings, results.settings)):
        raise ConfigError(f"`--out` (={str(folder)!r}) has scores of {others}. Choose another --out, or delete the folder.")
    merged = dataclasses.replace(results, cells={**cells, **results.cells})
    write_results(folder, merged)
    return merged


def _describe_differences(stored: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return how the stored scores differ, as the end of "has scores of", or "" if the settings are the same."""
    if stored.keys() != settings.keys():
        return "another version of this command"
    changed = [name for name in settings if stored[name] != settings[name]]
    implied = set().union(*(IMPLIED.get(name, ()) for name in changed))
    return " and ".join(
        DIFFERENCES[name] + _describe_values(name, stored[name], settings[name]) for name in changed if name not in implied
    )


def _describe_values(name: str, old: Any, new: Any) -> str:
    if name in DIGESTS:
        return ""
    if not isinstance(new, Mapping):
        old, new = {name: old}, {name: new}
    fields = [each for each in {**old, **new} if old.get(each) != new.get(each)]
    return f" ({', '.join(f'{each} {old.get(each)}, not {new.get(each)}' for each in fields)})"


def evaluate_corruptions(
    results: Robustness,
    config: Config,
    variables: dict[str, Any],
    make_batches: Callable[[], Iterator[Batch]],
    names: Sequence[str],
    cells: Sequence[Cell],
    save: Callable[[Robustness], Robustness],
    console: Console,
) -> Robustness:
    """Evaluate the cells that `results` lacks, and return the results with them. All cells use the same compiled programs.

    Args:
      results: The results so far.
      config: The checkpoint's config. Its `eval` section sets the evaluation protocol.
      variables: The network variables, {"params", "batch_stats"}.
      make_batches: A function that returns the batches of the split.
      names: The images' names by index. An image's random parts depend on its name.
      cells: The corruptions and severities to evaluate.
      save: A function that stores the results after each cell, and returns them with any that another command has stored.
      console: The console for the progress.

    Raises:
      DataError: An image is unreadable, or no pixel of the split has a label.
      OutOfMemoryError: A batch does not fit into memory.
    """
    missing = [cell for cell in dict.fromkeys(cells) if cell not in results.cells]
    if not missing:
        return results
    console.print("Compiling the network. On a CPU, this can take a minute.")
    evaluator, variables = open_evaluator(config, variables)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("evaluating", total=len(missing) * len(names))
        for number, (name, severity) in enumerate(missing, 1):
            if (name, severity) in results.cells:  # another command has stored it meanwhile
                progress.advance(task, len(names))
                continue
            start, batches = time.monotonic(), make_batches()
            if (name, severity) != CLEAN:
                batches = corrupt_batches(batches, name, severity, names, config.data.threads)
            totals = score(evaluator, variables, batches, lambda _, rows, __: progress.advance(task, len(rows)), names=names)
            require_labels(totals, config.eval.split)
            cell = scores.summary(totals, config.labels)
            results = save(dataclasses.replace(results, cells={**results.cells, (name, severity): cell}))
            what = f"{name}, severity {severity}" if severity else name
            seconds = time.monotonic() - start
            console.print(f"{number}/{len(missing)} {what}: mIoU {percent(results.miou(name, severity))} % ({seconds:.0f} s)")
            if warning := scores.warn_of_infinite_logits(cell):
                console.print(warning)
    return results


def corrupt_batches(
    batches: Iterable[Batch], name: str, severity: int, names: Sequence[str], threads: int = 0
) -> Iterator[Batch]:
    """Yield evaluation batches with corrupted images. The next ones are computed meanwhile, in several threads.

    Args:
      batches: Batches from `data.evaluation.eval_batches`. Margins around images and padding rows are left as they are.
      name: The corruption.
      severity: The severity, from 1 to 5.
      names: The images' names by index.
      threads: The number of threads. 0 uses one thread per usable CPU core.
    """

    def corrupt_row(batch: Batch, i: int) -> np.ndarray:
        height, width = batch["size"][i] if "size" in batch else batch["image"].shape[1:3]
        return corrupt(batch["image"][i, :height, :width], name, severity, SEED, names[int(batch["index"][i])])

    def finish(batch: Batch, rows: Sequence[int], corrupted: Iterator[np.ndarray]) -> Batch:
        images = batch["image"].copy()
        for i, pixels in zip(rows, corrupted, strict=True):
            images[i, : pixels.shape[0], : pixels.shape[1]] = pixels
        return batch | {"image": images}

    queue: collections.deque[tuple[Batch, Sequence[int], Iterator[np.ndarray]]] = collections.deque()
    with ThreadPoolExecutor(threads or usable_cores()) as pool:
        for batch in batches:
            rows = np.flatnonzero(batch["valid"]).tolist()
            queue.append((batch, rows, pool.map(corrupt_row, itertools.repeat(batch, len(rows)), rows)))
            if len(queue) > AHEAD:
                yield finish(*queue.popleft())
        while queue:
            yield finish(*queue.popleft())


def tables(results: Robustness, labels: LabelSet) -> list[Table]:
    """Return a table of the mIoU by corruption and severity, and one of the IoU by class, both in percent."""
    severities, summary = results.severities(), results.summary()
    means = f", {results.describe_means()}".rstrip(", ")
    by_corruption = make_table(f"mIoU in %{means}", "corruption", *(f"severity {s}" for s in severities), "mean", "of clean")
    clean = summary["clean"]
    by_corruption.add_row(CLEAN[0], *[""] * len(severities), percent(clean), "")
    by_corruption.add_section()
    for name, mean in summary["corruptions"].items():
        cells = [percent(results.miou(name, severity)) for severity in severities]
        by_corruption.add_row(name, *cells, percent(mean), percent(_divide(mean, clean)))
    by_corruption.add_section()
    columns = [percent(_mean([results.miou(name, s) for name in results.corruptions()])) for s in severities]
    by_corruption.add_row("mean", *columns, percent(summary["mean"]), percent(summary["relative"]))
    by_class = make_table(f"IoU by class in %{means}", "class", "clean", "corrupted", "lowest", "corruption")
    for class_name in labels.names:
        values = {name: results.class_iou(name, class_name) for name in results.corruptions()}
        known = {name: value for name, value in values.items() if value is not None}
        lowest = min(known, key=known.__getitem__, default="")
        shares = [results.cells[CLEAN]["iou"][class_name], _mean(list(values.values())), known.get(lowest)]
        by_class.add_row(escape(class_name), *map(percent, shares), lowest)
    return [by_corruption, by_class]


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else None


def _divide(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
