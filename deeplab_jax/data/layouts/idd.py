"""The layout of the Indian Driving Dataset (IDD), which has the folders of Cityscapes, but other label files."""

from etils import epath

from deeplab_jax.data.folders import list_folders, list_names
from deeplab_jax.data.layouts.layout import Layout, Pairing
from deeplab_jax.data.layouts.renaming import pair_by_renaming

# `createLabels.py --id-type level3Id` of AutoNUE's public-code writes these files, and `--color True` writes the second kind.
LABELS = "_gtFine_labellevel3Ids.png"
COLORS = "_gtFine_labelColors.png"


def _list_splits(root: epath.Path) -> list[str]:
    return list_folders(root / "leftImg8bit") if _has_labels(root / "gtFine") else []


def _list_pairs(root: epath.Path, split: str, kind: str) -> Pairing:
    end = COLORS if kind == "color" else LABELS
    return pair_by_renaming(root, root / "leftImg8bit" / split, root / "gtFine" / split, "_leftImg8bit", end)


def _has_labels(folder: epath.Path) -> bool:
    """Return whether the first sequence of any split has IDD's label files."""
    sequences = [folder / split / name for split in list_folders(folder) for name in list_folders(folder / split)[:1]]
    return any(name.endswith((LABELS, COLORS)) for sequence in sequences for name in list_names(sequence))


_SHAPE = f"leftImg8bit/SPLIT/ with gtFine/SPLIT/*/*{LABELS}"
IDD = Layout("IDD", shape=_SHAPE, labels="idd", splits=_list_splits, pairs=_list_pairs, label_kind="labelIds")
