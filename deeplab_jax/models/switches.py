"""Validate a `ModelConfig` and convert it to a canonical form, based on the fields used by its backbone."""

import dataclasses

from deeplab_jax.config import Config, ModelConfig, unit_of_each_block
from deeplab_jax.config.fields import find_unused
from deeplab_jax.config.validation import require, validate_fields
from deeplab_jax.errors import ConfigError
from deeplab_jax.models.backbones import BACKBONES, find_backbone

# The `ModelConfig` fields used by only some backbones.
SWITCHES = frozenset().union(*(backbone.switches for backbone in BACKBONES.values()))


def validate(config: Config) -> Config:
    """Return `config` with its missing defaults (see `fill_defaults`), after checking that it is valid.

    If its label set says how label files encode classes, `data.label_kind` follows.

    Raises:
      ConfigError: A field is invalid. The message gives the field, its value and a fix.
    """
    config = validate_fields(config)
    backbone = find_backbone(config.model.backbone)
    for field in sorted(SWITCHES - backbone.switches - backbone.ignored):
        default = getattr(ModelConfig(), field)
        advice = f"The backbone {config.model.backbone} has no such option. Leave it at {default!r}."
        require(config, f"model.{field}", getattr(config.model, field) == default, advice)
    if config.data.label_kind == "auto" and config.labels.label_kind:
        return dataclasses.replace(config, data=dataclasses.replace(config.data, label_kind=config.labels.label_kind))
    return config


def check_effects(model: ModelConfig) -> None:
    """Raise a ConfigError if a field is set that has no effect on the network.

    Only training calls this, because networks from earlier versions may have such fields.
    """
    for field in find_unused(model):
        raise ConfigError(
            f"`model.{field.name}` (={getattr(model, field.name)!r}) has no effect without {field.metadata['needs']}. "
            f"Leave it at {field.default!r}, or set that as well."
        )


def is_used(model: ModelConfig, field: str) -> bool:
    """Return whether the network uses a field. The value of an unused field makes no difference."""
    metadata = next(each.metadata for each in dataclasses.fields(model) if each.name == field)
    if field in SWITCHES and field not in find_backbone(model.backbone).switches:
        return False
    return metadata["is_used"] is None or metadata["is_used"](model)


def canonical(model: ModelConfig) -> ModelConfig:
    """Return the canonical form of `model`.

    Two configs that describe the same network at every output stride have the same canonical form. In the canonical form,
    `multi_grid` does not end in repeated rates, and unused fields have their default values.
    """
    multi_grid = unit_of_each_block(tuple(model.multi_grid), find_backbone(model.backbone).blocks[3])
    while len(multi_grid) > 1 and multi_grid[-1] == multi_grid[-2]:
        multi_grid = multi_grid[:-1]
    names = [field.name for field in dataclasses.fields(model)]
    defaults = {name: getattr(ModelConfig(), name) for name in names if not is_used(model, name)}
    return dataclasses.replace(model, multi_grid=multi_grid, **defaults)
