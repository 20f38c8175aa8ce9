"""The losses, keyed by name. `training/step.py` sums them over heads, micro-batches and devices."""

from deeplab_jax.config import Config
from deeplab_jax.errors import ConfigError
from deeplab_jax.losses.cross_entropy import cross_entropy
from deeplab_jax.losses.dice import dice
from deeplab_jax.losses.focal import focal
from deeplab_jax.losses.loss import Loss, Mean
from deeplab_jax.losses.lovasz import lovasz

LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "focal": focal,
    "lovasz": lovasz,
}


def check_terms(config: Config) -> None:
    """Raise a ConfigError unless every entry of `loss.terms` is a key of `LOSSES`."""
    if unknown := [name for name in config.loss.terms if name not in LOSSES]:
        raise ConfigError(
            f"`loss.terms` (={config.loss.terms!r}) contains {unknown[0]!r}, which is not a loss. "
            f"Choose from: {', '.join(LOSSES)}."
        )
