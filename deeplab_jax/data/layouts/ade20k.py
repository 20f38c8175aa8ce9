"""ADE20K (ADEChallengeData2016): images/training/ with annotations/training/."""

from collections.abc import Iterator

from etils import epath

from deeplab_jax.data.layouts.layout import Layout, Pair, list_folders, pair_by_name

FOLDERS = {"train": "training", "val": "validation"}


def list_splits(root: epath.Path) -> list[str]:
    """See `Layout.splits`."""
    folder = _set_folder(root)
    folders = list_folders(folder / "images") if (folder / "annotations").is_dir() else []
    return [split for split, name in FOLDERS.items() if name in folders]


def list_pairs(root: epath.Path, split: str, kind: str) -> Iterator[Pair]:
    """See `Layout.pairs`."""
    folder = _set_folder(root)
    return pair_by_name(root, folder / "images" / FOLDERS[split], folder / "annotations" / FOLDERS[split])


def _set_folder(root: epath.Path) -> epath.Path:
    return root / "ADEChallengeData2016" if (root / "ADEChallengeData2016").is_dir() else root


ADE20K = Layout(
    name="ADE20K",
    shape="images/training/ with annotations/training/",
    labels="ade20k",
    splits=list_splits,
    pairs=list_pairs,
)
