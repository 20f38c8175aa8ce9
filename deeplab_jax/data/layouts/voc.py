"""The Pascal VOC 2012 layout: all images are in one folder, and a text file for each split lists its images."""

from collections.abc import Iterator, Mapping

from etils import epath

from deeplab_jax.data.decode import IMAGE_SUFFIXES, MASK_SUFFIXES
from deeplab_jax.data.folders import is_visible, list_files, list_names, select, suffix_of
from deeplab_jax.data.layouts.layout import Layout, Pairing
from deeplab_jax.data.layouts.renaming import remove_suffix
from deeplab_jax.data.lists import read_lines
from deeplab_jax.errors import DataError

IMAGES = "JPEGImages"


def _list_splits(root: epath.Path) -> list[str]:
    folder = _set_folder(root)
    lists = folder / "ImageSets" / "Segmentation"
    complete = lists.is_dir() and (folder / IMAGES).is_dir()
    names = filter(is_visible, list_names(lists)) if complete else ()
    return sorted(name.removesuffix(".txt") for name in names if name.endswith(".txt"))


def _list_pairs(root: epath.Path, split: str, kind: str) -> Pairing:
    """Return (image, label) pairs for the images in the split's list, with labels from `SegmentationClass`.

    If the split name ends in "aug", labels from `SegmentationClassAug` take precedence. If no image has a label file, as in
    "test", the split has no labels.
    """
    folder = _set_folder(root)
    truths = ("SegmentationClassAug", "SegmentationClass") if split.endswith("aug") else ("SegmentationClass",)
    labels: dict[str, str] = {}
    for truth in reversed(truths):
        labels |= _index_by_name(root, folder / truth, MASK_SUFFIXES, ".png")
    images = _index_by_name(root, folder / IMAGES, IMAGE_SUFFIXES, ".jpg")
    names = list(_read_names(folder / "ImageSets" / "Segmentation" / f"{split}.txt", images))
    labelled = any(name in labels for name in names)
    image_folder, label_folder = (str((folder / name).relative_to(root)) for name in (IMAGES, truths[-1]))
    pairs = []
    for name in names:
        label = labels.get(name, f"{label_folder}/{name}.png") if labelled else ""
        pairs.append((images.get(name, f"{image_folder}/{name}.jpg"), label))
    why = "" if labelled else f"the folder {label_folder} holds no mask of these images."
    return Pairing(tuple(pairs), why_unlabelled=why)


def _set_folder(root: epath.Path) -> epath.Path:
    candidates = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
    return next((folder for folder in candidates if (folder / "ImageSets" / "Segmentation").is_dir()), root)


def _index_by_name(root: epath.Path, folder: epath.Path, suffixes: tuple[str, ...], preferred: str) -> dict[str, str]:
    """Return a dict that maps names relative to `folder`, without suffix, to names relative to `root`.

    Of several files that differ in the suffix, the one with the suffix `preferred` is used.
    """
    prefix = str(folder.relative_to(root))
    ordered = sorted(select(list_files(folder), suffixes), key=lambda name: suffix_of(name) == preferred)
    return {remove_suffix(name): f"{prefix}/{name}" for name in ordered}


def _read_names(listing: epath.Path, images: Mapping[str, str]) -> Iterator[str]:
    for number, line in enumerate(read_lines(listing), start=1):
        if line.strip():
            yield _find_name(line.strip(), images, f"Line {number} of {listing}")


def _find_name(line: str, images: Mapping[str, str], where: str) -> str:
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
