"""Pair images with masks by their file names."""

import dataclasses
import difflib
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from etils import epath

from deeplab_jax.data.decode import IMAGE_SUFFIXES, MASK_SUFFIXES
from deeplab_jax.data.layouts.layout import Pairing, list_files, list_images, list_masks, note_unread_files
from deeplab_jax.errors import DataError


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """A way to name masks.

    Attributes:
      pattern: How a mask is named, as shown in messages.
      stem: A function that takes an image path without its suffix, and its suffix, and returns the mask path without its
        suffix.
    """

    pattern: str
    stem: Callable[[str, str], str]


def _add_suffix(suffix: str) -> Rule:
    return Rule(f"IMAGE{suffix}.png", lambda stem, _: stem + suffix)


SAME = Rule("IMAGE.png", lambda stem, _: stem)
RULES = (
    SAME,
    Rule("IMAGE.jpg.png", lambda stem, suffix: stem + suffix),  # Supervisely, CVAT
    *map(_add_suffix, ("_mask", "_masks", "_label", "_labels", "_seg", "_segmentation", "_gt", "_L", "-mask", "_labelIds")),
    Rule("IMAGE_gtFine_labelIds.png", lambda stem, _: f"{stem.removesuffix('_leftImg8bit')}_gtFine_labelIds"),
)


def pair_by_name(root: epath.Path, images: epath.Path, labels: epath.Path) -> Pairing:
    """Return (image, label) pairs from two folders, matching files by relative path without the suffix.

    If no mask has its image's name, other ways to name masks are tried (see `RULES`). One of them is used if it finds a mask
    for every image. An image without a mask is paired with the name that the mask should have. If the label folder contains no
    masks at all, the split has no labels.

    Raises:
      DataError: No rule finds any mask, several rules find a mask for every image, or two masks differ only in their suffix.
    """
    image_paths = list_images(images)
    notes = note_unread_files(root, images, IMAGE_SUFFIXES)
    masks = _index_masks(root, labels)
    if not masks or not image_paths:
        unlabelled = tuple((str(path.relative_to(root)), "") for path in image_paths)
        return Pairing(unlabelled, notes, _explain_no_masks(root, labels))
    names = [(str(path.relative_to(images).with_suffix("")), path.suffix) for path in image_paths]
    rule = _choose_rule(root, labels, names, masks)
    pairs, used = [], set()
    for path, (stem, suffix) in zip(image_paths, names, strict=True):
        key = _normalize(rule.stem(stem, suffix))
        used.add(key)
        label = masks.get(key, labels / f"{rule.stem(stem, suffix)}.png")
        pairs.append((str(path.relative_to(root)), str(label.relative_to(root))))
    notes += note_unread_files(root, labels, MASK_SUFFIXES)
    if rule is not SAME:
        notes += (f"Masks are named {rule.pattern}, such as {pairs[0][1]} for {pairs[0][0]}.",)
    unused = [path for key, path in masks.items() if key not in used]
    if unused:
        count = f"{len(unused)} masks have" if len(unused) > 1 else "1 mask has"
        notes += (f"{count} no image and will not be used, such as {unused[0].relative_to(root)}.",)
    return Pairing(tuple(pairs), notes)


def _normalize(name: str) -> str:
    # macOS decomposes letters with accents, other systems do not: the same name then has different bytes.
    return unicodedata.normalize("NFC", name)


def _index_masks(root: epath.Path, labels: epath.Path) -> dict[str, epath.Path]:
    """Return the mask files in `labels`, keyed by their normalized relative path without the suffix."""
    masks: dict[str, epath.Path] = {}
    for path in list_masks(labels):
        key = _normalize(str(path.relative_to(labels).with_suffix("")))
        if key in masks:
            raise DataError(
                f"{masks[key].relative_to(root)} and {path.relative_to(root)} are two masks for one image. Remove one of them."
            )
        masks[key] = path
    return masks


def _choose_rule(root: epath.Path, labels: epath.Path, images: Sequence[tuple[str, str]], masks: dict[str, epath.Path]) -> Rule:
    hits = [(sum(_normalize(rule.stem(*image)) in masks for image in images), rule) for rule in RULES]
    complete = [rule for count, rule in hits if count == len(images)]
    if len(complete) > 1:
        patterns = " and ".join(rule.pattern for rule in complete)
        raise DataError(
            f"{labels} holds several masks for each image ({patterns}, where IMAGE is the image's name). Keep only one of them."
        )
    count, rule = max(hits, key=lambda hit: hit[0])
    if complete or count:
        return complete[0] if complete else rule
    stem, suffix = images[0]
    near = difflib.get_close_matches(stem, [str(path.relative_to(labels)) for path in masks.values()], n=1, cutoff=0)
    raise DataError(
        f"No mask in {labels} has the name of an image. The mask of {stem}{suffix} must be named {stem}.png. The most similar "
        f"name in the folder is {near[0]}."
    )


def _explain_no_masks(root: epath.Path, labels: epath.Path) -> str:
    """Return which folder was searched for masks and what it holds, as the second part of a sentence."""
    where = labels.relative_to(root)
    if labels.is_dir():
        files = list_files(labels)
        contents = f"only {summarize(str(path.relative_to(labels)) for path in files)}" if files else "nothing"
        advice = f"Masks can be {', '.join(MASK_SUFFIXES)}."
        if any(path.suffix == ".json" for path in files):
            advice += " Convert polygons to masks with `deeplab-jax data import`."
        return f"the folder {where} holds {contents}. {advice}"
    parent = next(folder for folder in labels.parents if folder.is_dir())
    contents = summarize(path.name + "/" * path.is_dir() for path in sorted(parent.iterdir()))
    shown = "the data set" if parent == root else str(parent.relative_to(root))
    return f"the folder {where} does not exist, and {shown} holds {contents}. Put the masks into {where}."


def summarize(names: Iterable[str], most: int = 5) -> str:
    """Return the first names and the number of the others, such as "a, b and 7 more"."""
    listed = list(names)
    if not listed:
        return "nothing"
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
