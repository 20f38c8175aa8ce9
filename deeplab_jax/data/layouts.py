"""Folder layouts of data sets: which image goes with which label, by where the files lie. No pixels are read.

Where a layout has lists of its own (Pascal VOC), they say what a split is; else the folder's images, sorted by name. An image
whose label is not there is still named with it: `find_samples` then reports the missing file, instead of dropping the image.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator

from etils import epath

from deeplab_jax.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
Pair = tuple[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """A way to lay out a data set.

    Attributes:
      name: what people call it.
      shape: the folders of a split, for messages.
      labels: name of its label set in `labels.LABEL_SETS`; "" where any is possible.
      splits: names of the splits that a folder holds in this layout; none where it has another layout.
      pairs: (root, split, label kind) -> (image, label) names relative to the root; label "" for a split without labels.
    """

    name: str
    shape: str
    labels: str
    splits: Callable[[epath.Path], list[str]]
    pairs: Callable[[epath.Path, str, str], Iterator[Pair]]


def scan(root: epath.Path, split: str, kind: str) -> tuple[Layout | None, list[Pair]]:
    """The first layout in which `root` holds `split`, and the names of its files; (None, []) if there is none."""
    for layout in LAYOUTS:
        if split in layout.splits(root):
            return layout, list(layout.pairs(root, split, kind))
    return None, []


def recognized(root: epath.Path) -> Layout | None:
    """The first layout in which `root` holds any split."""
    return next((layout for layout in LAYOUTS if layout.splits(root)), None)


def not_found(root: epath.Path, split: str) -> str:
    """Why there are no samples of `split` in `root`: what was looked for, and what the folder holds."""
    layout = recognized(root)
    if layout:
        found = ", ".join(layout.splits(root))
        return f"no samples of split {split!r} below {root}, whose {layout.name} folders hold {found}: name one of these"
    wanted = "; ".join(f"{layout.shape.replace('SPLIT', split)} ({layout.name})" for layout in LAYOUTS)
    names = sorted(path.name + "/" * path.is_dir() for path in root.iterdir() if not path.name.startswith("."))
    held = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing"
    return f"no samples of split {split!r} below {root}: it holds {held}; looked for list/{split}.lst; {wanted}"


def lines_of(path: epath.Path) -> list[str]:
    """The lines of a list; `\\r\\n` and a byte order mark are accepted.

    Raises:
      DataError: the file is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from None


def _folders(parent: epath.Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []


def _images_below(folder: epath.Path) -> list[epath.Path]:
    files = (parent / name for parent, _, names in folder.walk() for name in names)
    return sorted(path for path in files if path.suffix.lower() in IMAGE_SUFFIXES)


def _by_name(root: epath.Path, images: epath.Path, labels: epath.Path) -> Iterator[Pair]:
    """Images and labels of two folders, paired by their names without the suffix."""
    known = {str(path.relative_to(labels).with_suffix("")): path for path in _images_below(labels)} if labels.is_dir() else {}
    for image in _images_below(images):
        stem = image.relative_to(images).with_suffix("")
        label = known.get(str(stem), labels / f"{stem}.png") if known else None
        yield str(image.relative_to(root)), str(label.relative_to(root)) if label else ""


def _cityscapes_splits(root: epath.Path) -> list[str]:
    return _folders(root / "leftImg8bit")


def _cityscapes(root: epath.Path, split: str, kind: str) -> Iterator[Pair]:
    """`gtFine` where it has the split, else `gtCoarse` (train_extra has no other)."""
    truth = next((name for name in ("gtFine", "gtCoarse") if (root / name / split).is_dir()), "")
    wanted = "labelIds" if kind == "auto" else kind
    for image in _images_below(root / "leftImg8bit" / split):
        name = str(image.relative_to(root / "leftImg8bit"))
        label = re.sub(r"_leftImg8bit(\.\w+)$", f"_{truth}_{wanted}.png", name)
        yield f"leftImg8bit/{name}", f"{truth}/{label}" if truth else ""


def _voc_folder(root: epath.Path) -> epath.Path:
    places = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
    return next((place for place in places if (place / "ImageSets" / "Segmentation").is_dir()), root)


def _voc_splits(root: epath.Path) -> list[str]:
    folder = _voc_folder(root)
    lists = folder / "ImageSets" / "Segmentation"
    there = lists.is_dir() and (folder / "JPEGImages").is_dir()
    return sorted(path.stem for path in lists.iterdir() if path.suffix == ".txt") if there else []


def _voc(root: epath.Path, split: str, kind: str) -> Iterator[Pair]:
    """The list's names; `SegmentationClassAug` comes first for the splits called `...aug`. "test" has no labels."""
    folder = _voc_folder(root)
    listing = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    truths = ("SegmentationClassAug", "SegmentationClass") if split.endswith("aug") else ("SegmentationClass",)
    known: dict[str, epath.Path] = {}
    for name in reversed([truth for truth in truths if (folder / truth).is_dir()]):
        known |= {path.stem: path for path in (folder / name).iterdir() if path.suffix == ".png"}
    stems = []
    for number, line in enumerate(lines_of(listing), start=1):
        # Lists of the augmented set go round whose lines are `/JPEGImages/x.jpg /SegmentationClassAug/x.png`.
        words = line.split()
        if words:
            stems.append(epath.Path(words[0]).stem)
        if len(words) > 2:
            raise DataError(f"{listing}, line {number}: {len(words)} columns; write an image's name without its suffix")
    labelled = any(stem in known for stem in stems)
    for stem in stems:
        label = known.get(stem, folder / truths[-1] / f"{stem}.png")
        image = folder / "JPEGImages" / f"{stem}.jpg"
        yield str(image.relative_to(root)), str(label.relative_to(root)) if labelled else ""


_ADE_NAMES = {"train": "training", "val": "validation"}


def _ade_folder(root: epath.Path) -> epath.Path:
    return root / "ADEChallengeData2016" if (root / "ADEChallengeData2016").is_dir() else root


def _ade_splits(root: epath.Path) -> list[str]:
    folder = _ade_folder(root)
    there = set(_folders(folder / "images")) if (folder / "annotations").is_dir() else set()
    return [short for short, full in _ADE_NAMES.items() if full in there]


def _ade(root: epath.Path, split: str, kind: str) -> Iterator[Pair]:
    folder = _ade_folder(root)
    return _by_name(root, folder / "images" / _ADE_NAMES[split], folder / "annotations" / _ADE_NAMES[split])


def _camvid_splits(root: epath.Path) -> list[str]:
    folders = _folders(root)
    return [name for name in folders if f"{name}annot" in folders]


def _camvid(root: epath.Path, split: str, kind: str) -> Iterator[Pair]:
    return _by_name(root, root / split, root / f"{split}annot")


def _custom_splits(root: epath.Path) -> list[str]:
    """Folders of `input/`; where none is called as splits are, all its images are the split "train"."""
    if not (root / "input").is_dir():
        return []
    folders = _folders(root / "input")
    return folders if {"train", "val", "test"} & set(folders) else ["train", *folders]


def _custom(root: epath.Path, split: str, kind: str) -> Iterator[Pair]:
    within = split if (root / "input" / split).is_dir() else ""
    return _by_name(root, root / "input" / within, root / "target" / within)


# In this order: the first that has the split is taken.
LAYOUTS = (
    Layout(
        "Cityscapes", "leftImg8bit/SPLIT/ with gtFine/SPLIT/ or gtCoarse/SPLIT/", "cityscapes", _cityscapes_splits, _cityscapes
    ),
    Layout("custom", "input/SPLIT/ with target/SPLIT/", "", _custom_splits, _custom),
    Layout("CamVid", "SPLIT/ with SPLITannot/", "camvid", _camvid_splits, _camvid),
    Layout("Pascal VOC", "JPEGImages/ with ImageSets/Segmentation/SPLIT.txt", "voc", _voc_splits, _voc),
    Layout("ADE20K", "images/training/ with annotations/training/", "ade20k", _ade_splits, _ade),
)
