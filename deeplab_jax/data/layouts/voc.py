"""The Pascal VOC 2012 layout: all images are in one folder, and a text file for each split lists its images."""

from collections.abc import Iterator

from etils import epath

from deeplab_jax.data.layouts.layout import Layout, Pairing
from deeplab_jax.data.lists import read_lines
from deeplab_jax.errors import DataError


def _list_splits(root: epath.Path) -> list[str]:
    folder = _set_folder(root)
    lists = folder / "ImageSets" / "Segmentation"
    complete = lists.is_dir() and (folder / "JPEGImages").is_dir()
    return sorted(path.stem for path in lists.iterdir() if path.suffix == ".txt") if complete else []


def _list_pairs(root: epath.Path, split: str, kind: str) -> Pairing:
    """Return (image, label) pairs for the images in the split's list, with labels from `SegmentationClass`.

    If the split name ends in "aug", labels from `SegmentationClassAug` take precedence. If no image has a label file, as in
    "test", the split has no labels.
    """
    folder = _set_folder(root)
    listing = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    truths = ("SegmentationClassAug", "SegmentationClass") if split.endswith("aug") else ("SegmentationClass",)
    paths: dict[str, epath.Path] = {}
    for name in reversed([truth for truth in truths if (folder / truth).is_dir()]):
        paths |= {path.stem: path for path in (folder / name).iterdir() if path.suffix == ".png"}
    stems = list(_read_stems(listing))
    labelled = any(stem in paths for stem in stems)
    pairs = []
    for stem in stems:
        label = paths.get(stem, folder / truths[-1] / f"{stem}.png")
        image = folder / "JPEGImages" / f"{stem}.jpg"
        pairs.append((str(image.relative_to(root)), str(label.relative_to(root)) if labelled else ""))
    why = "" if labelled else f"the folder {(folder / truths[-1]).relative_to(root)} holds no mask of these images."
    return Pairing(tuple(pairs), why_unlabelled=why)


def _set_folder(root: epath.Path) -> epath.Path:
    candidates = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
    return next((folder for folder in candidates if (folder / "ImageSets" / "Segmentation").is_dir()), root)


def _read_stems(listing: epath.Path) -> Iterator[str]:
    for number, line in enumerate(read_lines(listing), start=1):
        # Some lists for the augmented data set contain lines like `/JPEGImages/x.jpg /SegmentationClassAug/x.png`.
        words = line.split()
        if len(words) > 2:
            raise DataError(
                f"Line {number} of {listing} has {len(words)} columns. Write only the image name, without its suffix."
            )
        if words:
            yield epath.Path(words[0]).stem


_SHAPE = "JPEGImages/ with ImageSets/Segmentation/SPLIT.txt"
VOC = Layout("Pascal VOC", shape=_SHAPE, labels="voc", splits=_list_splits, pairs=_list_pairs)
