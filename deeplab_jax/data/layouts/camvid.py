"""CamVid as the SegNet tutorial distributes it: train/ with trainannot/."""

from collections.abc import Iterator

from etils import epath

from deeplab_jax.data.layouts.layout import Layout, Pair, list_folders, pair_by_name


def list_splits(root: epath.Path) -> list[str]:
    """See `Layout.splits`."""
    folders = list_folders(root)
    return [name for name in folders if f"{name}annot" in folders]


def list_pairs(root: epath.Path, split: str, kind: str) -> Iterator[Pair]:
    """See `Layout.pairs`."""
    return pair_by_name(root, root / split, root / f"{split}annot")


CAMVID = Layout(
    name="CamVid",
    shape="SPLIT/ with SPLITannot/",
    labels="camvid",
    splits=list_splits,
    pairs=list_pairs,
)
