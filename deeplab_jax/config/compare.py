"""What may differ between a checkpoint's config and the one that it is used with."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from deeplab_jax.config import Config, canonical, to_dict
from deeplab_jax.errors import CheckpointError

# Fields of the model that leave the arrays and their meaning as they are.
REBINDABLE = ("model.dtype", "model.output_stride", "model.dropout", "model.aux_dropout", "model.pretrained", "model.remat")


class Change(NamedTuple):
    """A field, by its dotted name, whose value is another one now than it was then."""

    field: str
    then: Any
    now: Any


def compare(stored: Config, config: Config, checkpoint: str) -> list[str]:
    """Return the fields in which `config` differs from `stored`, as `field: then -> now`.

    Args:
      stored: the checkpoint's.
      config: to use it with.
      checkpoint: its name, for the message.

    Raises:
      CheckpointError: the network or the classes differ, so that the arrays would not fit or not mean the same.
    """
    changes = find_changes(stored, config)
    for field, then, now in changes:
        if field == "labels.names":
            raise CheckpointError(
                f"`labels` (={config.labels.name!r}, {len(now)} classes) is not what {checkpoint} was trained on ({len(then)} "
                f"classes, {then[0]!r} to {then[-1]!r}): use its config, or another checkpoint or workdir"
            )
        if not _may_change(field):
            raise CheckpointError(
                f"`{field}` (={now!r}) is {then!r} in {checkpoint}: set it back, or use another checkpoint or workdir"
            )
    return [f"{field}: {then!r} -> {now!r}" for field, then, now in changes]


def find_changes(stored: Config, config: Config) -> list[Change]:
    """Return the fields that differ, in their order; another spelling of the same network is no difference."""
    meant = {change.field for change in _find_changed_leaves(_spell_canonically(stored), _spell_canonically(config))}
    return [change for change in _find_changed_leaves(stored, config) if change.field in meant]


def _may_change(field: str) -> bool:
    return field in REBINDABLE or not field.startswith("model.")


def _spell_canonically(config: Config) -> Config:
    return dataclasses.replace(config, model=canonical(config.model))


def _find_changed_leaves(stored: Config, config: Config) -> list[Change]:
    pairs = zip(_flatten(to_dict(stored)), _flatten(to_dict(config)), strict=True)
    return [Change(field, then, now) for (field, then), (_, now) in pairs if then != now]


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
