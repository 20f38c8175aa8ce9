"""The losses, keyed by name. `training/step.py` sums them over heads, micro-batches and devices."""

import dataclasses

from deeplab_jax.config import Config, LossConfig
from deeplab_jax.config.fields import find_unused
from deeplab_jax.errors import ConfigError
from deeplab_jax.losses.cross_entropy import cross_entropy
from deeplab_jax.losses.dice import dice
from deeplab_jax.losses.focal import focal
from deeplab_jax.losses.loss import Loss, Mean
from deeplab_jax.losses.lovasz import lovasz
from deeplab_jax.losses.rmi import rmi

LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "focal": focal,
    "lovasz": lovasz,
    "rmi": rmi,
}


def check_terms(config: Config) -> None:
    """Raise a ConfigError if `loss.terms` has an entry that is not in `LOSSES`, or if a field is set that has no effect.

    A loss that a recipe adds to `LOSSES` can read any field.
    """
    if unknown := [name for name in config.loss.terms if name not in LOSSES]:
        raise ConfigError(
            f"`loss.terms` (={config.loss.terms!r}) contains {unknown[0]!r}, which is not a loss. "
            f"Choose from: {', '.join(LOSSES)}."
        )
    if not all(LOSSES[name].__module__.startswith(__name__) for name in config.loss.terms):
        return
    for field in find_unused(config.loss):
        is_used = field.metadata["is_used"]
        readers = [repr(name) for name in LOSSES if is_used(dataclasses.replace(config.loss, terms=(name,)))]
        raise ConfigError(
            f"`loss.{field.name}` (={getattr(config.loss, field.name)!r}) has no effect, because `loss.terms` "
            f"(={config.loss.terms!r}) does not contain {' or '.join(readers)}. Leave it at {field.default!r}, or add the term."
        )
    for name, is_used, reason in (
        ("ohem_min_kept", config.loss.ohem_threshold > 0, "`loss.ohem_threshold` is 0. Set a threshold, such as 0.7"),
        ("aux_weight", config.model.aux_head, "the network has no auxiliary head. Set model.aux_head to True"),
    ):
        value, default = getattr(config.loss, name), getattr(LossConfig(), name)
        if not is_used and value != default:
            raise ConfigError(f"`loss.{name}` (={value!r}) has no effect, because {reason}, or leave it at {default!r}.")
