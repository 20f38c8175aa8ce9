"""The layout for custom data sets: images are in input/, and masks are in target/."""

from etils import epath

from deeplab_jax.data.folders import list_folders
from deeplab_jax.data.layouts.layout import Layout, Pairing
from deeplab_jax.data.layouts.pairing import pair_by_name


def _list_splits(root: epath.Path) -> list[str]:
    """Return the names of the folders in `input/`, each of which is a split.

    If no folder is named train, val or test, all images together also form a "train" split.
    """
    if not (root / "input").is_dir():
        return []
    folders = list_folders(root / "input")
    return folders if {"train", "val", "test"} & set(folders) else ["train", *folders]


def _list_pairs(root: epath.Path, split: str, kind: str) -> Pairing:
    folder = split if (root / "input" / split).is_dir() else ""
    return pair_by_name(root, root / "input" / folder, root / "target" / folder)


CUSTOM = Layout("custom", shape="input/SPLIT/ with target/SPLIT/", labels="", splits=_list_splits, pairs=_list_pairs)
