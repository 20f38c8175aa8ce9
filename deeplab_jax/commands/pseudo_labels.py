"""Write pseudo-labels for `deeplab-jax predict --as-labels`: find out what the data set needs, and report what was kept."""

import os
import shlex
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deeplab_jax.api import Segmenter
from deeplab_jax.commands.data import find_folder_labels
from deeplab_jax.commands.printing import make_table_console
from deeplab_jax.config import DataConfig
from deeplab_jax.data.find import find_samples, list_splits
from deeplab_jax.data.records import is_records
from deeplab_jax.data.samples import diagnose, make_value_table
from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.files import require_local
from deeplab_jax.labels import LabelSet
from deeplab_jax.predict import pseudo_labels
from deeplab_jax.predict.images import Options, run
from deeplab_jax.predict.inputs import Input, is_video
from deeplab_jax.predict.pseudo_labels import PseudoLabel
from deeplab_jax.runtime.work_shard import Join, MixedWorkError


def write_split(
    segmenter: Segmenter,
    inputs: Sequence[Input],
    options: Options,
    min_confidence: float,
    console: Console,
    fail: Callable[[str], None],
    join: Join,
) -> int:
    """Predict images, write the confident pixels as the labels of a new split, and print what was kept.

    Args:
      segmenter: The network to run.
      inputs: The images.
      options: The batching options. Its `out` is the data set folder and the name of the new split, such as ROOT/pseudo.
      min_confidence: The smallest probability of a pixel's class for which the pixel gets a label.
      console: The console for progress and the summary.
      fail: A function called with a one-line message for each failed input.
      join: Joins the labels of several processes. The last one writes the list and prints what all of them kept.

    Returns:
      The number of inputs in `options.shard`.

    Raises:
      ConfigError: `out` is not a new split of the data set that the network was trained on, the network's classes are not those
        of the data set, or no pixel was kept.
      DataError: An image is already in one of the run's splits or not below the data set folder, or a label or list exists that
        this command did not write.
    """
    out = Path(os.path.abspath(require_local(options.out, "--out")))
    root, split = out.parent, out.name
    kind = _prepare_split(root, split, segmenter, inputs)
    data_labels, _ = find_folder_labels(str(root)) or (None, "")
    values = pseudo_labels.value_of_train_id(segmenter.label_set, kind, data_labels)
    files = pseudo_labels.name_files(inputs, root, split, kind)
    pseudo_labels.require_replaceable(root, [label for _, label in files.values()])
    listing = pseudo_labels.list_path(root, split)
    join.withdraw()
    listing.unlink(missing_ok=True)  # written last, so that an interrupted command does not leave a split with some old labels
    written: list[PseudoLabel] = []
    classes = segmenter.label_set.num_classes
    output = pseudo_labels.make_output(files, root, values, classes, min_confidence, written)
    share = run(segmenter, inputs, options, console, fail, output)
    results = [each.to_json() for each in written]
    try:
        shards = join.finish(results, share.plan, lambda line: console.print(f"{line} The last one to end writes {listing}."))
    except MixedWorkError:
        listing.unlink(missing_ok=True)  # the other command's, some of whose labels this one has replaced
        raise
    written = [PseudoLabel.from_json(values) for each in shards or () for values in each]
    if not written:
        return share.count
    if removed := [each.label for each in written if not (root / each.label).exists()]:
        raise ConfigError(f"{root / removed[0]} has been removed since it was written. Run the command again for all shards.")
    _print_summary(segmenter.label_set, written, min_confidence)
    if not any(each.kept.any() for each in written):
        raise ConfigError(
            f"`--min-confidence` (={min_confidence:g}) keeps no pixel, so {listing} was not written. Use a smaller probability."
        )
    pseudo_labels.write_list(root, split, written)
    splits = [*_list_other_splits(segmenter.config.data, split), split]
    shares = ", with an equal share of each split in every batch" if len(splits) > 1 else ""
    console.print(f"Wrote {listing}. To train on it{shares}:")
    console.print(f"  {_list_flags(root, splits)}")
    return share.count


def _list_flags(root: Path, splits: Sequence[str]) -> str:
    """Return the train.py flags that train on the splits, with an equal share of each in every batch if there are several."""
    flags: dict[str, Any] = {"root": root, "train_split": "+".join(splits)}
    if len(splits) > 1:  # `data.mix` of a single split is refused
        flags["mix"] = f"({','.join('1' * len(splits))})"
    return shlex.join(f"--config.data.{field}={value}" for field, value in flags.items())


def _prepare_split(root: Path, split: str, segmenter: Segmenter, inputs: Sequence[Input]) -> str:
    """Return how the data set's label files encode classes, after checking that the new split fits the data set."""
    data, flag = segmenter.config.data, f"`--out` (={str(root / split)!r})"
    if videos := [each.path for each in inputs if is_video(each.path)]:
        raise ConfigError(f"{videos[0]} is a video, which cannot be a part of a split. Save its frames as images first.")
    if is_records(str(root)):
        raise ConfigError(f"{flag} is in prepared records. Give a split of the original data set, and prepare it afterwards.")
    existing = list_splits(str(root))
    labelled = _list_other_splits(data, split) or [split]
    missing = [part for part in labelled if part not in existing]
    if missing:
        raise ConfigError(
            f"{flag} must be a data set folder and the name of a new split, such as ROOT/pseudo, but {root} has no split "
            f"{missing[0]!r}, which the network was trained on."
        )
    folder = os.path.realpath(root / split)
    if among := [each.path for each in inputs if Path(os.path.realpath(each.path.parent)).is_relative_to(folder)]:
        raise ConfigError(
            f"{flag} is a folder with images to predict, such as {among[0]}. The same command would later take the labels for "
            "images. Choose another name for the split."
        )
    if "+" in split:
        raise ConfigError(f"{flag} has a plus sign in its name, which joins splits. Choose another name.")
    if split in existing and not pseudo_labels.is_written_list(pseudo_labels.list_path(root, split)):
        raise ConfigError(
            f"{flag} is a split that this command did not write, or that was edited since, so it is not overwritten. "
            "Choose another name."
        )
    used = [*labelled, *segmenter.config.eval.split.split("+")]
    _require_new_images(root, [part for part in existing if part != split], used, data.label_kind, inputs)
    samples = find_samples(str(root), "+".join(labelled), data.label_kind)
    _require_same_classes(str(root), segmenter.label_set, samples.kind)
    # The first file shows label sets that differ, where neither the layout nor a file says so.
    if error := diagnose(samples, make_value_table(samples.kind, segmenter.label_set), 0):
        raise error
    return samples.kind


def _list_other_splits(data: DataConfig, split: str) -> list[str]:
    """Return the training splits of a run, except for the one that is written."""
    return [part for part in data.train_split.split("+") if part != split]


def _require_new_images(root: Path, splits: Sequence[str], used: Sequence[str], kind: str, inputs: Sequence[Input]) -> None:
    """Check that no input, or file that an input links to, is in a split with labels or in one that the run uses."""
    paths = {os.path.realpath(each.path): each.path for each in inputs}
    for split in splits:
        for image in _list_images(root, split, kind, is_used=split in used):
            if path := paths.get(os.path.realpath(root / image)):
                raise DataError(
                    f"{path} is already in the split {split!r}, as {image}. "
                    "Predict only images that are in no split with labels."
                )


def _list_images(root: Path, split: str, kind: str, *, is_used: bool) -> tuple[str, ...]:
    """Return the images of a split. If the run does not use it, leave out images without labels made by hand."""
    if is_used:
        return find_samples(str(root), split, kind, need_labels=False).images
    if pseudo_labels.is_written_list(pseudo_labels.list_path(root, split)):
        return ()
    try:
        return find_samples(str(root), split, kind).images
    except DataError:  # no labels, or a split that can neither be trained nor evaluated on
        return ()


def _require_same_classes(root: str, labels: LabelSet, kind: str) -> None:
    """Check that the classes of a network are those of a data set, or merged from them."""
    folder_labels = find_folder_labels(root)
    if folder_labels is None:
        return
    expected, origin = folder_labels
    if not fits(labels, expected, kind):
        raise ConfigError(
            f"The network's label set {labels.name} ({labels.num_classes} classes) does not fit {expected.name} "
            f"({expected.num_classes} classes), {origin}. Use a network that was trained on these classes."
        )


def fits(labels: LabelSet, expected: LabelSet, kind: str) -> bool:
    """Return whether label files have the same meaning in two label sets, except that classes can be merged or ignored.

    Args:
      labels: The label set with the same classes or fewer.
      expected: The label set with all classes.
      kind: How the label files encode classes: "labelIds", "labelTrainIds" or "color".
    """
    if kind == "labelTrainIds":
        return labels.names == expected.names
    groups: Sequence[tuple[Any, ...]]
    whole: Sequence[tuple[Any, ...]]
    defined: Collection[Any]
    if kind == "color":
        groups, whole, defined = labels.colors_by_class, expected.colors_by_class, labels.train_id_of_color()
    else:
        groups, whole, defined = labels.ids_by_class, expected.ids_by_class, labels.train_id_of_id()
    if labels.names == expected.names:
        return [*map(set, groups)] == [*map(set, whole)]
    values = {value for group in whole for value in group}
    is_known = {value for group in groups for value in group} <= values
    return is_known and values <= set(defined) and labels.num_classes < expected.num_classes


def _print_summary(label_set: LabelSet, written: Sequence[PseudoLabel], min_confidence: float) -> None:
    predicted, kept = (np.sum([getattr(each, name) for each in written], axis=0) for name in ("predicted", "kept"))
    table = Table("class", "predicted pixels", "kept")
    for name, count, rest in zip(label_set.names, predicted, kept, strict=True):
        table.add_row(Text(name), f"{count / predicted.sum():.2%}", f"{rest / count:.1%}" if count else "-")
    console = make_table_console()
    console.print(table)
    share = kept.sum() / predicted.sum()
    count = f"{len(written)} image{'s' * (len(written) > 1)}"
    console.print(f"Kept {share:.1%} of the pixels of {count}: those with a probability of {min_confidence:g} or more.")
