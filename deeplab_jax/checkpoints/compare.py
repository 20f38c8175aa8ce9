"""What may differ between a checkpoint's config and the one that it is used with."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from deeplab_jax.config import Config, ModelConfig, to_dict
from deeplab_jax.config.fields import names_of
from deeplab_jax.errors import CheckpointError
from deeplab_jax.models import canonical

# Fields under which stored arrays would not fit, or would compute something else.
FIXED = {f"model.{name}" for name in names_of(ModelConfig, changes=("shapes", "meaning"))}


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
        if field in FIXED:
            raise CheckpointError(
                f"`{field}` (={now[field]!r}) is {then[field]!r} in {checkpoint}: set it back, or use another checkpoint or "
                "workdir"
            )
    return [f"{field}: {then[field]!r} -> {now[field]!r}" for field in fields]


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
