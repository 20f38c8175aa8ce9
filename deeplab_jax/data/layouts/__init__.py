"""Folder layouts of data sets: which image goes with which label, by where the files lie. A file describes each layout."""

from etils import epath

from deeplab_jax.data.layouts.ade20k import ADE20K
from deeplab_jax.data.layouts.camvid import CAMVID
from deeplab_jax.data.layouts.cityscapes import CITYSCAPES
from deeplab_jax.data.layouts.custom import CUSTOM
from deeplab_jax.data.layouts.layout import Layout
from deeplab_jax.data.layouts.voc import VOC

# A new layout is a file here and a line in this tuple. The first that has the split is taken.
LAYOUTS = (CITYSCAPES, CUSTOM, CAMVID, VOC, ADE20K)


def find_layout(root: epath.Path, split: str) -> Layout | None:
    """Return the first layout in which `root` holds `split`."""
    return next((layout for layout in LAYOUTS if split in layout.splits(root)), None)


def recognize_layout(root: epath.Path) -> Layout | None:
    """Return the first layout in which `root` holds any split."""
    return next((layout for layout in LAYOUTS if layout.splits(root)), None)


def explain_missing_split(root: epath.Path, split: str) -> str:
    """Return why `root` has no samples of `split`: what was looked for, and what the folder holds."""
    layout = recognize_layout(root)
    if layout:
        splits = ", ".join(layout.splits(root))
        return f"no samples of split {split!r} below {root}, whose {layout.name} folders hold {splits}: name one of these"
    wanted = "; ".join(f"{layout.shape.replace('SPLIT', split)} ({layout.name})" for layout in LAYOUTS)
    names = sorted(path.name + "/" * path.is_dir() for path in root.iterdir() if not path.name.startswith("."))
    held = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing"
    return f"no samples of split {split!r} below {root}: it holds {held}; looked for list/{split}.lst; {wanted}"
