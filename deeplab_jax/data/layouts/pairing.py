"""Pair images with masks by their file names."""

import dataclasses
import difflib
import posixpath
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence

from etils import epath

from deeplab_jax.data.decode import IMAGE_SUFFIXES, LOSSY_MASKS, LOSSY_SUFFIXES, MASK_SUFFIXES
from deeplab_jax.data.folders import list_files, list_names, select, suffix_of
from deeplab_jax.data.layouts.layout import Pair, Pairing, note_unread_files
from deeplab_jax.errors import DataError, summarize


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
    for every image. If none finds any, the beginnings and ends that the names have in common are exchanged, so that img_1.jpg
    is paired with mask_1.png. An image without a mask is paired with the name that the mask should have. If the label folder
    contains no masks at all, the split has no labels.

    Raises:
      DataError: No rule finds any mask, several rules find a mask for every image, or two masks differ only in their suffix.
    """
    image_folder, label_folder = (str(folder.relative_to(root)) for folder in (images, labels))
    image_files, label_files = list_files(images), list_files(labels)
    names = select(image_files, IMAGE_SUFFIXES)
    notes = note_unread_files(image_folder, image_files, IMAGE_SUFFIXES)
    masks = _index_masks(label_folder, select(label_files, MASK_SUFFIXES))
    if not masks or not names:
        unlabelled = tuple((f"{image_folder}/{name}", "") for name in names)
        return Pairing(unlabelled, notes, _explain_no_masks(root, labels, label_files))
    rule = _choose_rule(labels, names, masks)
    pairs, used = [], set()
    for name in names:
        stem = rule.stem(*posixpath.splitext(name))
        key = _normalize(stem)
        used.add(key)
        pairs.append((f"{image_folder}/{name}", f"{label_folder}/{masks.get(key, f'{stem}.png')}"))
    notes += note_unread_files(label_folder, label_files, MASK_SUFFIXES)
    if rule is not SAME:
        notes += (f"Masks are named {rule.pattern}, such as {pairs[0][1]} for {pairs[0][0]}.",)
    unused = [name for key, name in masks.items() if key not in used]
    if unused:
        count = f"{len(unused)} masks have" if len(unused) > 1 else "1 mask has"
        notes += (f"{count} no image and will not be used, such as {label_folder}/{unused[0]}.",)
    return Pairing(tuple(pairs), notes)


def _normalize(name: str) -> str:
    # macOS decomposes letters with accents, other systems do not: the same name then has different bytes.
    return unicodedata.normalize("NFC", name)


def _index_masks(folder: str, names: Iterable[str]) -> dict[str, str]:
    """Return the names of masks, keyed by the normalised name without the suffix."""
    masks: dict[str, str] = {}
    for name in names:
        key = _normalize(posixpath.splitext(name)[0])
        if key in masks:
            raise DataError(f"{folder}/{masks[key]} and {folder}/{name} are two masks for one image. Remove one of them.")
        masks[key] = name
    return masks


def _choose_rule(labels: epath.Path, names: Sequence[str], masks: dict[str, str]) -> Rule:
    images = [posixpath.splitext(name) for name in names]
    hits = [(_count_masks(rule, images, masks), rule) for rule in RULES]
    complete = [rule for count, rule in hits if count == len(images)]
    if len(complete) > 1:
        patterns = " and ".join(rule.pattern for rule in complete)
        raise DataError(
            f"{labels} holds several masks for each image ({patterns}, where IMAGE is the image's name). Keep only one of them."
        )
    if complete:
        return complete[0]
    if not any(count for count, _ in hits):
        hits = [(_count_masks(rule, images, masks), rule) for rule in _derive_rules([stem for stem, _ in images], masks)]
    count, rule = max(hits, key=lambda hit: hit[0])
    if count:
        return rule
    stem, suffix = images[0]
    near = difflib.get_close_matches(stem, masks.values(), n=1, cutoff=0)
    raise DataError(
        f"No mask in {labels} has the name of an image. The mask of {stem}{suffix} must be named {stem}.png. The most similar "
        f"name in the folder is {near[0]}."
    )


def _count_masks(rule: Rule, images: Sequence[tuple[str, str]], masks: Collection[str]) -> int:
    """Return how many images, given as (path without suffix, suffix), have the mask that a rule names."""
    return sum(_normalize(rule.stem(*image)) in masks for image in images)


def _derive_rules(images: Iterable[str], masks: Iterable[str]) -> tuple[Rule, Rule]:
    """Return rules that exchange what the images' names have in common for what the masks' have.

    Args:
      images: The images' paths without the suffix.
      masks: The masks' paths without the suffix.
    """
    (start, end), (new_start, new_end) = map(_find_common_ends, (images, masks))
    # The first keeps the beginnings, because masks without an image can have another one.
    return _exchange_ends(("", end), ("", new_end)), _exchange_ends((start, end), (new_start, new_end))


def _exchange_ends(old: tuple[str, str], new: tuple[str, str]) -> Rule:
    """Return the rule for masks that have the beginning and the end `new` where images have `old`."""

    def exchange(stem: str, _: str) -> str:
        folder, name = posixpath.split(_normalize(stem))
        return posixpath.join(folder, new[0] + name.removeprefix(old[0]).removesuffix(old[1]) + new[1])

    if old == ("", ""):
        return Rule(f"{new[0]}IMAGE{new[1]}.png", exchange)
    return Rule(f"{new[0]}NAME{new[1]}.png where images are named {old[0]}NAME{old[1]}", exchange)


def _find_common_ends(stems: Iterable[str]) -> tuple[str, str]:
    """Return the beginning and the end that the names of all files have in common, each made of whole words."""
    names = [posixpath.basename(_normalize(stem)) for stem in stems]
    start = _find_common_start(names)
    return start, _find_common_start([name.removeprefix(start)[::-1] for name in names])[::-1]


def _find_common_start(names: Sequence[str]) -> str:
    start = min(names, key=len, default="")
    while start and not all(name.startswith(start) and _is_boundary(start[-1], name[len(start) :]) for name in names):
        start = start[:-1]
    return start


def _is_boundary(last: str, rest: str) -> bool:
    """Return whether a word ends between a character and the rest of a name: after a separator, or before a digit."""
    return bool(rest) and (not last.isalnum() or (last.isalpha() and rest[0].isdigit()))


def note_swapped_masks(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """Return a note if masks of a list have the names of other images, as in lists made from folders in different orders."""
    images = [posixpath.splitext(posixpath.basename(image)) for image, _ in pairs]
    masks = [posixpath.splitext(posixpath.basename(mask))[0] for _, mask in pairs]
    derived = _derive_rules([stem for stem, _ in images], masks)
    for rule in (*RULES, *(rule for rule in derived if _count_masks(rule, images, set(masks)) == len(images))):
        expected = [rule.stem(*image) for image in images]
        if expected == masks:
            return ()
        owners = dict(zip(expected, pairs, strict=True))
        swapped = [i for i, mask in enumerate(masks) if mask != expected[i] and mask in owners]
        if swapped:
            (image, mask), (owner, _) = pairs[swapped[0]], owners[masks[swapped[0]]]
            return (
                f"{len(swapped)} of {len(pairs)} images have a mask with the name of another image: {image} has {mask}, but "
                f"{owner} exists. The list may have been made from two folders in different orders.",
            )
    return ()


def _explain_no_masks(root: epath.Path, labels: epath.Path, files: Sequence[str]) -> str:
    """Return which folder was searched for masks and what it holds, as the end of a sentence."""
    where = labels.relative_to(root)
    if labels.is_dir():
        contents = f"only {summarize(files)}" if files else "nothing"
        advice = f"Masks can be {', '.join(MASK_SUFFIXES)}."
        if any(suffix_of(name) in LOSSY_SUFFIXES for name in files):
            advice += f" {LOSSY_MASKS}"
        if any(suffix_of(name) == ".json" for name in files):
            advice += " Convert polygons to masks with `deeplab-jax data import`."
        return f"the folder {where} holds {contents}. {advice}"
    parent = next(folder for folder in labels.parents if folder.is_dir())
    contents = summarize(name + "/" * (parent / name).is_dir() for name in sorted(list_names(parent)))
    shown = "the data set" if parent == root else str(parent.relative_to(root))
    return f"the folder {where} does not exist, and {shown} holds {contents}. Put the masks into {where}."
