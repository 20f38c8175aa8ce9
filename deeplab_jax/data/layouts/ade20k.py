"""The ADE20K layout (ADEChallengeData2016): images/training/ is paired with annotations/training/."""

from etils import epath

from deeplab_jax.data.folders import list_folders
from deeplab_jax.data.layouts.layout import Layout, Pairing
from deeplab_jax.data.layouts.pairing import pair_by_name

FOLDERS = {"train": "training", "val": "validation"}


def _list_splits(root: epath.Path) -> list[str]:
    folder = _set_folder(root)
    folders = list_folders(folder / "images") if (folder / "annotations").is_dir() else []
    return [split for split, name in FOLDERS.items() if name in folders]


def _list_pairs(root: epath.Path, split: str, kind: str) -> Pairing:
    folder = _set_folder(root)
    return pair_by_name(root, folder / "images" / FOLDERS[split], folder / "annotations" / FOLDERS[split])


def _set_folder(root: epath.Path) -> epath.Path:
    return root / "ADEChallengeData2016" if (root / "ADEChallengeData2016").is_dir() else root


_SHAPE = "images/training/ with annotations/training/"
ADE20K = Layout("ADE20K", shape=_SHAPE, labels="ade20k", splits=_list_splits, pairs=_list_pairs)
