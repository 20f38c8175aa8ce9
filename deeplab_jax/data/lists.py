"""Which image goes with which label: `.lst` files or the folders, and how label files encode classes. No pixels are read."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from deeplab_jax.data.layouts import Pair, lines_of, not_found, recognized, scan
from deeplab_jax.errors import DataError, one_line
from deeplab_jax.labels import LabelSet

KINDS = ("labelIds", "labelTrainIds", "color")
RGB, PALETTE, RGBA = 2, 3, 6  # colour types in a PNG's header


@dataclasses.dataclass(frozen=True, slots=True)
class Samples:
    """One split of a data set, in list order.

    Attributes:
      root: the folder that the names are relative to.
      images: image files, relative to `root`.
      labels: label files, relative to `root`; empty for a split without labels.
      kind: how the label files encode classes.
      source: where the names come from, for messages.
      store: how the samples are read, if not as image files: a `sources.Store`.
    """

    root: str
    images: tuple[str, ...]
    labels: tuple[str, ...]
    kind: str
    source: str
    store: Any = None

    def __len__(self) -> int:
        return len(self.images)


def find_samples(root: str, split: str, kind: str = "auto", *, need_labels: bool = True) -> Samples:
    """The samples of `split`: from `list/<split>.lst`, or else from the folders (layouts.py).

    Args:
      root: local path or URL that `epath` opens.
      split: "train", "val" or another name of a list or folder; "train+val" is one after the other.
      kind: how label files encode classes; "auto" reads it off their names, or else off the first file's header.
      need_labels: whether a split without labels is an error.

    Raises:
      DataError: the folder or list is missing or empty, a line cannot be read, files are missing or in two of the splits
        joined, or the kind is unclear.
    """
    folder = epath.Path(root)
    if not root:
        raise DataError("`data.root` (='') names no folder: give the data set's with --config.data.root=FOLDER")
    if not folder.is_dir():
        raise DataError(
            f"`data.root` (={root!r}) is no folder: give the one that holds list/ and the images with --config.data.root=FOLDER"
        )
    pairs, source = _joined(folder, split, kind)
    labelled = [pair for pair in pairs if pair[1]]
    if labelled and len(labelled) < len(pairs):
        alone = next(image for image, label in pairs if not label)
        raise DataError(
            f"{source} names labels for {len(labelled)} of {len(pairs)} images, none for {alone!r}: give all or none"
        )
    if need_labels and not labelled:
        raise DataError(f"{source} names images without labels: split {split!r} needs `image label` on each line")
    images, labels = tuple(image for image, _ in pairs), tuple(label for _, label in labelled)
    _require_files(folder, images + labels, source)
    return Samples(root, images, labels, _kind(folder, labels, kind, source), source)


def splits_of(root: str) -> list[str]:
    """Names of the splits that a folder holds: of its lists, then of its folders."""
    folder = epath.Path(root)
    lists = (
        sorted(path.stem for path in (folder / "list").iterdir() if path.suffix == ".lst") if (folder / "list").is_dir() else []
    )
    layout = recognized(folder) if folder.is_dir() else None
    return list(dict.fromkeys(lists + (layout.splits(folder) if layout else [])))


def _joined(folder: epath.Path, split: str, kind: str) -> tuple[list[Pair], str]:
    """The pairs of the splits that `split` joins with "+", in that order, and where they come from."""
    parts = split.split("+")
    found = [_one_split(folder, part, kind) for part in parts]
    seen: dict[str, str] = {}
    for part, (pairs, _) in zip(parts, found, strict=True):
        twice = next((image for image, _ in pairs if image in seen), None)
        if twice:
            raise DataError(f"split {split!r}: {twice} is in {seen[twice]} and in {part}: name only one, or mend the lists")
        seen.update((image, part) for image, _ in pairs)
    return [pair for pairs, _ in found for pair in pairs], " and ".join(dict.fromkeys(source for _, source in found))


def _one_split(folder: epath.Path, split: str, kind: str) -> tuple[list[Pair], str]:
    listing = folder / "list" / f"{split}.lst"
    if listing.exists():
        pairs, source = list(read_list(listing)), str(listing)
        if not pairs:
            raise DataError(f"no samples of split {split!r} in {source}: name images in it, or remove it to use the folders")
        return pairs, source
    layout, pairs = scan(folder, split, kind)
    if layout is None:
        raise DataError(not_found(folder, split))
    source = f"the {layout.name} folders of {folder} (there is no list/{split}.lst)"
    if not pairs:
        raise DataError(f"no samples of split {split!r} in {source}: put images there, {layout.shape.replace('SPLIT', split)}")
    return pairs, source


def describe(split: str, samples: Samples) -> str:
    """What was found, in a line."""
    palette = samples.labels and samples.store is None and _png_colors(epath.Path(samples.root) / samples.labels[0]) == PALETTE
    labels = f"labels of kind {samples.kind}" + " (palette indices)" * bool(palette and samples.kind != "color")
    return f"{split}: {len(samples)} samples from {samples.source}, {labels if samples.labels else 'no labels'}"


def digest(samples: Samples) -> str:
    """SHA-256 of the names in order and of the kind: equal for one list, wherever the data set lies."""
    names = json.dumps([samples.kind, samples.images, samples.labels])
    return hashlib.sha256(names.encode()).hexdigest()


def read_list(path: epath.Path) -> Iterator[tuple[str, str]]:
    """(image, label) of each line of a `.lst` file; label "" where there is one column.

    Columns are separated by a tab, else by spaces; blank lines, `\\r\\n` and a byte order mark are accepted.

    Raises:
      DataError: the file is not UTF-8; a line, named by its number, has more than two columns or leaves the root.
    """
    for number, line in enumerate(lines_of(path), start=1):
        columns = [c.strip() for c in line.split("\t") if c.strip()] if "\t" in line else line.split()
        if not columns:
            continue
        if len(columns) > 2:
            raise DataError(
                f"{path}, line {number}: {len(columns)} columns; write `image`, or `image<TAB>label` if names hold spaces"
            )
        for name in columns:
            if name.startswith("/") or ".." in name.split("/"):
                raise DataError(f"{path}, line {number}: {name!r} leaves the root; names are relative to it")
        yield columns[0], columns[1] if len(columns) == 2 else ""


def missing_files(root: epath.Path, names: Sequence[str]) -> list[str]:
    """Those of `names`, relative to `root`, that do not exist."""
    # One listing a folder instead of one request a file: 6,000 requests to object storage take minutes.
    present: set[str] = set()
    for parent in sorted({str(epath.Path(name).parent) for name in names}):
        folder = root / parent
        if folder.is_dir():
            present.update(str(epath.Path(parent) / p.name) for p in folder.iterdir())
    return [name for name in names if str(epath.Path(name)) not in present]


def _require_files(root: epath.Path, names: tuple[str, ...], source: str) -> None:
    missing = missing_files(root, names)
    if missing:
        some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(f"{len(missing)} of {len(names)} files that {source} names are missing below {root}: {some}")


def _kind(root: epath.Path, labels: tuple[str, ...], kind: str, source: str) -> str:
    if kind != "auto" or not labels:
        return "labelIds" if kind == "auto" else kind
    told = {_kind_of_name(label): label for label in reversed(labels)}
    if "" in told:
        # One file speaks for all: a file of another kind is an error where it is read.
        first = told.pop("")
        told["color" if _png_colors(root / first) in (RGB, RGBA) else "labelIds"] = first
    if len(told) > 1:
        raise DataError(f"{source} mixes labels of the kinds {', '.join(sorted(told))}: use one kind, or set data.label_kind")
    return next(iter(told))


def _kind_of_name(name: str) -> str:
    """The `_gtFine_<kind>` of a Cityscapes file; "" for any other name."""
    return next((kind for kind in KINDS if re.search(rf"_{kind}\.\w+$", name)), "")


def _png_colors(path: epath.Path) -> int | None:
    """The colour type in a PNG's header; None for another file."""
    try:
        with path.open("rb") as file:
            header = file.read(26)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({one_line(error)}): replace it or take it off the list") from None
    return header[25] if len(header) == 26 and header.startswith(b"\x89PNG") else None


def value_table(kind: str, labels: LabelSet) -> np.ndarray:
    """int16 table from a label file's values to train ids, 255 or `labels.UNKNOWN`; `color` is indexed by 24-bit colour."""
    return {"labelIds": labels.id_table, "labelTrainIds": labels.train_id_table, "color": labels.color_table}[kind]()
