"""Folder layouts for common data sets. A layout pairs images with labels by file location.

Each layout is defined in its own file.
"""

from collections.abc import Sequence

from etils import epath

from deeplab_jax.data.layouts.ade20k import ADE20K
from deeplab_jax.data.layouts.camvid import CAMVID
from deeplab_jax.data.layouts.cityscapes import CITYSCAPES
from deeplab_jax.data.layouts.custom import CUSTOM
from deeplab_jax.data.layouts.layout import Layout, is_visible
from deeplab_jax.data.layouts.pairing import summarize
from deeplab_jax.data.layouts.voc import VOC

# To add a layout, add a file to this folder and an entry to this tuple. If several layouts match, the first one is used.
LAYOUTS = (CITYSCAPES, CUSTOM, CAMVID, VOC, ADE20K)


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
    expected = "; ".join(f"{layout.shape.replace('SPLIT', split)} ({layout.name})" for layout in LAYOUTS)
    contents = summarize((path.name + "/" * path.is_dir() for path in sorted(root.iterdir()) if is_visible(path.name)), 8)
    return (
        f"Found no samples of split {split!r} below {root}, which holds {contents}. "
        f"Provide list/{split}.lst or one of these layouts: {expected}."
    )


# Other names that people give to validation splits.
VALIDATION = ("valid", "validation", "dev", "testing", "test")


def _advise_on_split(split: str, splits: Sequence[str]) -> str:
    if split != "val":
        return " Choose one of these."
    other = next((name for name in VALIDATION if name in splits), "")
    use = f"Set --config.eval.split={other} to validate on that split, or " if other else "Set "
    return f" {use}--config.data.val_share=0.2 to hold out a fifth of the training images for validation."
