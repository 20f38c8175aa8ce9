"""Compare the config stored in a checkpoint with the config it is used with."""

import dataclasses
from collections.abc import Sequence
from typing import Any

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

    Args:
      stored: The checkpoint's config.
      config: The config to use the checkpoint with.
      checkpoint: The checkpoint's name, for the error message.

    Raises:
      CheckpointError: The network or the classes differ, so the stored arrays do not fit or have a different meaning.
    """
    fields = find_differences([stored, config])
    if "labels.names" in fields:
        old, new = fields["labels.names"]
        raise CheckpointError(
            f"`labels` (={config.labels.name!r}, {len(new)} classes) is not the label set that {checkpoint} was trained with, "
            f"{_describe_names(old, new)}. Use the checkpoint's config, a different checkpoint or a different workdir."
        )
    for field in FIXED:
        if field in fields:
            raise CheckpointError(
                f"`{field}` (={fields[field][1]!r}) is {fields[field][0]!r} in {checkpoint}. Change it back, or use a "
                "different checkpoint or workdir."
            )
    return [f"{field}: {old!r} -> {new!r}" for field, (old, new) in fields.items()]


def _describe_names(old: Sequence[str], new: Sequence[str]) -> str:
    """Return how the classes of a label set differ from `new`, as the end of a sentence."""
    if len(old) != len(new):
        return f"which has {len(old)} classes, {old[0]!r} to {old[-1]!r}"
    i = next(i for i, names in enumerate(zip(old, new, strict=True)) if names[0] != names[1])
    return f"in which train id {i} is {old[i]!r} instead of {new[i]!r}"


def find_differences(configs: Sequence[Config]) -> dict[str, list[Any]]:
    """Return the fields in which configs differ, each with its value in every config. Not every label set has all fields.

    Configs that describe the same network in different ways count as equal.
    """
    given = [flatten(config) for config in configs]
    spelled = [flatten(_spell_canonically(config)) for config in configs]
    fields = {field: None for values in given for field in values}

    def differ(tables: Sequence[dict[str, Any]], field: str) -> bool:
        return any(values.get(field) != tables[0].get(field) for values in tables)

    return {
        field: [values.get(field) for values in given] for field in fields if differ(given, field) and differ(spelled, field)
    }


def _spell_canonically(config: Config) -> Config:
    return dataclasses.replace(config, model=canonical(config.model))
