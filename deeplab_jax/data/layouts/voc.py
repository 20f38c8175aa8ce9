"""The Pascal VOC 2012 layout: all images are in one folder, and a text file for each split lists its images."""

from collections.abc import Iterable, Iterator, Mapping

from etils import epath

from deeplab_jax.data.layouts.layout import Layout, Pairing, list_images, list_masks
from deeplab_jax.data.layouts.renaming import remove_suffix
from deeplab_jax.data.lists import read_lines
from deeplab_jax.errors import DataError

IMAGES = "JPEGImages"


def _list_splits(root: epath.Path) -> list[str]:
    folder = _set_folder(root)
    lists = folder / "ImageSets" / "Segmentation"
    complete = lists.is_dir() and (folder / IMAGES).is_dir()
    return sorted(path.stem for path in lists.iterdir() if path.suffix == ".txt") if complete else []


def _list_pairs(root: epath.Path, split: str, kind: str) -> Pairing:
    """Return (image, label) pairs for the images in the split's list, with labels from `SegmentationClass`.

    If the split name ends in "aug", labels from `SegmentationClassAug` take precedence. If no image has a label file, as in
    "test", the split has no labels.
    """
    folder = _set_folder(root)
    truths = ("SegmentationClassAug", "SegmentationClass") if split.endswith("aug") else ("SegmentationClass",)
    labels: dict[str, epath.Path] = {}
    for truth in reversed(truths):
        labels |= _index_by_name(folder / truth, list_masks(folder / truth), ".png")
    images = _index_by_name(folder / IMAGES, list_images(folder / IMAGES), ".jpg")
    names = list(_read_names(folder / "ImageSets" / "Segmentation" / f"{split}.txt", images))
    labelled = any(name in labels for name in names)
    pairs = []
    for name in names:
        image = images.get(name, folder / IMAGES / f"{name}.jpg")
        label = labels.get(name, folder / truths[-1] / f"{name}.png")
        pairs.append((str(image.relative_to(root)), str(label.relative_to(root)) if labelled else ""))
    why = "" if labelled else f"the folder {(folder / truths[-1]).relative_to(root)} holds no mask of these images."
    return Pairing(tuple(pairs), why_unlabelled=why)


def _set_folder(root: epath.Path) -> epath.Path:
    candidates = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
    return next((folder for folder in candidates if (folder / "ImageSets" / "Segmentation").is_dir()), root)


def _index_by_name(folder: epath.Path, paths: Iterable[epath.Path], suffix: str) -> dict[str, epath.Path]:
    """Return a dict that maps names relative to `folder`, without suffix, to files. Of several files, `suffix` is preferred."""
    ordered = sorted(paths, key=lambda path: path.suffix.lower() == suffix)
    return {remove_suffix(str(path.relative_to(folder))): path for path in ordered}


def _read_names(listing: epath.Path, images: Mapping[str, epath.Path]) -> Iterator[str]:
    for number, line in enumerate(read_lines(listing), start=1):
        if line.strip():
            yield _find_name(line.strip(), images, f"Line {number} of {listing}")


def _find_name(line: str, images: Mapping[str, epath.Path], where: str) -> str:
    """Return the image name in a line, which is the name, a path, or an image path and a label path. Names can hold spaces.

    Some lists for the augmented data set contain lines like `/JPEGImages/x.jpg /SegmentationClassAug/x.png`.
    """
    words = line.split(" ") if "\t" not in line else line.split("\t")
    for count in range(len(words), 0, -1):
        name, rest = _shorten(" ".join(words[:count])), " ".join(words[count:]).strip()
        if name in images:
            if rest and _shorten(rest).rpartition("/")[2] != name.rpartition("/")[2]:
                raise DataError(f"{where} has {len(line.split())} columns. Write only the image name, without its suffix.")
            return name
    # No such image exists. The name in the error about the missing file does not include a label path.
    return _shorten(words[0] if "/" in words[-1] else line)


def _shorten(path: str) -> str:
    """Return a path without its suffix, relative to the folder with the images."""
    return remove_suffix(path.strip().rpartition(f"{IMAGES}/")[2].lstrip("/"))


_SHAPE = "JPEGImages/ with ImageSets/Segmentation/SPLIT.txt"
VOC = Layout("Pascal VOC", shape=_SHAPE, labels="voc", splits=_list_splits, pairs=_list_pairs)
