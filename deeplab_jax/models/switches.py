"""Which fields of a `ModelConfig` a network makes use of, and whether it has them."""

import dataclasses

from deeplab_jax.config import Config, ModelConfig, unit_of_each_block
from deeplab_jax.config.validation import require, validate_fields
from deeplab_jax.models.backbones import BACKBONES, find_backbone

# Fields that some backbones alone have.
SWITCHES = frozenset().union(*(backbone.switches for backbone in BACKBONES.values()))


def validate(config: Config) -> Config:
    """Return `config` if a run can be made of it.

    Raises:
      ConfigError: naming the field, its value and what to do.
    """
    validate_fields(config)
    backbone = find_backbone(config.model.backbone)
    for field in sorted(SWITCHES - backbone.switches - backbone.ignored):
        usual = getattr(ModelConfig(), field)
        advice = f"{config.model.backbone} has no such switch, leave it at {usual!r}"
        require(config, f"model.{field}", getattr(config.model, field) == usual, advice)
    return config


def is_used(model: ModelConfig, field: str) -> bool:
    """Return whether the network makes use of a field; where not, all its values mean the same."""
    metadata = next(each.metadata for each in dataclasses.fields(model) if each.name == field)
    if field in SWITCHES and field not in find_backbone(model.backbone).switches:
        return False
    return metadata["is_used"] is None or metadata["is_used"](model)


def canonical(model: ModelConfig) -> ModelConfig:
    """Return one spelling for all configs that mean the same network, whatever the output stride.

    `multi_grid` ends with the last rate that is no repeat, and switches that the network does not use have their defaults.
    """
    multi_grid = unit_of_each_block(tuple(model.multi_grid), find_backbone(model.backbone).blocks[3])
    while len(multi_grid) > 1 and multi_grid[-1] == multi_grid[-2]:
        multi_grid = multi_grid[:-1]
    names = [field.name for field in dataclasses.fields(model)]
    usual = {name: getattr(ModelConfig(), name) for name in names if not is_used(model, name)}
    return dataclasses.replace(model, multi_grid=multi_grid, **usual)
