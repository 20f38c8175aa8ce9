"""The Cityscapes layout: one folder per city.

The label file names indicate how the files encode classes.
"""

import re

from etils import epath

from deeplab_jax.data.decode import IMAGE_SUFFIXES
from deeplab_jax.data.folders import list_files, list_folders, select
from deeplab_jax.data.layouts.layout import Layout, Pairing, note_unread_files


def _list_splits(root: epath.Path) -> list[str]:
    return list_folders(root / "leftImg8bit")


def _list_pairs(root: epath.Path, split: str, kind: str) -> Pairing:
    """Return (image, label) pairs, with labels from `gtFine`, or from `gtCoarse` if `gtFine` lacks the split.

    For example, train_extra has only coarse labels. If neither folder has the split, the split has no labels.
    """
    truth = next((name for name in ("gtFine", "gtCoarse") if (root / name / split).is_dir()), "")
    suffix = "labelIds" if kind == "auto" else kind
    folder = f"leftImg8bit/{split}"
    files = list_files(root / folder)
    pairs = []
    for name in select(files, IMAGE_SUFFIXES):
        label = re.sub(r"_leftImg8bit(\.\w+)$", f"_{truth}_{suffix}.png", name)
        pairs.append((f"{folder}/{name}", f"{truth}/{split}/{label}" if truth else ""))
    why = f"neither gtFine/{split} nor gtCoarse/{split} exists. Unpack gtFine_trainvaltest.zip into the data set folder."
    return Pairing(tuple(pairs), note_unread_files(folder, files, IMAGE_SUFFIXES), "" if truth else why)


CITYSCAPES = Layout(
    "Cityscapes",
    shape="leftImg8bit/SPLIT/ with gtFine/SPLIT/ or gtCoarse/SPLIT/",
    labels="cityscapes",
    splits=_list_splits,
    pairs=_list_pairs,
)
