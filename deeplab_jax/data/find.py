"""Finds the samples of a split: by `.lst` files or folders of images, in prepared records, or in TensorFlow Datasets.

No pixels are read.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence

from etils import epath

from deeplab_jax.config import DataConfig
from deeplab_jax.data import records
from deeplab_jax.data.image_files import ImageFiles
from deeplab_jax.data.layouts import explain_missing_split, find_layout, recognize_layout
from deeplab_jax.data.layouts.layout import Pair
from deeplab_jax.data.ranges import File, stat_file
from deeplab_jax.data.samples import Samples, read_list, require_disjoint
from deeplab_jax.data.tfds import find_tfds
from deeplab_jax.errors import DataError, one_line

TFDS = "tfds:"
KINDS = ("labelIds", "labelTrainIds", "color")
RGB, PALETTE, RGBA = 2, 3, 6  # colour types in a PNG's header


def find_split(data: DataConfig, split: str, *, need_labels: bool = True) -> Samples:
    """Return the samples of `split`, in list order; "train+val" is one after the other.

    Raises:
      DataError: see `find_samples`; or records do not fit their source any more.
    """
    if data.source:
        return find_tfds(data.source.removeprefix(TFDS), data.root, split, data.label_kind)
    if not records.is_records(data.root):
        try:
            return find_samples(data.root, split, data.label_kind, need_labels=need_labels)
        except DataError:
            if records.is_begun(data.root):
                message = f"`data.root` (={data.root!r}) holds records that are not complete: run `data prepare` to its end"
                raise DataError(message) from None
            raise
    manifest_file = stat_file(str(epath.Path(data.root) / records.MANIFEST))
    samples = _find_prepared(data.root, split, manifest_file, need_labels=need_labels)
    if data.label_kind in ("auto", samples.kind):
        return samples
    if not samples.labels:
        return dataclasses.replace(samples, kind=data.label_kind)
    raise DataError(
        f"`data.label_kind` (={data.label_kind!r}) is not that of the records in {data.root} ({samples.kind}): "
        "leave it at auto, or prepare the records again"
    )


@functools.cache
def _find_prepared(root: str, split: str, version: File, *, need_labels: bool) -> Samples:
    """Kept for the process while the manifest stays: a run asks for its training list more than once."""
    manifest = records.read_manifest(root)
    samples = records.find_records(manifest, root, split, need_labels=need_labels)
    _require_fresh(manifest, split, samples)
    return samples


def _require_fresh(manifest: records.Manifest, split: str, samples: Samples) -> None:
    """Compare a split of records with its source, if that is a folder at hand.

    A file whose size and time of change are as they were counts as unchanged; of another one the content decides.

    Raises:
      DataError: the source's list or the content of a file is another.
    """
    source = manifest.source
    if not _is_at_hand(source):
        return
    try:
        now = find_samples(source, split, samples.kind, need_labels=bool(samples.labels))
        if (now.images, now.labels) != (samples.images, samples.labels):
            raise DataError(f"{now.source} has {len(now)} samples, not the {len(samples)} prepared, or others")
        changed = records.changed_images(samples, now)
    except DataError as error:
        raise DataError(f"{samples.source} are stale ({error}): {records.prepare_again(manifest, samples.root)}") from None
    if changed:
        some = f"{len(changed)} of {len(samples)} samples changed in {source}, {changed[0]} among them"
        raise DataError(f"{samples.source} are stale ({some}): {records.prepare_again(manifest, samples.root)}")


def _is_at_hand(source: str) -> bool:
    """Whether the source can be asked at no great cost: not over a network, not where nothing is mounted."""
    if source.startswith(TFDS) or "://" in source:
        return False
    try:
        return next(epath.Path(source).iterdir(), None) is not None
    except OSError:
        return False


def find_samples(root: str, split: str, kind: str = "auto", *, need_labels: bool = True) -> Samples:
    """Return the samples of `split`: from `list/<split>.lst`, or else from the folders (layouts/).

    Args:
      root: local path or URL that `epath` opens.
      split: "train", "val" or another name of a list or folder; "train+val" is one after the other.
      kind: how label files encode classes; "auto" is the layout's kind, or read off the files' names, or else off the first
        file's header.
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
    parts = [_find_part(folder, part, kind) for part in split.split("+")]
    require_disjoint(f"split {split!r}", [(part.split, [image for image, _ in part.pairs]) for part in parts])
    pairs = [pair for part in parts for pair in part.pairs]
    source = " and ".join(dict.fromkeys(part.source for part in parts))
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
    kind = _agree_on_kind(folder, parts, source) if labels else "labelIds" if kind == "auto" else kind
    return Samples(root, images, labels, kind, source, ImageFiles())


def list_splits(root: str) -> list[str]:
    """Return the names of the splits that a folder holds: of its lists, then of its folders."""
    folder = epath.Path(root)
    lists = folder / "list"
    listed = sorted(path.stem for path in lists.iterdir() if path.suffix == ".lst") if lists.is_dir() else []
    layout = recognize_layout(folder) if folder.is_dir() else None
    return list(dict.fromkeys(listed + (layout.splits(folder) if layout else [])))


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """One of the splits that are joined: its pairs, where they come from, and how its labels encode classes, or "auto"."""

    split: str
    pairs: list[Pair]
    source: str
    kind: str


def _find_part(folder: epath.Path, split: str, kind: str) -> _Part:
    listing = folder / "list" / f"{split}.lst"
    if listing.exists():
        part = _Part(split, list(read_list(listing)), str(listing), kind)
        advice = "name images in it, or remove it to use the folders"
    else:
        layout = find_layout(folder, split)
        if layout is None:
            raise DataError(explain_missing_split(folder, split))
        source = f"the {layout.name} folders of {folder} (there is no list/{split}.lst)"
        pairs = list(layout.pairs(folder, split, kind))
        part = _Part(split, pairs, source, layout.label_kind if kind == "auto" else kind)
        advice = f"put images there, {layout.shape.replace('SPLIT', split)}"
    if not part.pairs:
        raise DataError(f"no samples of split {split!r} in {part.source}: {advice}")
    return part


def describe(split: str, samples: Samples) -> str:
    """Return what a split consists of, in a line."""
    labels = f"labels of kind {samples.kind}" if samples.labels else "no labels"
    if samples.labels and samples.kind != "color" and isinstance(samples.store, ImageFiles):
        labels += " (palette indices)" * (_png_colors(samples.root, samples.labels[0]) == PALETTE)
    return f"{split}: {len(samples)} samples from {samples.source}, {labels}"


def missing_files(root: epath.Path, names: Sequence[str]) -> list[str]:
    """Return those of `names`, relative to `root`, that do not exist."""
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


def _agree_on_kind(root: epath.Path, parts: Sequence[_Part], source: str) -> str:
    """Return the one kind of all labels."""
    example = {
        _kind_of_name(label) if part.kind == "auto" else part.kind: label
        for part in reversed(parts)
        for _, label in reversed(part.pairs)
    }
    if "" in example:
        # One file speaks for all: a file of another kind is an error where it is read.
        first = example.pop("")
        example["color" if _png_colors(str(root), first) in (RGB, RGBA) else "labelIds"] = first
    if len(example) > 1:
        kinds = ", ".join(sorted(example))
        raise DataError(f"{source} mixes labels of the kinds {kinds}: use one kind, or set data.label_kind")
    return next(iter(example))


def _kind_of_name(name: str) -> str:
    """Return the `_gtFine_<kind>` of a Cityscapes file; "" for any other name."""
    return next((kind for kind in KINDS if re.search(rf"_{kind}\.\w+$", name)), "")


def _png_colors(root: str, name: str) -> int | None:
    """Return the colour type in a PNG's header; None for another file."""
    path = epath.Path(root) / name
    try:
        with path.open("rb") as file:
            header = file.read(26)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({one_line(error)}): replace it or take it off the list") from None
    return header[25] if len(header) == 26 and header.startswith(b"\x89PNG") else None
