"""The ACDC layout (adverse conditions): one folder per condition, which contains the splits.

A split combines all conditions. The classes and ids are those of Cityscapes.
"""

from etils import epath

from deeplab_jax.data.folders import list_folders
from deeplab_jax.data.layouts.layout import Layout, Pairing
from deeplab_jax.data.layouts.renaming import join, pair_by_renaming

SPLITS = ("train", "val", "test")
# Maps each label kind to the part of the label file names that shows the kind.
ENDS = {"labelIds": "_gt_labelIds.png", "labelTrainIds": "_gt_labelTrainIds.png", "color": "_gt_labelColor.png"}


def _list_splits(root: epath.Path) -> list[str]:
    images = _image_folder(root)
    conditions = list_folders(images)
    return [split for split in SPLITS if any((images / condition / split).is_dir() for condition in conditions)]


def _list_pairs(root: epath.Path, split: str, kind: str) -> Pairing:
    images, labels = _image_folder(root), _find_label_folder(root)
    end = ENDS["labelIds" if kind == "auto" else kind]
    names = [name for name in list_folders(images) if (images / name / split).is_dir()]
    return join([pair_by_renaming(root, images / name / split, labels / name / split, "_rgb_anon", end) for name in names])


def _image_folder(root: epath.Path) -> epath.Path:
    folder = root / "rgb_anon_trainvaltest" / "rgb_anon"
    return folder if folder.is_dir() else root / "rgb_anon"


def _find_label_folder(root: epath.Path) -> epath.Path:
    folder = root / "gt_trainval" / "gt"
    return folder if folder.is_dir() else root / "gt"


_SHAPE = "rgb_anon/CONDITION/SPLIT/ with gt/CONDITION/SPLIT/"
ACDC = Layout("ACDC", shape=_SHAPE, labels="cityscapes", splits=_list_splits, pairs=_list_pairs, label_kind="labelIds")
