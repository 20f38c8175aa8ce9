"""The `deeplab-jax data ...` commands. TensorFlow is imported only by the commands that need it."""

import dataclasses
import json
import os
import runpy
import shlex
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import tyro
from etils import epath
from rich.console import Console

from deeplab_jax.buckets import require_scheme
from deeplab_jax.commands.printing import (
    make_table_console,
    make_values_table,
    print_line,
    show_problems,
    show_progress,
    show_report,
)
from deeplab_jax.config import Config, DataConfig
from deeplab_jax.config.validation import validate_fields
from deeplab_jax.errors import ConfigError, DataError, one_line
from deeplab_jax.files import require_file, require_local, write_atomically
from deeplab_jax.labels import LABEL_SETS, LabelSet
from deeplab_jax.labels.files import load_labels, read_labels, write_labels

LABELS_FILE = "labels.json"
_LABEL_SETS_PAGE = "docs/reference/data-formats.md"
Root = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ROOT")]


def synthetic(
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    train: int = 128,
    val: int = 24,
    test: int = 8,
    size: tuple[int, int] = (192, 384),
    seed: int = 0,
) -> None:
    """Draw a small data set of synthetic street scenes in the Cityscapes layout.

    Args:
      out: The folder to create.
      train: The number of training scenes.
      val: The number of validation scenes.
      test: The number of test scenes, which have no labels.
      size: The image height and width in pixels.
      seed: The random seed. A different seed gives different scenes.
    """
    from deeplab_jax.scenes import dataset

    dataset.write(require_local(out, "OUT"), train=train, val=val, test=test, size=size, seed=seed)
    print(f"Wrote {train} training, {val} validation and {test} test scenes to {out}.")


def prepare(
    root: Root,
    out: str,
    splits: tuple[str, ...] = ("train", "val"),
    label_kind: str = "auto",
    data_dir: str = "",
    channels: int = 3,
    value_range: tuple[float, float] | None = None,
    threads: int = 0,
    shard: Annotated[str, tyro.conf.arg(metavar="I/N")] = "",
) -> None:
    """Decode a data set into records, which load much faster in training. To use them, set data.root to the records folder.

    If the command is interrupted, run it again to continue. If the data set changes, run it again to update the records.

    Args:
      root: The data set folder, or tfds:NAME.
      out: The folder to create.
      splits: The splits to prepare.
      label_kind: labelIds, labelTrainIds or color. Only needed if ROOT/labels.json has none, and the kind detected from the
        file names and the first file's header is wrong.
      data_dir: The TFDS data directory for tfds:NAME, if not the default.
      channels: The number of bands in the images. Use the same value as data.channels in training.
      value_range: The values in the files that become 0 and 255. Use the same values as data.value_range in training.
      threads: The number of host threads, or 0 to choose automatically.
      shard: Do one share of the work, with I from 1 to N, and leave the others to N - 1 processes with the same command. The
        default is the share of this task of a SLURM array, and otherwise everything. See docs/how-to/clusters.md.
    """
    from deeplab_jax.data.prepare import prepare as write_records
    from deeplab_jax.runtime.console import make_console
    from deeplab_jax.runtime.work_shard import choose_shard

    _require_threads(threads)
    require_scheme(out, "--out")
    data = _make_data_config(root, label_kind, data_dir)
    if label_kind == "auto" and (folder_labels := find_folder_labels(root)):
        data.label_kind = folder_labels[0].label_kind or "auto"
    data.threads, data.channels, data.value_range = threads, channels, value_range or ()
    validate_fields(Config(data=data))
    share, console = choose_shard(shard, os.environ), make_console()
    if share.count > 1:
        console.print(share.describe())
    write_records(data, out, splits, console, share)


def labels(root: Root, out: str = "", splits: tuple[str, ...] = (), label_kind: str = "auto", threads: int = 0) -> None:
    """Find the values or colours in a data set's masks, and write a label-set file for you to edit.

    Args:
      root: The data set folder, in one of the layouts described in docs/reference/data-formats.md.
      out: The file to write. The default is ROOT/labels.json.
      splits: The splits whose masks to read. The default is train and val. Without train, it is all splits but test.
      label_kind: labelIds, labelTrainIds or color. Only needed if the kind detected from the file names and the first file's
        header is wrong.
      threads: The number of masks to read in parallel. 0 uses one thread per CPU core.
    """
    from deeplab_jax.data.find import describe, find_split, list_splits
    from deeplab_jax.data.layouts import recognize_layout
    from deeplab_jax.data.survey import propose_labels, survey_masks
    from deeplab_jax.data.suspicion import find_questions, find_suspicions

    _require_threads(threads)
    require_scheme(out, "--out")
    path = epath.Path(out) if out else epath.Path(root) / LABELS_FILE
    chosen = splits
    if path.exists():
        raise ConfigError(f"{path} already exists and was not changed. Remove it, or choose a different file with --out.")
    existing = list_splits(root)
    splits = splits or tuple(choose_splits(existing)) or ("train",)
    samples = [find_split(_make_data_config(root, label_kind), split) for split in splits]
    require_file(str(path), "--out")
    console = make_table_console()
    for split, each in zip(splits, samples, strict=True):
        print_line(console, describe(split, each))
        for note in each.notes:
            print_line(console, f"note: {note}")
    with show_progress("masks", sum(len(each) for each in samples)) as advance:
        survey = survey_masks(samples, advance, threads)
    for suspicion in find_suspicions(survey, None, samples[0].kind):
        raise DataError(suspicion)
    layout = recognize_layout(epath.Path(root))
    expected = LABEL_SETS.get(layout.labels) if layout else None
    name = epath.Path(root).resolve().name or "mine"
    proposed, notes = propose_labels(name, survey, samples[0].kind, expected, LABEL_SETS)
    for suspicion in find_suspicions(survey, proposed, samples[0].kind):
        raise DataError(suspicion)
    if label_kind != "auto":
        proposed = dataclasses.replace(proposed, label_kind=label_kind)
    console.print(make_values_table(survey, proposed))
    for problem in survey.problems:
        print_line(console, f"skipped: {problem}")
    for note in (*notes, *find_questions(survey, proposed, samples[0].kind)):
        print_line(console, f"note: {note}")
    write_labels(path, proposed)
    print_line(console, f"Wrote {proposed.num_classes} classes to {path}. Edit their names, then run:")
    check_command, train_command = list_next_commands(root, str(path), label_kind, chosen, existing)
    print_line(console, f"  {shlex.join(check_command)}\n  {shlex.join(train_command)}")


def choose_splits(existing: Sequence[str]) -> list[str]:
    """Return the splits that can be trained on and validated with: train and val, where Train or valid also count as these.

    Without train, it is the first of the other splits, val, and the remaining splits, but not test.

    Args:
      existing: All splits of the data set.
    """
    from deeplab_jax.data.split_names import SPLITS

    def find(usual: str) -> list[str]:
        names = [split for split in existing if SPLITS.get(split.lower()) == usual]
        return [usual] if usual in names else names[:1]

    others = [split for split in existing if split.lower() not in SPLITS]
    training = find("train") or others
    return [*training[:1], *find("val"), *training[1:]] or list(existing)


def list_next_commands(
    root: str, labels: str, label_kind: str, chosen: Sequence[str], existing: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return the commands that check the data set and train on it, with the same label kind and splits.

    Args:
      root: The data set folder.
      labels: The label-set file.
      label_kind: The label kind given by the user, or "auto".
      chosen: The splits given by the user, if any.
      existing: All splits of the data set.
    """
    check_words = ["deeplab-jax", "data", "check", root, "--labels", labels]
    train_words = ["python", "train.py", f"--config=configs/custom_lite0.py:{labels}", f"--config.data.root={root}"]
    if label_kind != "auto":
        check_words += ["--label-kind", label_kind]
        train_words += [f"--config.data.label_kind={label_kind}"]
    splits = list(chosen or choose_splits(existing))
    if splits != ["train", "val"]:
        check_words += ["--splits", *splits]
    if splits and splits[0] != "train":
        train_words += [f"--config.data.train_split={splits[0]}"]
    if splits[1:] and splits[1] != "val":
        train_words += [f"--config.eval.split={splits[1]}"]
    elif splits == ["val"]:  # scores on the training images would mean little
        train_words += ["--config.train.evaluate=False"]
    elif len(splits) == 1 and "val" not in existing:
        train_words += ["--config.data.val_share=0.2"]
    return [*check_words, "--out", "DIR"], [*train_words, "--workdir=RUN"]


def check(
    root: Root,
    labels: str = "",
    splits: tuple[str, ...] = (),
    out: str = "",
    label_kind: str = "auto",
    data_dir: str = "",
    channels: int = 3,
    value_range: tuple[float, float] | None = None,
    threads: int = 0,
) -> None:
    """Open every sample in a data set and report all problems. The exit code is 1 if training would fail.

    Without a label set, only the masks are checked.

    Args:
      root: The data set folder (for layouts, see docs/reference/data-formats.md), a prepared records folder, or tfds:NAME.
      labels: The name of a label set such as cityscapes, a label-set file or a recipe. The default is ROOT/labels.json if it
        exists, and the layout's label set otherwise.
      splits: The splits to check. The default is train and val. Put the training split first, because class weights are
        computed from the first split. The test split does not need labels.
      out: The folder to write check.json and index.html to. index.html shows the results and some of the
        samples.
      label_kind: labelIds, labelTrainIds, color or auto. Use the same value as data.label_kind in training.
      data_dir: The TFDS data directory for tfds:NAME, if not the default.
      channels: The number of bands in the images. If it is not 3, each band's mean and standard deviation are printed.
      value_range: The values in the files that become 0 and 255. Use the same values as data.value_range in training.
      threads: The number of samples to read in parallel. 0 uses one thread per CPU core.
    """
    from deeplab_jax.data import inspection, inspection_report
    from deeplab_jax.data.find import describe
    from deeplab_jax.pages import check as check_page

    _require_threads(threads)
    require_scheme(out, "--out")
    if out and epath.Path(out).exists() and not epath.Path(out).is_dir():
        raise ConfigError(f"`--out` (={out!r}) is a file. Choose a folder.")
    if out:
        require_file(f"{out}/index.html", "--out")
    console = make_table_console()
    data = _make_data_config(root, label_kind, data_dir)
    data.channels, data.value_range = channels, value_range or ()
    validate_fields(Config(data=data))
    label_set = _find_labels(root, labels, console)
    if label_set is None:
        _check_without_labels(console, data, splits, threads)
    if label_kind == "auto":
        data.label_kind = label_set.label_kind or "auto"
    sets, problems = inspection.open_splits(data, splits)
    for split, samples in sets.items():
        print_line(console, describe(split, samples))
    with show_progress("samples", sum(map(len, sets.values()))) as advance:
        report = inspection_report.as_json(inspection.check(sets, label_set, problems, advance, threads), label_set)
    show_report(console, report, label_set, out)
    if out:
        folder = epath.Path(out)
        figures = check_page.draw_examples(inspection.read_examples(sets, label_set), label_set)
        page = check_page.render_page(f"{root}: data check", report, label_set, figures)
        for name, text in (("check.json", json.dumps(report, indent=1)), ("index.html", page)):
            with write_atomically(folder / name) as file:
                file.write(text.encode(errors="backslashreplace"))
        print_line(console, f"Wrote the page {folder / 'index.html'}.")
    sys.exit(1 if report["training_would_fail"] else 0)


def _make_data_config(root: str, label_kind: str, data_dir: str = "") -> DataConfig:
    """Return the data config that training would use to read ROOT.

    Raises:
      ConfigError: ROOT is neither a folder nor tfds:NAME, or `data_dir` is given for a folder.
    """
    source = root if root.startswith("tfds:") else ""
    if not source and not epath.Path(root).is_dir():
        raise ConfigError(f"`ROOT` (={root!r}) is not a folder. Give the data set folder.")
    if data_dir and not source:
        raise ConfigError(f"`--data-dir` (={data_dir!r}) only works with tfds:NAME, but ROOT is {root!r}. Leave it out.")
    return DataConfig(root=data_dir if source else root, source=source, label_kind=label_kind)


def _require_threads(threads: int) -> None:
    if threads < 0:
        raise ConfigError(f"`--threads` (={threads}) is negative. Use 1 or more, or 0 to choose automatically.")


def choose_labels(spec: str) -> LabelSet:
    """Return the label set given by a name, a label-set file (see `load_labels`) or a recipe.

    Raises:
      ConfigError: The file does not exist or does not contain a label set.
    """
    if os.path.isfile(spec) and not spec.endswith((".json", ".py")):  # a recipe is executed, and other files must not be
        raise ConfigError(
            f"The label set {spec!r} is not a .json file or a recipe (.py). Use {', '.join(LABEL_SETS)}, or these."
        )
    if not spec.endswith(".py"):
        return load_labels(spec)
    try:
        config = runpy.run_path(spec)["get_config"]()
    # A recipe is a Python program, so it can raise any error.
    except Exception as error:
        raise ConfigError(
            f"The label set {spec!r} cannot be loaded ({one_line(error)}). "
            f"Use {', '.join(LABEL_SETS)}, a .json file or a recipe."
        ) from None
    if not isinstance(config, Config):
        raise ConfigError(
            f"The recipe {spec!r} returns a value of type {type(config).__name__}. Its get_config() must return a Config."
        )
    return config.labels


def find_folder_labels(root: str) -> tuple[LabelSet, str] | None:
    """Return a data set folder's label set and where it comes from, or None if neither a file nor the layout gives one."""
    from deeplab_jax.data.layouts import recognize_layout

    file = epath.Path(root) / LABELS_FILE
    if file.exists():
        return read_labels(file), f"read from {file}"
    layout = recognize_layout(epath.Path(root)) if root and epath.Path(root).is_dir() else None
    if layout and layout.labels:
        return LABEL_SETS[layout.labels], f"inferred from the {layout.name} folder layout"
    return None


def _find_labels(root: str, spec: str, console: Console) -> LabelSet | None:
    """Return the label set for `spec`, or the data set folder's label set if `spec` is empty.

    If the folder has image files but no label set, return None.
    """
    from deeplab_jax.data.records import is_records

    if spec:
        labels, origin = choose_labels(spec), "given by --labels"
    elif folder_labels := find_folder_labels(root):
        labels, origin = folder_labels
    elif root and epath.Path(root).is_dir() and not is_records(root):
        return None
    else:
        raise ConfigError(
            f"`--labels` is missing, and {root} contains no {LABELS_FILE}. Give the label set (see {_LABEL_SETS_PAGE})."
        )
    print_line(console, f"labels: {labels.name}, {labels.num_classes} classes, {origin}")
    return labels


def _check_without_labels(console: Console, data: DataConfig, splits: Sequence[str], threads: int) -> NoReturn:
    """Report what is wrong with the masks of a data set that has no label set yet, and end with the next command."""
    from deeplab_jax.data.find import describe
    from deeplab_jax.data.inspection import check_masks, open_splits

    sets, problems = open_splits(data, splits)
    for split, samples in sets.items():
        print_line(console, describe(split, samples))
    with show_progress("masks", sum(len(samples.labels) for samples in sets.values())) as advance:
        problems += check_masks(sets, advance, threads)
    show_problems(console, [dataclasses.asdict(problem) for problem in problems])
    words = ["deeplab-jax", "data", "labels", data.root]
    words += ["--label-kind", data.label_kind] if data.label_kind != "auto" else []
    words += ["--splits", *splits] if splits else []
    text = (
        f"`--labels` is missing, and {data.root} contains no {LABELS_FILE}, so only the masks were checked. Write it with "
        f"`{shlex.join(words)}`, or give a label set with --labels (see {_LABEL_SETS_PAGE})."
    )
    if not any(problem.fails for problem in problems):
        raise ConfigError(text)
    print_line(console, f"Training would fail or learn wrong classes. Fix these problems first. {text}")
    sys.exit(1)
