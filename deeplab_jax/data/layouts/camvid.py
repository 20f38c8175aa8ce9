"""The CamVid layout, as distributed with the SegNet tutorial: train/ is paired with trainannot/."""

from etils import epath

from deeplab_jax.data.folders import list_folders
from deeplab_jax.data.layouts.layout import Layout, Pairing
from deeplab_jax.data.layouts.pairing import pair_by_name


def _list_splits(root: epath.Path) -> list[str]:
    folders = list_folders(root)
    return [name for name in folders if f"{name}annot" in folders]


def _list_pairs(root: epath.Path, split: str, kind: str) -> Pairing:
    return pair_by_name(root, root / split, root / f"{split}annot")


CAMVID = Layout("CamVid", shape="SPLIT/ with SPLITannot/", labels="camvid", splits=_list_splits, pairs=_list_pairs)
