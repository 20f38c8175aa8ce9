"""What may differ between a checkpoint's config and the one that it is used with."""

import dataclasses
from typing import Any

from deeplab_jax.config import Config, to_dict
from deeplab_jax.errors import CheckpointError
from deeplab_jax.models.switches import canonical

# Switches that leave the arrays and their meaning as they are.
REBINDABLE = ("model.dtype", "model.output_stride", "model.dropout", "model.aux_dropout", "model.pretrained", "model.remat")


def compare(stored: Config, config: Config, checkpoint: str) -> list[str]:
    """Fields in which `config` differs from `stored`, as `field: then -> now`; another spelling of a network is no difference.

    Args:
      stored: the checkpoint's.
      config: to use it with.
      checkpoint: its name, for the message.

    Raises:
      CheckpointError: the network or the classes differ, so that the arrays would not fit or not mean the same.
    """
    meant = {field for field, _, _ in _differing(_canonical(stored), _canonical(config))}
    rows = [row for row in _differing(stored, config) if row[0] in meant]
    for field, then, now in rows:
        if field == "labels.names":
            raise CheckpointError(
                f"`labels` (={config.labels.name!r}, {len(now)} classes) is not what {checkpoint} was trained on ({len(then)} "
                f"classes, {then[0]!r} to {then[-1]!r}): use its config, or another checkpoint or workdir"
            )
    for field, then, now in rows:
        if field.startswith("model.") and field not in REBINDABLE:
            raise CheckpointError(
                f"`{field}` (={now!r}) is {then!r} in {checkpoint}: set it back, or use another checkpoint or workdir"
            )
    return [f"{field}: {then!r} -> {now!r}" for field, then, now in rows]


def require_same_averaging(stored: Config, config: Config, checkpoint: str) -> None:
    """Raises CheckpointError if only one of the two averages its parameters: no training goes on without its average.

    Args:
      stored: the checkpoint's.
      config: to go on with.
      checkpoint: its name, for the message.
    """
    then, now = stored.optim.ema_decay, config.optim.ema_decay
    if (then == 0) != (now == 0):
        raise CheckpointError(
            f"`optim.ema_decay` (={now!r}) is {then!r} in {checkpoint}, and an average neither begins nor ends within a run: "
            "set it back, or use another workdir"
        )


def _canonical(config: Config) -> Config:
    return dataclasses.replace(config, model=canonical(config.model))


def _differing(stored: Config, config: Config) -> list[tuple[str, Any, Any]]:
    return [row for row in _paired_leaves(to_dict(stored), to_dict(config)) if row[1] != row[2]]


def _paired_leaves(a: dict, b: dict, prefix: str = "") -> list[tuple[str, Any, Any]]:
    rows: list[tuple[str, Any, Any]] = []
    for key in a:
        both_nested = isinstance(a[key], dict) and isinstance(b.get(key), dict)
        rows += _paired_leaves(a[key], b[key], f"{prefix}{key}.") if both_nested else [(prefix + key, a[key], b.get(key))]
    return rows
