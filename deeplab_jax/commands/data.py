"""The `deeplab-jax data ...` commands. TensorFlow is imported by those that need it."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from etils import epath
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from deeplab_jax.config import DataConfig
from deeplab_jax.errors import ConfigError
from deeplab_jax.files import replacing
from deeplab_jax.labels import LABEL_SETS, LabelSet, color_of
from deeplab_jax.labels.files import checked_labels, read_labels, write_labels

if TYPE_CHECKING:
    from deeplab_jax.data.inspection import Report
    from deeplab_jax.data.masks import Survey

LABELS_FILE = "labels.json"
Root = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ROOT")]


def synthetic(
    out: Annotated[Path, tyro.conf.Positional],
    train: int = 128,
    val: int = 24,
    test: int = 8,
    size: tuple[int, int] = (192, 384),
    seed: int = 0,
) -> None:
    """Draw a small street-scene set in the Cityscapes layout.

    Args:
      out: folder to make.
      train: training scenes.
      val: validation scenes.
      test: test scenes, without labels.
      size: height and width in pixels.
      seed: another seed draws other scenes.
    """
    from deeplab_jax.scenes import dataset as drawn

    drawn.write(out, train=train, val=val, test=test, size=size, seed=seed)
    print(f"{train} training, {val} validation and {test} test scenes are in {out}")


def prepare(
    root: Root,
    out: str,
    splits: tuple[str, ...] = ("train", "val"),
    label_kind: str = "auto",
    data_dir: str = "",
    threads: int = 0,
) -> None:
    """Decode a data set once, into records that a training reads far faster; give their folder as data.root.

    A run that was cut short goes on where it ended, and another one redoes what changed.

    Args:
      root: folder of the data set, or tfds:NAME.
      out: folder to make.
      splits: to prepare.
      label_kind: labelIds, labelTrainIds or color, if the names do not tell.
      data_dir: where tfds:NAME was built, if not in TFDS's own place.
      threads: host threads; 0 for automatic.
    """
    from deeplab_jax.data.prepare import prepare as write

    _require_threads(threads)
    data = _data(root, label_kind, data_dir)
    data.threads = threads
    write(data, out, splits, Console(soft_wrap=True, highlight=False))


def labels(root: Root, out: str = "", splits: tuple[str, ...] = (), label_kind: str = "auto", threads: int = 0) -> None:
    """Find the values or colours in a data set's masks and write a label-set file to edit.

    Args:
      root: folder of the data set, in one of the layouts of docs/data.md.
      out: file to write; ROOT/labels.json if not given.
      splits: splits whose masks are opened; train and val if not given, or whatever there is.
      label_kind: labelIds, labelTrainIds or color, where the file names and the first file's header mislead.
      threads: masks that are read at once; 0 for as many as there are cores.
    """
    from deeplab_jax.data.find import find_split
    from deeplab_jax.data.layouts import recognized
    from deeplab_jax.data.lists import describe, splits_of
    from deeplab_jax.data.masks import propose, survey

    _require_threads(threads)
    path = epath.Path(out) if out else epath.Path(root) / LABELS_FILE
    if path.exists():
        raise ConfigError(f"{path} exists and is left alone: remove it, or name another file with --out")
    there = splits_of(root)
    splits = splits or tuple(split for split in ("train", "val") if split in there) or tuple(there) or ("train",)
    samples = [find_split(_data(root, label_kind), split) for split in splits]
    console = _console()
    for split, each in zip(splits, samples, strict=True):
        console.print(describe(split, each), markup=False, soft_wrap=True)
    with _progress("masks", sum(len(each) for each in samples)) as advance:
        found = survey(samples, advance, threads)
    layout = recognized(epath.Path(root))
    proposed, said = propose(
        epath.Path(root).resolve().name or "mine", found, LABEL_SETS.get(layout.labels if layout else ""), LABEL_SETS
    )
    console.print(_values_table(found, proposed))
    for line in found.problems:
        console.print(f"left out: {line}", markup=False, soft_wrap=True)
    for line in said:
        console.print(f"note: {line}", markup=False, soft_wrap=True)
    write_labels(path, proposed)
    console.print(f"{proposed.num_classes} classes are in {path}: edit their names, then", markup=False, soft_wrap=True)
    check_it = shlex.join(["deeplab-jax", "data", "check", root, "--labels", str(path), "--out", "DIR"])
    train = ["python", "train.py", f"--config=configs/custom.py:{path}", f"--config.data.root={root}", "--workdir=RUN"]
    console.print(f"  {check_it}\n  {shlex.join(train)}", markup=False, soft_wrap=True)


def check(
    root: Root,
    labels: str = "",
    splits: tuple[str, ...] = ("train", "val"),
    out: str = "",
    label_kind: str = "auto",
    data_dir: str = "",
    threads: int = 0,
) -> None:
    """Open every sample of a data set and say what is wrong; exit code 1 where training would fail.

    Args:
      root: folder of the data set, in one of the layouts of docs/data.md; what `data prepare` made; or tfds:NAME.
      labels: cityscapes, camvid, voc, ade20k, a label-set file or a recipe; if not given, ROOT/labels.json or what the folders
        are known for.
      splits: the training split first, since classes and their weights are counted there; test needs no labels.
      out: folder for check.json and index.html, a page with samples to look at.
      label_kind: labelIds, labelTrainIds or color, as data.label_kind will be.
      data_dir: where tfds:NAME was built, if not in TFDS's own place.
      threads: samples that are read at once; 0 for as many as there are cores.
    """
    from deeplab_jax.data import inspection as checking
    from deeplab_jax.data.lists import describe
    from deeplab_jax.pages import check as overview

    _require_threads(threads)
    if out and epath.Path(out).exists() and not epath.Path(out).is_dir():
        raise ConfigError(f"`--out` (={out!r}) is a file: name a folder")
    console = _console()
    sets, problems = checking.open_splits(_data(root, label_kind, data_dir), splits)
    label_set = _labels_of(root, labels, console)
    for split, samples in sets.items():
        console.print(describe(split, samples), markup=False, soft_wrap=True)
    with _progress("samples", sum(map(len, sets.values()))) as advance:
        report = checking.check(sets, label_set, problems, advance, threads)
    _show_report(console, report, label_set)
    if out:
        folder = epath.Path(out)
        page = overview.page(f"{root}: data check", report, label_set, overview.pictures(sets, label_set))
        values = json.dumps(checking.as_json(report, label_set), indent=1)
        for name, text in (("check.json", values), ("index.html", page)):
            with replacing(folder / name) as file:
                file.write(text.encode(errors="backslashreplace"))
        console.print(f"the page is {folder / 'index.html'}", markup=False, soft_wrap=True)
    sys.exit(1 if report.fails else 0)


def _data(root: str, label_kind: str, data_dir: str = "") -> DataConfig:
    """What a training on ROOT would read.

    Raises:
      ConfigError: `data_dir` is given for a folder.
    """
    source = root if root.startswith("tfds:") else ""
    if data_dir and not source:
        raise ConfigError(f"`--data-dir` (={data_dir!r}) goes with tfds:NAME, not with a folder (={root!r})")
    return DataConfig(root=data_dir if source else root, source=source, label_kind=label_kind)


def _require_threads(threads: int) -> None:
    if threads < 0:
        raise ConfigError(f"`--threads` (={threads}) is no number of threads: use a number from 1, or 0 for automatic")


def _labels_of(root: str, spec: str, console: Console) -> LabelSet:
    """The label set that `spec` names, or else the one that belongs to the folder."""
    from deeplab_jax.data.layouts import recognized

    file = epath.Path(root) / LABELS_FILE
    layout = recognized(epath.Path(root)) if root and epath.Path(root).is_dir() else None
    if spec:
        found, why = checked_labels(spec), "as asked"
    elif file.exists():
        found, why = read_labels(file), f"from {file}"
    elif layout and layout.labels:
        found, why = LABEL_SETS[layout.labels], f"since the folders are those of {layout.name}"
    elif root and not root.startswith("tfds:") and not epath.Path(root).is_dir():
        raise ConfigError(f"`ROOT` (={root!r}) is no folder: give that of the data set")
    else:
        raise ConfigError(
            f"`--labels` (='') is not given and {root} has no {LABELS_FILE}: run `deeplab-jax data labels {root}`, or give "
            f"--labels {', '.join(LABEL_SETS)}, a .json file or a recipe"
        )
    console.print(f"labels: {found.name}, {found.num_classes} classes, {why}", markup=False, soft_wrap=True)
    return found


def _values_table(found: "Survey", proposed: LabelSet) -> Table:
    from deeplab_jax.data.inspection import share
    from deeplab_jax.data.masks import show

    total = sum(each.pixels for each in found.values.values())
    table = Table("colour" if found.is_color else "value", "class", "pixels", "share", "files", "most in")
    names = {color: name for name, color in zip(proposed.names, proposed.colors, strict=True)}
    by_id = dict(zip(proposed.class_ids, proposed.names, strict=True))
    for value, each in found.values.items():
        color = color_of(value)
        name = names.get(color, "ignored") if found.is_color else by_id.get(value, "ignored")
        # A value that few pixels have is more often a slip of the pen than a class.
        rare = " (rare)" * (each.pixels < 1e-5 * total)
        chip = Text("  ", f"on rgb({color[0]},{color[1]},{color[2]})") + Text(" ") if found.is_color else Text()
        cells = (name + rare, f"{each.pixels:,}", share(each.pixels, total), f"{each.files:,}", each.example)
        table.add_row(chip + Text(show(value, found.is_color)), *map(Text, cells))
    return table


LISTED = 5  # problems of a sort that are printed


def _show_report(console: Console, report: "Report", label_set: LabelSet) -> None:
    from deeplab_jax.data.inspection import class_weights, share

    table = Table("class", *(f"{word} of {split}" for split in report.tallies for word in ("pixels", "images")))
    for k, name in enumerate(label_set.names):
        cells = [
            cell
            for tally in report.tallies.values()
            for cell in (share(tally.pixels[k], tally.pixels.sum()), f"{tally.images[k]:,}")
        ]
        table.add_row(Text(name), *cells)
    if report.tallies:
        console.print(table)
    for split, tally in report.tallies.items():
        sizes = ", ".join(f"{w}x{h} ({n})" for (w, h), n in tally.sizes.most_common(3))
        more = f" and {len(tally.sizes) - 3} more sizes" if len(tally.sizes) > 3 else ""
        files = {"images": tally.image_modes, "labels": tally.label_modes}
        modes = "".join(f"; {what} {', '.join(found)}" for what, found in files.items() if found)
        ignored = share(tally.ignored, tally.ignored + tally.unknown + tally.pixels.sum())
        console.print(f"{split}: {sizes}{more}{modes}; {ignored} of the pixels ignored", markup=False, soft_wrap=True)
    for sort in dict.fromkeys(problem.sort for problem in report.problems):
        same = [problem for problem in report.problems if problem.sort == sort]
        console.print(f"{'ERROR' if same[0].fails else 'note'}: {sort}, {len(same)}", markup=False, soft_wrap=True)
        for problem in same[:LISTED]:
            console.print(f"  {problem.text}", markup=False, soft_wrap=True)
        if len(same) > LISTED:
            console.print(
                f"  and {len(same) - LISTED} more: --out DIR lists them in DIR/check.json", markup=False, soft_wrap=True
            )
    for split, tally in list(report.tallies.items())[:1]:
        weights = ",".join(f"{weight:g}" for weight in class_weights(tally.pixels))
        if not weights:
            break
        console.print(f"weights for rare classes from {split} (ENet, arXiv 1606.02147), if you want them:", markup=False)
        console.print(f"  --config.loss.class_weights='({weights})'", markup=False, soft_wrap=True)
    fails = sum(problem.fails for problem in report.problems)
    console.print(f"training would fail: {fails} problems to mend" if fails else "training can read every sample", markup=False)


def _console() -> Console:
    # Without a terminal Rich takes 80 columns, and folds names of files.
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on the terminal while files are read."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
