"""The layout for custom data sets: images are in input/, and masks are in target/."""

import dataclasses
import re

from etils import epath

from deeplab_jax.data.decode import IMAGE_SUFFIXES
from deeplab_jax.data.folders import is_visible, list_folders, list_names, select
from deeplab_jax.data.layouts.layout import Layout, Pairing
from deeplab_jax.data.layouts.pairing import pair_by_name
from deeplab_jax.data.split_names import SPLITS

# A folder for a part of the data set, such as "val_set" or "Test2017", but not "valley".
PART = re.compile(r"(train|val|test|dev)(ing|id|idation|set)?([^a-z]|$)", re.IGNORECASE)


def _list_splits(root: epath.Path) -> list[str]:
    """Return the names of the folders in `input/`, each of which is a split, and the usual splits that have another name.

    If no folder has a name like a split, all images together also form a "train" split.
    """
    if not (root / "input").is_dir():
        return []
    folders = list_folders(root / "input")
    if not any(map(PART.match, folders)):
        return ["train", *folders]
    return [
        *folders,
        *(split for split in dict.fromkeys(SPLITS.values()) if split not in folders and _find_folder(folders, split)),
    ]


def _list_pairs(root: epath.Path, split: str, kind: str) -> Pairing:
    folder = _find_folder(list_folders(root / "input"), split)
    pairing = pair_by_name(root, root / "input" / folder, root / "target" / folder)
    note = (f"The split {split} is the folder input/{folder}.",) if folder not in ("", split) else ()
    return dataclasses.replace(pairing, notes=note + pairing.notes + _note_loose_images(root, folder))


def _note_loose_images(root: epath.Path, folder: str) -> tuple[str, ...]:
    """Return a note on the images next to the folder of a split. Without such a folder, they are in the split."""
    loose = sorted(select(filter(is_visible, list_names(root / "input")), IMAGE_SUFFIXES)) if folder else []
    if not loose:
        return ()
    return (
        f"Images next to the folder input/{folder} are in no split ({len(loose)}, such as input/{loose[0]}). Move them "
        "into the folder of a split.",
    )


def _find_folder(folders: list[str], split: str) -> str:
    """Return the folder of a split, or "" if there is none."""
    if split in folders:
        return split
    names = [name for name, usual in SPLITS.items() if usual == split]
    return next((folder for name in names for folder in folders if folder.lower() == name), "")


CUSTOM = Layout("custom", shape="input/SPLIT/ with target/SPLIT/", labels="", splits=_list_splits, pairs=_list_pairs)
