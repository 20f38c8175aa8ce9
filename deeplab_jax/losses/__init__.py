"""The losses, keyed by name. `training/step.py` sums them over heads, micro-batches and devices."""

import dataclasses

from deeplab_jax.config import Config
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
    """Raise a ConfigError if `loss.terms` has an entry that is not in `LOSSES`, or if a field is set that no term reads.

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
