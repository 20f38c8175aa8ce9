"""Find a split's samples in `.lst` files, image folders, prepared records or TensorFlow Datasets.

This module does not read any pixels.
"""

import collections
import dataclasses
import difflib
import functools
import os
import posixpath
import re
import unicodedata
from collections.abc import Collection, Sequence

from etils import epath

from deeplab_jax.buckets import is_url, require_scheme
from deeplab_jax.config import DataConfig
from deeplab_jax.data import records
from deeplab_jax.data.decode import IMAGE_SUFFIXES, LOSSY_MASKS, LOSSY_SUFFIXES, MASK_SUFFIXES
from deeplab_jax.data.folders import is_visible, list_names
from deeplab_jax.data.freshness import find_changed_images
from deeplab_jax.data.holdout import hold_out
from deeplab_jax.data.image_files import ImageFiles, read_mode
from deeplab_jax.data.layouts import explain_missing_split, find_layout, recognize_layout
from deeplab_jax.data.layouts.layout import Pair
from deeplab_jax.data.layouts.pairing import note_swapped_masks
from deeplab_jax.data.lists import read_list
from deeplab_jax.data.ranges import File, stat_file
from deeplab_jax.data.samples import Samples, require_disjoint
from deeplab_jax.data.tfds import find_tfds
from deeplab_jax.errors import DataError, summarize

TFDS = "tfds:"
KINDS = ("labelIds", "labelTrainIds", "color")


def find_split(data: DataConfig, split: str, *, need_labels: bool = True) -> Samples:
    """Return the samples of `split` in list order.

    "train+val" concatenates the two splits. If `data.val_share` is set, "val" is a part of the training split: of
    the first joined split if `data.mix` is set.

    Raises:
      DataError: The split cannot be found (see `find_samples`), or the prepared records no longer match their source.
    """
    require_scheme(data.root, "data.root")
    data = dataclasses.replace(data, root=os.path.expanduser(data.root))
    if data.val_share and split in (data.train_split, "val"):
        _require_no_validation_split(data)
        whole = _find_whole_split(data, data.train_split, need_labels=need_labels)
        eligible = whole.part_sizes[0] if data.mix else len(whole)
        return hold_out(whole, data.val_share, data.val_group, is_validation=split == "val", eligible=eligible)
    return _find_whole_split(data, split, need_labels=need_labels)


def _require_no_validation_split(data: DataConfig) -> None:
    if data.source:
        splits: Sequence[str] = ()
    elif records.is_records(data.root):
        splits = tuple(records.read_manifest(data.root).splits)
    else:
        splits = list_splits(data.root)
    if data.train_split == "val" or "val" in splits:
        raise DataError(
            f"`data.val_share` (={data.val_share:g}) cannot be used, because the data set has a split 'val'. "
            "Set it to 0 to validate on that split."
        )


def _find_whole_split(data: DataConfig, split: str, *, need_labels: bool) -> Samples:
    if data.source:
        return find_tfds(data.source.removeprefix(TFDS), data.root, split, data.label_kind, data.channels)
    if not records.is_records(data.root):
        try:
            samples = find_samples(data.root, split, data.label_kind, need_labels=need_labels)
            return dataclasses.replace(samples, store=ImageFiles(data.channels, tuple(data.value_range)))
        except DataError:
            if records.is_incomplete(data.root):
                message = (
                    f"`data.root` (={data.root!r}) holds incomplete records. "
                    "Run `deeplab-jax data prepare` again to complete them."
                )
                raise DataError(message) from None
            raise
    manifest_file = stat_file(str(epath.Path(data.root) / records.MANIFEST))
    samples = _find_prepared(data.root, split, manifest_file, need_labels=need_labels)
    records.require_same_bands(samples, data)
    if data.label_kind in ("auto", samples.kind):
        return samples
    if not samples.labels:
        return dataclasses.replace(samples, kind=data.label_kind)
    raise DataError(
        f"`data.label_kind` (={data.label_kind!r}) does not match the records in {data.root}, "
        f"which hold {samples.kind} labels. Leave it at auto, or prepare the records again with --label-kind {data.label_kind}."
    )


@functools.cache
def _find_prepared(root: str, split: str, version: File, *, need_labels: bool) -> Samples:
    """Check that prepared records are up to date, and return the samples of one split.

    A run looks up its training samples more than once, so the result is cached until the process ends or the manifest file
    changes. `version` identifies the state of the manifest file.
    """
    manifest = records.read_manifest(root)
    samples = records.find_records(manifest, root, split, need_labels=need_labels)
    _require_fresh(manifest, split, samples)
    return samples


def _require_fresh(manifest: records.Manifest, split: str, samples: Samples) -> None:
    """Check prepared records against their source folder, if that folder is local and available.

    A file counts as unchanged if it has the recorded size and modification time. Other files are compared by fingerprint.

    Raises:
      DataError: The source now lists different samples, or a source file has changed or is missing.
    """
    source = manifest.source
    if not _is_available(source):
        return
    stale, advice = f"The records in {samples.root} are stale.", records.advise_rerun(manifest, samples.root)
    try:
        current = find_samples(source, split, samples.kind, need_labels=bool(samples.labels))
        # Where one joined split ends and the next one begins, also decides the order (see `data.mix`).
        if any(getattr(current, field) != getattr(samples, field) for field in ("images", "labels", "part_sizes")):
            sizes, now = (" + ".join(map(str, each.part_sizes)) for each in (samples, current))
            raise DataError(f"The sample list has changed (records: {sizes} samples, {current.source}: {now} samples).")
        changed = find_changed_images(samples, current)
    except DataError as error:
        raise DataError(f"{stale} {error} {advice}") from None
    if changed:
        raise DataError(
            f"{stale} {len(changed)} of {len(samples)} samples in {source} have changed, such as {changed[0]}. {advice}"
        )


def _is_available(source: str) -> bool:
    """Return whether the source is a non-empty local folder.

    An empty folder counts as unavailable, because it might be an unmounted mount point.
    """
    if source.startswith(TFDS) or is_url(source):
        return False
    try:
        return next(epath.Path(source).iterdir(), None) is not None
    except OSError:
        return False


def find_samples(root: str, split: str, kind: str = "auto", *, need_labels: bool = True) -> Samples:
    """Return the samples listed in `list/<split>.lst`, or those in the image folders if there is no list (see layouts/).

    Args:
      root: A local path, or a URL supported by `epath`.
      split: "train", "val", or the name of any other list or folder. "train+val" concatenates the two splits.
      kind: How the label files encode classes. "auto" tries the layout, the file names, and the header of the first label file,
        in that order.
      need_labels: Whether to raise an error if the split has no labels.

    Raises:
      DataError: The folder or list is missing or empty, a line is malformed, a file is missing, two joined splits share
        an image, only some images have labels, or the label kinds are mixed.
    """
    folder = epath.Path(root)
    if not root:
        raise DataError("`data.root` (='') is empty. Pass the data set folder with --config.data.root=FOLDER.")
    if not folder.is_dir():
        raise DataError(f"`data.root` (={root!r}) is not a folder. Use --config.data.root=FOLDER to pass the data set folder.")
    parts = [_find_part(folder, part, kind) for part in split.split("+")]
    require_disjoint(f"Split {split!r}", [(part.split, [image for image, _ in part.pairs]) for part in parts])
    pairs = [pair for part in parts for pair in part.pairs]
    source = " and ".join(dict.fromkeys(part.source for part in parts))
    labelled = [pair for pair in pairs if pair[1]]
    if labelled and len(labelled) < len(pairs):
        unlabelled = next(image for image, label in pairs if not label)
        raise DataError(
            f"Only {len(labelled)} of {len(pairs)} images in {source} have labels. "
            f"For example, {unlabelled!r} has none. Label either all images or none."
        )
    if need_labels and not labelled:
        why = next((part.why_unlabelled for part in parts if part.why_unlabelled), "")
        why = why or f"{source} names only images. Write `image label` on each line."
        raise DataError(f"Split {split!r} needs labels, but {why}")
    images, labels = tuple(image for image, _ in pairs), tuple(label for _, label in labelled)
    _require_utf8(folder, images + labels)
    _require_files(folder, images, labels, source, is_listed=any(part.source.endswith(".lst") for part in parts))
    kind = _agree_on_kind(folder, parts, source) if labels else "labelIds" if kind == "auto" else kind
    notes, sizes = tuple(note for part in parts for note in part.notes), tuple(len(part.pairs) for part in parts)
    return Samples(root, images, labels, kind, source, ImageFiles(), notes, sizes)


def list_splits(root: str) -> list[str]:
    """Return the split names in a folder: first the splits with a `.lst` file, then those with image folders."""
    folder = epath.Path(root)
    names = filter(is_visible, list_names(folder / "list"))
    listed = sorted(name.removesuffix(".lst") for name in names if name.endswith(".lst"))
    layout = recognize_layout(folder) if folder.is_dir() else None
    return list(dict.fromkeys(listed + (layout.splits(folder) if layout else [])))


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """One component of a split name such as "train+val".

    Attributes:
      split: The component name, such as "train".
      pairs: The (image, label) file names.
      source: Where the file names come from, as shown in messages.
      kind: How the labels encode classes, or "auto".
      notes: What the user should know about the choice of files.
      why_unlabelled: Why the part has no labels, or "".
    """

    split: str
    pairs: list[Pair]
    source: str
    kind: str
    notes: tuple[str, ...] = ()
    why_unlabelled: str = ""


def _find_part(folder: epath.Path, split: str, kind: str) -> _Part:
    listing = folder / "list" / f"{split}.lst"
    if listing.exists() or listing.name in list_names(listing.parent):  # it may exist and be unreadable
        pairs = list(read_list(listing, folder))
        part = _Part(
            split, pairs, str(listing), kind, _note_repeated(pairs) + _note_shared_label(pairs) + note_swapped_masks(pairs)
        )
        advice = "Add images to the list, or delete the list to use the image folders."
    else:
        layout = find_layout(folder, split)
        if layout is None:
            raise DataError(explain_missing_split(folder, split, list_splits(str(folder))))
        source = f"the folders in {folder} ({layout.name} layout)"
        pairing = layout.pairs(folder, split, kind)
        _require_usable_names(pairing.pairs)
        notes = pairing.notes + (() if layout.reads_lists else _note_unread_lists(folder, split))
        kind = layout.label_kind if kind == "auto" else kind
        part = _Part(split, list(pairing.pairs), source, kind, notes, pairing.why_unlabelled)
        advice = f"Add images to {layout.shape.replace('SPLIT', split)}."
        if split == "val":
            advice += (
                " Or remove the empty folder, and set --config.data.val_share=0.2 to hold out a fifth of the training images."
            )
        if pairing.notes:
            advice = " ".join(pairing.notes)
    if not part.pairs:
        raise DataError(f"Found no samples of split {split!r} in {part.source}. {advice}")
    return part


def _note_repeated(pairs: Sequence[Pair]) -> tuple[str, ...]:
    counts = collections.Counter(image for image, _ in pairs)
    repeated = [image for image, count in counts.items() if count > 1]
    if not repeated:
        return ()
    return (f"Images are listed more than once, such as {repeated[0]} ({counts[repeated[0]]} times). Each line is a sample.",)


def _note_shared_label(pairs: Sequence[Pair]) -> tuple[str, ...]:
    images: dict[str, str] = {}
    for image, label in pairs:
        other = images.setdefault(label, image) if label else image
        if other != image:
            return (f"Images share a label: {other} and {image} have {label}. This is right only if they show the same scene.",)
    return ()


def _require_usable_names(pairs: Sequence[Pair]) -> None:
    """Check that no name contains a line break, and that no two images have the same label, as "a.jpg" and "a.png" would."""
    images: dict[str, str] = {}
    for image, label in pairs:
        if "\n" in image:
            raise DataError(f"The image name {image!r} contains a line break, which the files of a run cannot hold. Rename it.")
        other = images.setdefault(label, image) if label else image
        if other != image:
            raise DataError(f"{other} and {image} would share the label {label}. Rename or remove one of the images.")


def _note_unread_lists(folder: epath.Path, split: str) -> tuple[str, ...]:
    names = (f"{split}.txt", f"{split}_list.txt", f"{split}.lst", f"list/{split}.txt")
    unread = next((name for name in names if (folder / name).exists()), "")
    return (f"{unread} is not read. Rename it to list/{split}.lst if it lists the images of the split.",) if unread else ()


def describe(split: str, samples: Samples) -> str:
    """Return a one-line summary of a split: its size, source and label kind."""
    labels = f"with {samples.kind} labels" if samples.labels else "without labels"
    if samples.labels and samples.kind != "color" and isinstance(samples.store, ImageFiles):
        labels += " (palette indices)" * (read_mode(f"{samples.root}/{samples.labels[0]}") == "P")
    return f"{split}: {len(samples)} sample{'s' * (len(samples) > 1)} from {samples.source}, {labels}"


def find_missing_files(root: epath.Path, names: Sequence[str]) -> list[str]:
    """Return the files in `names` that do not exist below `root`."""
    # List each folder once instead of checking each file, because 6,000 requests to object storage take minutes.
    present: set[str] = set()
    for parent in sorted({posixpath.dirname(name) for name in names}):
        present.update(posixpath.join(parent, name) for name in list_names(root / parent))
    return [name for name in names if posixpath.normpath(name) not in present]


def _require_utf8(root: epath.Path, names: Sequence[str]) -> None:
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(name).decode(errors="backslashreplace")
            raise DataError(f"The file name {shown} below {root} is not UTF-8. Rename the file.") from None


def _require_files(root: epath.Path, images: tuple[str, ...], labels: tuple[str, ...], source: str, *, is_listed: bool) -> None:
    names = images + labels
    missing = find_missing_files(root, names)
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} files from {source} are missing below {root}: {summarize(missing)}. "
            f"{_compare_with_folder(root, missing[0], set(names), is_mask=missing[0] not in images, is_listed=is_listed)}"
        )


def _compare_with_folder(root: epath.Path, name: str, names: Collection[str], *, is_mask: bool, is_listed: bool) -> str:
    """Return what the folder of a missing image or mask holds instead, and what to do. `names` are those of all samples."""
    folder, base = posixpath.split(name)
    present = sorted(filter(is_visible, list_names(root / folder)))
    alike = [each for each in present if _fold(each) == _fold(base)]
    if alike:
        return f"{alike[0]!r} exists, whose name differs in case or in the encoding of accents. Make the names equal."
    same_stem = [each for each in present if posixpath.splitext(each)[0] == posixpath.splitext(base)[0]]
    if same_stem and is_mask and all(each.lower().endswith(LOSSY_SUFFIXES) for each in same_stem):
        return f"{posixpath.join(folder, same_stem[0])} exists, but cannot be used. {LOSSY_MASKS}"
    if same_stem:
        return f"{posixpath.join(folder, same_stem[0])} exists. Use its name in the list, or convert the file."
    for kind in KINDS if is_mask and not is_listed else ():
        other = base.replace(f"_{_find_kind_in_name(base)}.", f"_{kind}.")
        if other in present:
            advice = f"Set data.label_kind={kind} (--label-kind {kind}) to use such masks."
            return f"{posixpath.join(folder, other)} exists. {advice}"
    suffixes = MASK_SUFFIXES if is_mask else IMAGE_SUFFIXES
    usable = [each for each in present if each.lower().endswith(suffixes)]
    unused = [each for each in usable if posixpath.join(folder, each) not in names]
    state = "does not exist"
    if (root / folder).is_dir():
        state = f"holds no {'mask' if is_mask else 'image'} files" if present else "is empty"
    there = "All files there belong to other samples." if usable else f"The folder {folder or root} {state}."
    if near := difflib.get_close_matches(base, unused, n=1, cutoff=0):
        there = f"The most similar name there is {near[0]}."
    advice = "Add the masks, or leave out their images." if is_mask and not is_listed else "Add the files or fix the list."
    return f"{there} {advice}"


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _agree_on_kind(root: epath.Path, parts: Sequence[_Part], source: str) -> str:
    """Return the label kind shared by all parts."""
    example = {
        _find_kind_in_name(label) if part.kind == "auto" else part.kind: label
        for part in reversed(parts)
        for _, label in reversed(part.pairs)
    }
    if "" in example:
        # Open only the first label file. `data check` compares the formats of all files.
        first = example.pop("")
        example["color" if read_mode(str(root / first)) in ("RGB", "RGBA") else "labelIds"] = first
    if len(example) > 1:
        kinds = ", ".join(sorted(example))
        raise DataError(f"The labels in {source} are of different kinds ({kinds}). Use one kind, or set data.label_kind.")
    return next(iter(example))


def _find_kind_in_name(name: str) -> str:
    """Return the label kind from a Cityscapes-style file name (`..._<kind>.<suffix>`), or "" for other names."""
    return next((kind for kind in KINDS if re.search(rf"_{kind}\.\w+$", name)), "")
