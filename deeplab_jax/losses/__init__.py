"""Losses by name. Their weighted sum, over heads, micro-batches and devices, is made in one place: `train/step.py`."""

from deeplab_jax.config import Config
from deeplab_jax.errors import ConfigError
from deeplab_jax.losses.cross_entropy import cross_entropy
from deeplab_jax.losses.dice import dice
from deeplab_jax.losses.loss import Loss, Mean

LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "dice": dice}


def check_terms(config: Config) -> None:
    """Raise ConfigError unless every one of `loss.terms` is a loss."""
    if unknown := [name for name in config.loss.terms if name not in LOSSES]:
        raise ConfigError(
            f"`loss.terms` (={config.loss.terms!r}) cannot be used: there is no {unknown[0]!r}, use {', '.join(LOSSES)}"
        )
