"""Folder layouts for common data sets. A layout pairs images with labels by file location.

Each layout is defined in its own file.
"""

from etils import epath

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


def explain_missing_split(root: epath.Path, split: str) -> str:
    """Return the error message for a missing split. It lists the contents of `root` and the expected files."""
    layout = recognize_layout(root)
    if layout:
        splits = ", ".join(layout.splits(root))
        return (
            f"Found no samples of split {split!r} below {root}. "
            f"Its {layout.name} folders hold the splits {splits}. Choose one of these."
        )
    expected = "; ".join(f"{layout.shape.replace('SPLIT', split)} ({layout.name})" for layout in LAYOUTS)
    names = sorted(path.name + "/" * path.is_dir() for path in root.iterdir() if not path.name.startswith("."))
    contents = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing"
    return (
        f"Found no samples of split {split!r} below {root}, which holds {contents}. "
        f"Provide list/{split}.lst or one of these layouts: {expected}."
    )
