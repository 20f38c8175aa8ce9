"""The original CamVid layout: all images are in 701_StillsRaw_full/, and masks of colours are in LabeledApproved_full/."""

import dataclasses

from etils import epath

from deeplab_jax.data.layouts.layout import Layout, Pairing
from deeplab_jax.data.layouts.renaming import pair_by_renaming, remove_suffix
from deeplab_jax.data.lists import read_lines

IMAGES, LABELS = "701_StillsRaw_full", "LabeledApproved_full"
# The download has no splits. These files list their images, one on each line.
LISTS = ("train", "val", "test")


def _list_splits(root: epath.Path) -> list[str]:
    """Return the splits with a list such as train.txt. Without lists, all images form the split "train"."""
    if not all((root / name).is_dir() for name in (IMAGES, LABELS)):
        return []
    return [split for split in LISTS if (root / f"{split}.txt").exists()] or ["train"]


def _list_pairs(root: epath.Path, split: str, kind: str) -> Pairing:
    pairing = pair_by_renaming(root, root / IMAGES, root / LABELS, "", "_L.png")
    if not (root / f"{split}.txt").exists():
        return pairing
    by_name = {_name_of(image): (image, label) for image, label in pairing.pairs}
    # A line is a name, the path of an image, or the paths of an image and its label.
    names = [_name_of(line.split()[0]) for line in read_lines(root / f"{split}.txt") if line.strip()]
    pairs = tuple(by_name.get(name, (f"{IMAGES}/{name}.png", f"{LABELS}/{name}_L.png")) for name in names)
    return dataclasses.replace(pairing, pairs=pairs)


def _name_of(path: str) -> str:
    return remove_suffix(path.rpartition("/")[2])


CAMVID_ORIGINAL = Layout(
    "original CamVid",
    shape=f"{IMAGES}/ with {LABELS}/ and SPLIT.txt",
    labels="camvid32",
    splits=_list_splits,
    pairs=_list_pairs,
    label_kind="color",
    reads_lists=True,
)
