"""Print tables, reports and progress bars of the `deeplab-jax data` commands."""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from etils import epath
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from deeplab_jax.errors import summarize
from deeplab_jax.labels import IGNORE, LabelSet, color_of
from deeplab_jax.runtime.console import make_console

if TYPE_CHECKING:
    from deeplab_jax.data.survey import Survey

MAX_PRINTED = 5  # the number of problems to print for each kind


def make_values_table(survey: "Survey", proposed: LabelSet) -> Table:
    """Return a table of the values in the masks, with the class that each value has in the proposed label set."""
    from deeplab_jax.data.masks import format_value
    from deeplab_jax.data.survey import is_rare
    from deeplab_jax.pages.check import format_share

    total = survey.pixels
    table = Table("colour" if survey.is_color else "value", "class", "pixels", "share", "files", "file with most")
    names = {color: proposed.names[k] for color, k in proposed.train_id_of_color().items() if k != IGNORE}
    by_id = {value: proposed.names[k] for value, k in proposed.train_id_of_id().items() if k != IGNORE}
    for value, each in survey.values.items():
        color = color_of(value)
        name = names.get(color, "ignored") if survey.is_color else by_id.get(value, "ignored")
        rare = " (rare)" * is_rare(each, survey)
        chip = Text("  ", f"on rgb({color[0]},{color[1]},{color[2]})") + Text(" ") if survey.is_color else Text()
        cells = (name + rare, f"{each.pixels:,}", format_share(each.pixels, total), f"{each.files:,}", each.example)
        table.add_row(chip + Text(format_value(value, survey.is_color)), *map(Text, cells))
    return table


def show_report(console: Console, report: Mapping[str, Any], labels: LabelSet, out: str) -> None:
    """Print a summary of check.json, which is written to the folder `out`, unless this is ""."""
    from deeplab_jax.pages.check import class_cells, ignored_share

    splits, problems = report["splits"], report["problems"]
    table = Table("class", *(f"{split} {unit}" for split in splits for unit in ("pixels", "images")))
    for name in labels.names:
        table.add_row(Text(name), *class_cells(splits, name))
    if splits:
        console.print(table)
    for name, split in splits.items():
        if not split["sizes"]:
            print_line(console, f"{name}: no sample can be read")
            continue
        sizes = summarize((f"{size} ({n})" for size, n in split["sizes"].items()), 3)
        files = {"images": split["image_modes"], "labels": split["label_modes"]}
        modes = "".join(f"; {kind} of mode {', '.join(names)}" for kind, names in files.items() if names)
        print_line(console, f"{name}: {sizes}{modes}; {ignored_share(split)} of the pixels are ignored")
    listed = f"{epath.Path(out) / 'check.json'} lists all of them." if out else ""
    show_problems(console, problems, listed or "Use --out DIR to list all of them in DIR/check.json.")
    for name in report["rare_classes"]:  # the training split
        if statistics := splits[name]["mean_and_std"]:
            print_line(console, f"Mean and standard deviation of each band in {name}:")
            for field, numbers in zip(("mean", "std"), statistics, strict=True):
                print_line(console, f"  --config.model.{field}='({','.join(f'{number:.4g}' for number in numbers)},)'")
    for split, weights in report["class_weights"].items():
        print_line(console, f"Optional class weights for rare classes, computed from {split} (ENet, arXiv 1606.02147):")
        print_line(console, f"  --config.loss.class_weights='({','.join(f'{weight:g}' for weight in weights)})'")
    for split, names in report["rare_classes"].items():
        if names:
            value = f"({','.join(json.dumps(name, ensure_ascii=False) for name in names)},)"
            print_line(console, f"Optional copy-paste of the classes with less than a tenth of an even share of {split}:")
            print_line(console, f"  --config.data.copy_paste=0.5 --config.data.copy_paste_classes={shlex.quote(value)}")
    fails = sum(problem["fails"] for problem in problems)
    verdict = f"Training would fail or learn wrong classes. Problems to fix: {fails}."
    print_line(console, verdict if fails else "Training can read every sample.")


def show_problems(console: Console, problems: Sequence[Mapping[str, Any]], listed: str = "") -> None:
    """Print the first problems of each kind, as they are in check.json, and `listed`, which says where to find the others."""
    for sort in dict.fromkeys(problem["sort"] for problem in problems):
        same = [problem for problem in problems if problem["sort"] == sort]
        print_line(console, f"{'ERROR' if same[0]['fails'] else 'note'}: {sort} ({len(same)})")
        for problem in same[:MAX_PRINTED]:
            print_line(console, f"  {problem['text']}")
        if len(same) > MAX_PRINTED:
            print_line(console, f"  and {len(same) - MAX_PRINTED} more. {listed}".rstrip())


def print_line(console: Console, line: str) -> None:
    """Print a line as it is. Bytes in file names that are not UTF-8 are escaped."""
    console.print(line.encode(errors="backslashreplace").decode(), markup=False, soft_wrap=True)


def make_table_console() -> Console:
    """Return a console for tables that does not wrap file names."""
    console = make_console(soft_wrap=False)
    if not console.is_terminal:
        console.width = 160  # Rich assumes 80 columns
    return console


@contextmanager
def show_progress(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar on the terminal, and yield a function that advances it by one."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda: bar.advance(task)
