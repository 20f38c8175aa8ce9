"""The BDD100K layouts for semantic segmentation (10K images). The masks store the train ids of Cityscapes."""

import dataclasses

from etils import epath

from deeplab_jax.data.folders import list_folders, list_names
from deeplab_jax.data.layouts.layout import Layout, Pairing
from deeplab_jax.data.layouts.renaming import pair_by_renaming


@dataclasses.dataclass(frozen=True, slots=True)
class _Folders:
    """The folders of one release, each of which contains the splits, and the end of its label file names."""

    images: epath.Path
    labels: epath.Path
    colors: epath.Path
    label_end: str
    color_end: str


def _list_splits(root: epath.Path) -> list[str]:
    folders = _find_folders(root)
    return list_folders(folders.images) if folders else []


def _list_pairs(root: epath.Path, split: str, kind: str) -> Pairing:
    folders = _find_folders(root)
    assert folders, "the split was found, so its folders exist"
    labels, end = (folders.colors, folders.color_end) if kind == "color" else (folders.labels, folders.label_end)
    return pair_by_renaming(root, folders.images / split, labels / split, "", end)


def _find_folders(root: epath.Path) -> _Folders | None:
    """Return the folders of the current release, of the release before, or None if `root` contains neither."""
    for base in (root, root / "bdd100k"):
        labels = base / "labels" / "sem_seg"
        if (base / "images" / "10k").is_dir() and labels.is_dir():
            return _Folders(base / "images" / "10k", labels / "masks", labels / "colormaps", ".png", ".png")
    for base in (root, root / "seg", root / "bdd100k" / "seg"):
        if _has_train_ids(base / "labels"):
            return _Folders(base / "images", base / "labels", base / "color_labels", "_train_id.png", "_train_color.png")
    return None


def _has_train_ids(folder: epath.Path) -> bool:
    """Return whether a split in `folder` contains label files of the earlier release."""
    return any(name.endswith("_train_id.png") for split in list_folders(folder) for name in list_names(folder / split))


_SHAPE = "images/10k/SPLIT/ with labels/sem_seg/masks/SPLIT/, or seg/images/SPLIT/ with seg/labels/SPLIT/*_train_id.png"
BDD100K = Layout(
    "BDD100K", shape=_SHAPE, labels="cityscapes", splits=_list_splits, pairs=_list_pairs, label_kind="labelTrainIds"
)
