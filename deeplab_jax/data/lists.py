"""Which image goes with which label: `.lst` files, folder scans, and how label files encode classes. No pixels are read.

Two layouts are known: Cityscapes (`leftImg8bit/ gtFine/ list/`) and custom (`input/ target/ list/`).
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from deeplab_jax.errors import DataError
from deeplab_jax.labels import LabelSet

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
KINDS = ("labelIds", "labelTrainIds", "color")


@dataclasses.dataclass(frozen=True, slots=True)
class Samples:
    """One split of a data set, in list order.

    Attributes:
      root: the folder that the names are relative to.
      images: image files, relative to `root`.
      labels: label files, relative to `root`; empty for a split without labels.
      kind: how the label files encode classes.
      source: where the names come from, for messages.
    """

    root: str
    images: tuple[str, ...]
    labels: tuple[str, ...]
    kind: str
    source: str

    def __len__(self) -> int:
        return len(self.images)


def find_samples(root: str, split: str, kind: str = "auto", *, need_labels: bool = True) -> Samples:
    """The samples of `split`: from `list/<split>.lst`, or else from the folders.

    Args:
      root: local path or URL that `epath` opens.
      split: "train", "val" or another name of a list or folder.
      kind: how label files encode classes; "auto" reads it off their names.
      need_labels: whether a split without labels is an error.

    Raises:
      DataError: the folder or list is missing or empty, a line cannot be read, files are missing, or the kind is unclear.
    """
    folder = epath.Path(root)
    if not root:
        raise DataError("`data.root` (='') names no folder: give the data set's with --config.data.root=FOLDER")
    if not folder.is_dir():
        raise DataError(
            f"`data.root` (={root!r}) is no folder: give the one that holds list/ and the images with --config.data.root=FOLDER"
        )
    listing = folder / "list" / f"{split}.lst"
    if listing.exists():
        pairs = list(read_list(listing))
        source = str(listing)
    else:
        pairs = list(_scan(folder, split, kind))
        source = f"the folders of {root} (there is no {listing.relative_to(folder)})"
    if not pairs:
        raise DataError(
            f"no samples of split {split!r} in {source}: name images in {listing}, or put them where README.md says"
        )
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
    return Samples(root, images, labels, _kind(labels, kind, source), source)


def describe(split: str, samples: Samples) -> str:
    """What was found, in a line."""
    labels = f"labels of kind {samples.kind}" if samples.labels else "no labels"
    return f"{split}: {len(samples)} samples from {samples.source}, {labels}"


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
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from None
    for number, line in enumerate(lines, start=1):
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


def _scan(root: epath.Path, split: str, kind: str) -> Iterator[tuple[str, str]]:
    if (root / "leftImg8bit" / split).is_dir():
        wanted = "labelIds" if kind == "auto" else kind
        for image in _images_below(root / "leftImg8bit" / split):
            name = str(image.relative_to(root / "leftImg8bit"))
            label = "gtFine/" + re.sub(r"_leftImg8bit(\.\w+)$", f"_gtFine_{wanted}.png", name)
            yield f"leftImg8bit/{name}", label if (root / "gtFine" / split).is_dir() else ""
        return
    inputs = root / "input" / split if (root / "input" / split).is_dir() else root / "input"
    if not inputs.is_dir() or (inputs.name == "input" and split != "train"):
        return
    targets = root / "target" / inputs.relative_to(root / "input")
    labels = {str(p.relative_to(targets).with_suffix("")): p for p in _images_below(targets)} if targets.is_dir() else {}
    for image in _images_below(inputs):
        stem = image.relative_to(inputs).with_suffix("")
        # An image without its label is then reported as a missing file, not dropped.
        target = labels.get(str(stem), targets / stem.with_suffix(".png")) if labels else None
        yield str(image.relative_to(root)), str(target.relative_to(root)) if target else ""


def _images_below(folder: epath.Path) -> list[epath.Path]:
    files = (parent / name for parent, _, names in folder.walk() for name in names)
    return sorted(path for path in files if path.suffix.lower() in IMAGE_SUFFIXES)


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


def _kind(labels: tuple[str, ...], kind: str, source: str) -> str:
    if kind != "auto":
        return kind
    found = {_kind_of_name(label) for label in labels} or {"labelIds"}
    if len(found) > 1:
        raise DataError(f"{source} mixes labels of the kinds {', '.join(sorted(found))}: use one kind, or set data.label_kind")
    return found.pop()


def _kind_of_name(name: str) -> str:
    """The `_gtFine_<kind>` of a Cityscapes file; any other name holds ids."""
    return next((kind for kind in KINDS if re.search(rf"_{kind}\.\w+$", name)), "labelIds")


def value_table(kind: str, labels: LabelSet) -> np.ndarray:
    """int16 table from a label file's values to train ids, 255 or `labels.UNKNOWN`; `color` is indexed by 24-bit colour."""
    return {"labelIds": labels.id_table, "labelTrainIds": labels.train_id_table, "color": labels.color_table}[kind]()
