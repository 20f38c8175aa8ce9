"""The COCO-Stuff layout (164k images): images/train2017/ is paired with the masks in annotations/ or stuffthingmaps/."""

from etils import epath

from deeplab_jax.data.layouts.layout import Layout, Pairing
from deeplab_jax.data.layouts.renaming import pair_by_renaming

FOLDERS = {"train": "train2017", "val": "val2017", "test": "test2017"}
LABELS = ("stuffthingmaps", "stuffthingmaps_trainval2017", "annotations")


def _list_splits(root: epath.Path) -> list[str]:
    images = _image_folder(root)
    return [split for split, name in FOLDERS.items() if (images / name).is_dir()] if _find_label_folder(root) else []


def _list_pairs(root: epath.Path, split: str, kind: str) -> Pairing:
    labels = _find_label_folder(root)
    assert labels, "the split was found, so its label folder exists"
    # mmsegmentation writes masks of train ids to the same folder.
    end = "_labelTrainIds.png" if kind == "labelTrainIds" else ".png"
    return pair_by_renaming(root, _image_folder(root) / FOLDERS[split], labels / FOLDERS[split], "", end)


def _image_folder(root: epath.Path) -> epath.Path:
    return root / "images" if any((root / "images" / name).is_dir() for name in FOLDERS.values()) else root


def _find_label_folder(root: epath.Path) -> epath.Path | None:
    folders = (root / labels for labels in LABELS)
    return next((folder for folder in folders if any((folder / name).is_dir() for name in FOLDERS.values())), None)


_SHAPE = "images/SPLIT2017/ with annotations/SPLIT2017/ or stuffthingmaps/SPLIT2017/"
COCO_STUFF = Layout(
    "COCO-Stuff", shape=_SHAPE, labels="coco_stuff", splits=_list_splits, pairs=_list_pairs, label_kind="labelIds"
)
