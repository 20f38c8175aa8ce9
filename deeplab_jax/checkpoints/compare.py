"""Compare the config stored in a checkpoint with the config it is used with."""

import dataclasses

from deeplab_jax.config import Config, DataConfig, ModelConfig, flatten
from deeplab_jax.config.fields import field_names
from deeplab_jax.errors import CheckpointError
from deeplab_jax.models import canonical

# Changing one of these fields would give the stored arrays the wrong shapes or a different meaning.
# The number of channels comes first, because other fields, such as `model.mean`, depend on it.
FIXED = [
    *(f"data.{name}" for name in field_names(DataConfig, changes=("shapes", "meaning"))),
    *(f"model.{name}" for name in field_names(ModelConfig, changes=("shapes", "meaning"))),
]


def compare_configs(stored: Config, config: Config, checkpoint: str) -> list[str]:
    """Return the fields in which `config` differs from `stored`, as `field: old -> new`.

    Configs that describe the same network in different ways count as equal.

    Args:
      stored: The checkpoint's config.
      config: The config to use the checkpoint with.
      checkpoint: The checkpoint's name, for the error message.

    Raises:
      CheckpointError: The network or the classes differ, so the stored arrays do not fit or have a different meaning.
    """
    then, now = flatten(stored), flatten(config)
    canonical_then, canonical_now = flatten(_spell_canonically(stored)), flatten(_spell_canonically(config))
    fields = [
        field
        # Not every label set has all fields.
        for field in then | now
        if then.get(field) != now.get(field) and canonical_then.get(field) != canonical_now.get(field)
    ]
    if "labels.names" in fields:
        old, new = then["labels.names"], now["labels.names"]
        raise CheckpointError(
            f"`labels` (={config.labels.name!r}, {len(new)} classes) is not the label set that {checkpoint} was trained with "
            f"({len(old)} classes, {old[0]!r} to {old[-1]!r}). Use the checkpoint's config, a different checkpoint or "
            f"a different workdir."
        )
    for field in FIXED:
        if field in fields:
            raise CheckpointError(
                f"`{field}` (={now[field]!r}) is {then[field]!r} in {checkpoint}. Change it back, or use a different "
                "checkpoint or workdir."
            )
    return [f"{field}: {then.get(field)!r} -> {now.get(field)!r}" for field in fields]


def _spell_canonically(config: Config) -> Config:
    return dataclasses.replace(config, model=canonical(config.model))
