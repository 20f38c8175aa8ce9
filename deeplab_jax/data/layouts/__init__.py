"""Folder layouts for common data sets. A layout pairs images with labels by file location.

Each layout is defined in its own file.
"""

from collections.abc import Sequence

from etils import epath

from deeplab_jax.buckets import is_url
from deeplab_jax.data.folders import is_visible, list_folders, list_names
from deeplab_jax.data.layouts.acdc import ACDC
from deeplab_jax.data.layouts.ade20k import ADE20K
from deeplab_jax.data.layouts.bdd100k import BDD100K
from deeplab_jax.data.layouts.camvid import CAMVID
from deeplab_jax.data.layouts.camvid_original import CAMVID_ORIGINAL
from deeplab_jax.data.layouts.cityscapes import CITYSCAPES
from deeplab_jax.data.layouts.coco_stuff import COCO_STUFF
from deeplab_jax.data.layouts.custom import CUSTOM
from deeplab_jax.data.layouts.idd import IDD
from deeplab_jax.data.layouts.layout import Layout
from deeplab_jax.data.layouts.mapillary import MAPILLARY, MAPILLARY2
from deeplab_jax.data.layouts.voc import VOC
from deeplab_jax.data.split_names import SPLITS
from deeplab_jax.errors import DataError, summarize

# To add a layout, add a file to this folder and an entry to this tuple. If several layouts match, the first one is used: IDD
# has the folders of Cityscapes, and Mapillary Vistas 2.0 contains the labels of version 1.2.
LAYOUTS = (
    IDD,
    CITYSCAPES,
    CUSTOM,
    CAMVID,
    CAMVID_ORIGINAL,
    VOC,
    ADE20K,
    MAPILLARY2,
    MAPILLARY,
    BDD100K,
    ACDC,
    COCO_STUFF,
)


def find_layout(root: epath.Path, split: str) -> Layout | None:
    """Return the first layout that finds the split in `root`, or None if no layout does."""
    return next((layout for layout in LAYOUTS if split in layout.splits(root)), None)


def recognize_layout(root: epath.Path) -> Layout | None:
    """Return the first layout that finds any split in `root`, or None if no layout does."""
    return next((layout for layout in LAYOUTS if layout.splits(root)), None)


def explain_missing_split(root: epath.Path, split: str, splits: Sequence[str]) -> str:
    """Return the error message for a missing split.

    Args:
      root: The data set folder.
      split: The name of the missing split.
      splits: The names of the splits that exist.
    """
    if splits:
        names = f"the splits {', '.join(splits)}" if len(splits) > 1 else f"only the split {splits[0]}"
        return f"Found no samples of split {split!r} below {root}, which has {names}.{_advise_on_split(split, splits)}"
    present = sorted(filter(is_visible, list_names(root)))
    contents = summarize((name + "/" * (root / name).is_dir() for name in present), 8)
    near = _find_nearby_layout(root)
    if near:
        return f"Found no samples of split {split!r} below {root}, which holds {contents}. Did you mean {near}?"
    return (
        f"Found no samples of split {split!r} below {root}, which holds {contents}. Put the images into input/{split}/ and the "
        f"masks into target/{split}/, or name them in list/{split}.lst. {_describe_public_layouts(split, present)}"
    )


def _describe_public_layouts(split: str, present: Sequence[str]) -> str:
    """Return the folders of the public data sets that share one with `present`, or only the names of all public data sets."""
    public = [each for each in LAYOUTS if each is not CUSTOM]
    shapes = {each.name: each.shape.replace("SPLIT", split) for each in public}
    similar = [f"{shape} ({name})" for name, shape in shapes.items() if not _top_folders(shape).isdisjoint(present)]
    if similar:
        return f"The folders of public data sets are read, too, such as {'; '.join(similar)}."
    return f"The folders of these data sets are read, too: {', '.join(shapes)} (see docs/reference/data-formats.md)."


def _top_folders(shape: str) -> set[str]:
    return {path.partition("/")[0] for path in shape.split() if "/" in path}


def _find_nearby_layout(root: epath.Path) -> str:
    """Return the folder just above or below `root` that has a layout, or "". People often give a folder one level off."""
    if is_url(root):
        return ""
    above = root.absolute().parents[:2]
    below = [root / name for name in list_folders(root)[:20]]
    return next((str(folder) for folder in (*below, *above) if _has_layout(folder)), "")


def _has_layout(folder: epath.Path) -> bool:
    try:
        return recognize_layout(folder) is not None
    except DataError:  # only a guess, so it does not matter that the folder cannot be listed
        return False


def _advise_on_split(split: str, splits: Sequence[str]) -> str:
    if split == "train":
        return " Choose one of these with --config.data.train_split, and another one with --config.eval.split."
    if split != "val":
        return " Choose one of these."
    other = next((name for name, usual in SPLITS.items() if usual != "train" and name in splits), "")
    use = f"Set --config.eval.split={other} to validate on that split, or " if other else "Set "
    return (
        f" {use}--config.data.val_share=0.2 to hold out a fifth of the training images for validation. To train without "
        "validation, set --config.train.evaluate=False."
    )
