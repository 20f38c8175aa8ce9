"""Merge classes of a label set into fewer classes, or ignore them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from deeplab_jax.errors import ConfigError
from deeplab_jax.labels.label_set import IGNORE, Color, LabelSet


def merge(label_set: LabelSet, groups: Mapping[str, Sequence[str]], ignored: Sequence[str] = (), *, name: str = "") -> LabelSet:
    """Return a label set in which each group of classes is one class. It reads the same label files as `label_set`.

    For example, `merge(CITYSCAPES, {"vehicle": ("car", "truck", "bus")}, ignored=("sky",))` has 15 classes: "vehicle", followed
    by the other classes in their order.

    To merge the train ids that label files store, set the `label_kind` of `label_set` to "labelTrainIds". In the result, they
    are the ids of the label files.

    Args:
      label_set: The label set to start from.
      groups: Maps the name of each new class to the classes that it consists of. The new classes come first, in this order. The
        first class of a group gives the new class its colour, and its id in submissions.
      ignored: The classes to map to the ignore label.
      name: The name of the result. "" adds "-merged" to the name of `label_set`.

    Raises:
      ConfigError: A class does not exist or is used twice, a group is empty, or fewer than two classes remain.
    """
    _require_classes(label_set, groups, ignored)
    if label_set.label_kind == "labelTrainIds":
        label_set = dataclasses.replace(label_set, ids=(), more_ids=(), ignored_ids=(IGNORE,), label_kind="labelIds")
    used = {*ignored, *(member for members in groups.values() for member in members)}
    kept = {member: (member,) for member in label_set.names if member not in used}
    repeated = sorted(set(groups) & set(kept))
    if repeated:
        raise ConfigError(
            f"`groups` has the name {repeated[0]!r}, which is also the name of another class. Use a different name."
        )
    merged = {**groups, **kept}
    ids = dict(zip(label_set.names, label_set.ids_by_class, strict=True))
    colors = dict(zip(label_set.names, label_set.colors_by_class, strict=True))
    return group_values(
        name or f"{label_set.name}-merged",
        tuple(merged),
        [_concatenate(ids[member] for member in members) for members in merged.values()],
        [_concatenate(colors[member] for member in members) for members in merged.values()],
        ignored_ids=label_set.ignored_ids + _concatenate(ids[member] for member in ignored),
        ignored_colors=label_set.ignored_colors + _concatenate(colors[member] for member in ignored),
        label_kind=label_set.label_kind,
    )


def group_values(
    name: str,
    names: tuple[str, ...],
    ids: Sequence[tuple[int, ...]],
    colors: Sequence[tuple[Color, ...]],
    **others: Any,
) -> LabelSet:
    """Return a label set, given all values of each class.

    Args:
      name: The name of the label set.
      names: The class names, in train id order.
      ids: The ids of each class. If empty, the ids are the train ids.
      colors: The colours of each class.
      **others: The other fields of `LabelSet`, where they differ from the defaults.

    Raises:
      ConfigError: The values do not form a label set. See `LabelSet`.
    """
    first_ids = tuple(group[0] for group in ids)
    more_ids = tuple(group[1:] for group in ids)
    more_colors = tuple(group[1:] for group in colors)
    return LabelSet(
        name,
        names,
        tuple(group[0] for group in colors),
        # `LabelSet.ids` stays empty if the ids are the same as the train ids.
        ids=() if first_ids == tuple(range(len(first_ids))) else first_ids,
        more_ids=more_ids if any(more_ids) else (),
        more_colors=more_colors if any(more_colors) else (),
        **others,
    )


def _concatenate(groups: Any) -> tuple[Any, ...]:
    return tuple(value for group in groups for value in group)


def _require_classes(label_set: LabelSet, groups: Mapping[str, Sequence[str]], ignored: Sequence[str]) -> None:
    named = [*ignored]
    for group, members in groups.items():
        if isinstance(members, str) or not members:
            raise ConfigError(f"`groups[{group!r}]` (={members!r}) is not a list of classes. Give one or more class names.")
        named += members
    unknown = [member for member in named if member not in label_set.names]
    if unknown:
        raise ConfigError(
            f"`groups` or `ignored` contains {unknown[0]!r}, which is not a class of {label_set.name!r}. "
            f"Use {', '.join(label_set.names)}."
        )
    repeated = [member for member in named if named.count(member) > 1]
    if repeated:
        raise ConfigError(f"`groups` or `ignored` contains {repeated[0]!r} more than once. Use each class only once.")
