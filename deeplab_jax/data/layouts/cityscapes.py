"""The Cityscapes layout: one folder per city.

The label file names indicate how the files encode classes.
"""

import re
from collections.abc import Iterator

from etils import epath

from deeplab_jax.data.layouts.layout import Layout, Pair, list_folders, list_images


def _list_splits(root: epath.Path) -> list[str]:
    return list_folders(root / "leftImg8bit")


def _list_pairs(root: epath.Path, split: str, kind: str) -> Iterator[Pair]:
    """Yield (image, label) pairs, with labels from `gtFine`, or from `gtCoarse` if `gtFine` lacks the split.

    For example, train_extra has only coarse labels. If neither folder has the split, each label is "".
    """
    truth = next((name for name in ("gtFine", "gtCoarse") if (root / name / split).is_dir()), "")
    suffix = "labelIds" if kind == "auto" else kind
    for image in list_images(root / "leftImg8bit" / split):
        name = str(image.relative_to(root / "leftImg8bit"))
        label = re.sub(r"_leftImg8bit(\.\w+)$", f"_{truth}_{suffix}.png", name)
        yield f"leftImg8bit/{name}", f"{truth}/{label}" if truth else ""


CITYSCAPES = Layout(
    "Cityscapes",
    shape="leftImg8bit/SPLIT/ with gtFine/SPLIT/ or gtCoarse/SPLIT/",
    labels="cityscapes",
    splits=_list_splits,
    pairs=_list_pairs,
)
