"""The `deeplab-jax data ...` commands. TensorFlow is imported by those that need it."""

import json
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from etils import epath
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from deeplab_jax.config import Config, DataConfig
from deeplab_jax.errors import ConfigError, one_line
from deeplab_jax.files import replacing
from deeplab_jax.labels import LABEL_SETS, LabelSet, color_of
from deeplab_jax.labels.files import load_labels, read_labels, write_labels

if TYPE_CHECKING:
    from deeplab_jax.data.survey import Survey

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
    from deeplab_jax.scenes import dataset

    dataset.write(out, train=train, val=val, test=test, size=size, seed=seed)
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
      label_kind: labelIds, labelTrainIds or color, where the file names and the first file's header mislead.
      data_dir: where tfds:NAME was built, if not in TFDS's own place.
      threads: host threads; 0 for automatic.
    """
    from deeplab_jax.data.prepare import prepare as write_records

    _require_threads(threads)
    data = _data(root, label_kind, data_dir)
    data.threads = threads
    write_records(data, out, splits, Console(soft_wrap=True, highlight=False))


def labels(root: Root, out: str = "", splits: tuple[str, ...] = (), label_kind: str = "auto", threads: int = 0) -> None:
    """Find the values or colours in a data set's masks and write a label-set file to edit.

    Args:
      root: folder of the data set, in one of the layouts of docs/data.md.
      out: file to write; ROOT/labels.json if not given.
      splits: splits whose masks are opened; train and val if not given, or whatever there is.
      label_kind: labelIds, labelTrainIds or color, where the file names and the first file's header mislead.
      threads: masks that are read at once; 0 for as many as there are cores.
    """
    from deeplab_jax.data.find import describe, find_split, list_splits
    from deeplab_jax.data.layouts import recognize_layout
    from deeplab_jax.data.survey import propose_labels, survey_masks

    _require_threads(threads)
    path = epath.Path(out) if out else epath.Path(root) / LABELS_FILE
    if path.exists():
        raise ConfigError(f"{path} exists and is left alone: remove it, or name another file with --out")
    known = list_splits(root)
    splits = splits or tuple(split for split in ("train", "val") if split in known) or tuple(known) or ("train",)
    samples = [find_split(_data(root, label_kind), split) for split in splits]
    console = _console()
    for split, each in zip(splits, samples, strict=True):
        _say(console, describe(split, each))
    with _progress("masks", sum(len(each) for each in samples)) as advance:
        survey = survey_masks(samples, advance, threads)
    layout = recognize_layout(epath.Path(root))
    expected = LABEL_SETS.get(layout.labels) if layout else None
    proposed, notes = propose_labels(epath.Path(root).resolve().name or "mine", survey, expected, LABEL_SETS)
    console.print(_values_table(survey, proposed))
    for problem in survey.problems:
        _say(console, f"left out: {problem}")
    for note in notes:
        _say(console, f"note: {note}")
    write_labels(path, proposed)
    _say(console, f"{proposed.num_classes} classes are in {path}: edit their names, then")
    check_it = shlex.join(["deeplab-jax", "data", "check", root, "--labels", str(path), "--out", "DIR"])
    train = ["python", "train.py", f"--config=configs/custom.py:{path}", f"--config.data.root={root}", "--workdir=RUN"]
    _say(console, f"  {check_it}\n  {shlex.join(train)}")


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
    from deeplab_jax.data import inspection
    from deeplab_jax.data.find import describe
    from deeplab_jax.pages import check as check_page

    _require_threads(threads)
    if out and epath.Path(out).exists() and not epath.Path(out).is_dir():
        raise ConfigError(f"`--out` (={out!r}) is a file: name a folder")
    console = _console()
    sets, problems = inspection.open_splits(_data(root, label_kind, data_dir), splits)
    label_set = _labels_of(root, labels, console)
    for split, samples in sets.items():
        _say(console, describe(split, samples))
    with _progress("samples", sum(map(len, sets.values()))) as advance:
        report = inspection.as_json(inspection.check(sets, label_set, problems, advance, threads), label_set)
    _show_report(console, report, label_set)
    if out:
        folder = epath.Path(out)
        figures = check_page.draw_examples(inspection.read_examples(sets, label_set), label_set)
        page = check_page.page(f"{root}: data check", report, label_set, figures)
        for name, text in (("check.json", json.dumps(report, indent=1)), ("index.html", page)):
            with replacing(folder / name) as file:
                file.write(text.encode(errors="backslashreplace"))
        _say(console, f"the page is {folder / 'index.html'}")
    sys.exit(1 if report["training_would_fail"] else 0)


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


def choose_labels(spec: str) -> LabelSet:
    """Return the label set that `spec` names (see `load_labels`), or that of a recipe.

    Raises:
      ConfigError: there is no such file, or it holds no label set.
    """
    if spec in LABEL_SETS or spec.endswith(".json"):
        return load_labels(spec)
    try:
        config = runpy.run_path(spec)["get_config"]()
    # A recipe is a program, and can fail in any way.
    except Exception as error:
        raise ConfigError(
            f"label set {spec!r} cannot be used ({one_line(error)}): give {', '.join(LABEL_SETS)}, a .json file or a recipe"
        ) from None
    if not isinstance(config, Config):
        raise ConfigError(f"label set {spec!r} is a recipe of a {type(config).__name__}: its get_config() must return a Config")
    return config.labels


def _labels_of(root: str, spec: str, console: Console) -> LabelSet:
    """Return the label set that `spec` names, or else the one that belongs to the folder."""
    from deeplab_jax.data.layouts import recognize_layout

    file = epath.Path(root) / LABELS_FILE
    layout = recognize_layout(epath.Path(root)) if root and epath.Path(root).is_dir() else None
    if spec:
        labels, why = choose_labels(spec), "as asked"
    elif file.exists():
        labels, why = read_labels(file), f"from {file}"
    elif layout and layout.labels:
        labels, why = LABEL_SETS[layout.labels], f"since the folders are those of {layout.name}"
    elif root and not root.startswith("tfds:") and not epath.Path(root).is_dir():
        raise ConfigError(f"`ROOT` (={root!r}) is no folder: give that of the data set")
    else:
        raise ConfigError(
            f"`--labels` (='') is not given and {root} has no {LABELS_FILE}: run `deeplab-jax data labels {root}`, or give "
            f"--labels {', '.join(LABEL_SETS)}, a .json file or a recipe"
        )
    _say(console, f"labels: {labels.name}, {labels.num_classes} classes, {why}")
    return labels


def _values_table(survey: "Survey", proposed: LabelSet) -> Table:
    from deeplab_jax.data.survey import show_value
    from deeplab_jax.pages.check import share

    total = sum(each.pixels for each in survey.values.values())
    table = Table("colour" if survey.is_color else "value", "class", "pixels", "share", "files", "most in")
    names = {color: name for name, color in zip(proposed.names, proposed.colors, strict=True)}
    by_id = dict(zip(proposed.class_ids, proposed.names, strict=True))
    for value, each in survey.values.items():
        color = color_of(value)
        name = names.get(color, "ignored") if survey.is_color else by_id.get(value, "ignored")
        # A value that few pixels have is more often a slip of the pen than a class.
        rare = " (rare)" * (each.pixels < 1e-5 * total)
        chip = Text("  ", f"on rgb({color[0]},{color[1]},{color[2]})") + Text(" ") if survey.is_color else Text()
        cells = (name + rare, f"{each.pixels:,}", share(each.pixels, total), f"{each.files:,}", each.example)
        table.add_row(chip + Text(show_value(value, survey.is_color)), *map(Text, cells))
    return table


LISTED = 5  # problems of a sort that are printed


def _show_report(console: Console, report: Mapping[str, Any], labels: LabelSet) -> None:
    """Print what check.json holds."""
    from deeplab_jax.pages.check import class_cells, ignored_share

    splits, problems = report["splits"], report["problems"]
    table = Table("class", *(f"{word} of {split}" for split in splits for word in ("pixels", "images")))
    for name in labels.names:
        table.add_row(Text(name), *class_cells(splits, name))
    if splits:
        console.print(table)
    for name, split in splits.items():
        sizes = ", ".join(f"{size} ({n})" for size, n in list(split["sizes"].items())[:3])
        more = f" and {len(split['sizes']) - 3} more sizes" if len(split["sizes"]) > 3 else ""
        files = {"images": split["image_modes"], "labels": split["label_modes"]}
        modes = "".join(f"; {what} {', '.join(names)}" for what, names in files.items() if names)
        _say(console, f"{name}: {sizes}{more}{modes}; {ignored_share(split)} of the pixels ignored")
    for sort in dict.fromkeys(problem["sort"] for problem in problems):
        same = [problem for problem in problems if problem["sort"] == sort]
        _say(console, f"{'ERROR' if same[0]['fails'] else 'note'}: {sort}, {len(same)}")
        for problem in same[:LISTED]:
            _say(console, f"  {problem['text']}")
        if len(same) > LISTED:
            _say(console, f"  and {len(same) - LISTED} more: --out DIR lists them in DIR/check.json")
    for split, weights in report["class_weights"].items():
        _say(console, f"weights for rare classes from {split} (ENet, arXiv 1606.02147), if you want them:")
        _say(console, f"  --config.loss.class_weights='({','.join(f'{weight:g}' for weight in weights)})'")
    fails = sum(problem["fails"] for problem in problems)
    _say(console, f"training would fail: {fails} problems to fix" if fails else "training can read every sample")


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)


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
