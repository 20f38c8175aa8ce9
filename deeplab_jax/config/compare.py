"""What may differ between a checkpoint's config and the one that it is used with."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from deeplab_jax.config import Config, to_dict
from deeplab_jax.errors import CheckpointError
from deeplab_jax.models.switches import canonical

# Fields of the model that leave the arrays and their meaning as they are.
REBINDABLE = ("model.dtype", "model.output_stride", "model.dropout", "model.aux_dropout", "model.pretrained", "model.remat")


def compare(stored: Config, config: Config, checkpoint: str) -> list[str]:
    """Return the fields in which `config` differs from `stored`, as `field: then -> now`, but for how a network is spelled.

    Args:
      stored: the checkpoint's.
      config: to use it with.
      checkpoint: its name, for the message.

    Raises:
      CheckpointError: the network or the classes differ, so that the arrays would not fit or not mean the same.
    """
    then, now = _flatten(stored), _flatten(config)
    canonical_then, canonical_now = _flatten(_spell_canonically(stored)), _flatten(_spell_canonically(config))
    fields = [field for field in then if then[field] != now[field] and canonical_then[field] != canonical_now[field]]
    if "labels.names" in fields:
        old, new = then["labels.names"], now["labels.names"]
        raise CheckpointError(
            f"`labels` (={config.labels.name!r}, {len(new)} classes) is not what {checkpoint} was trained on ({len(old)} "
            f"classes, {old[0]!r} to {old[-1]!r}): use its config, or another checkpoint or workdir"
        )
    for field in fields:
        if not _may_change(field):
            raise CheckpointError(
                f"`{field}` (={now[field]!r}) is {then[field]!r} in {checkpoint}: set it back, or use another checkpoint or "
                "workdir"
            )
    return [f"{field}: {then[field]!r} -> {now[field]!r}" for field in fields]


def _may_change(field: str) -> bool:
    return field in REBINDABLE or not field.startswith("model.")


def _spell_canonically(config: Config) -> Config:
    return dataclasses.replace(config, model=canonical(config.model))


def _flatten(config: Config) -> dict[str, Any]:
    """Return the values of the fields by their dotted names."""
    return dict(_walk(to_dict(config), ""))


def _walk(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _walk(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
