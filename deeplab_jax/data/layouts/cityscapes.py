"""The Cityscapes layout: one folder per city.

The label file names indicate how the files encode classes.
"""

import re

from etils import epath

from deeplab_jax.data.decode import IMAGE_SUFFIXES
from deeplab_jax.data.layouts.layout import Layout, Pairing, list_folders, list_images, note_unread_files


def _list_splits(root: epath.Path) -> list[str]:
    return list_folders(root / "leftImg8bit")


def _list_pairs(root: epath.Path, split: str, kind: str) -> Pairing:
    """Return (image, label) pairs, with labels from `gtFine`, or from `gtCoarse` if `gtFine` lacks the split.

    For example, train_extra has only coarse labels. If neither folder has the split, the split has no labels.
    """
    truth = next((name for name in ("gtFine", "gtCoarse") if (root / name / split).is_dir()), "")
    suffix = "labelIds" if kind == "auto" else kind
    folder = root / "leftImg8bit" / split
    pairs = []
    for image in list_images(folder):
        name = str(image.relative_to(root / "leftImg8bit"))
        label = re.sub(r"_leftImg8bit(\.\w+)$", f"_{truth}_{suffix}.png", name)
        pairs.append((f"leftImg8bit/{name}", f"{truth}/{label}" if truth else ""))
    why = f"neither gtFine/{split} nor gtCoarse/{split} exists. Unpack gtFine_trainvaltest.zip into the data set folder."
    return Pairing(tuple(pairs), note_unread_files(root, folder, IMAGE_SUFFIXES), "" if truth else why)


CITYSCAPES = Layout(
    "Cityscapes",
    shape="leftImg8bit/SPLIT/ with gtFine/SPLIT/ or gtCoarse/SPLIT/",
    labels="cityscapes",
    splits=_list_splits,
    pairs=_list_pairs,
)
