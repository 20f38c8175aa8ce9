"""The losses, keyed by name. `training/step.py` sums them over heads, micro-batches and devices."""

from deeplab_jax.config import Config, LossConfig
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

# The fields that only one of these losses reads.
_OWN_FIELDS = {
    "cross_entropy": ("class_weights", "label_smoothing", "ohem_threshold"),
    "dice": (),
    "focal": ("focal_gamma",),
    "lovasz": (),
}


def check_terms(config: Config) -> None:
    """Raise a ConfigError if `loss.terms` has an entry that is not in `LOSSES`, or if a field is set that no term reads."""
    if unknown := [name for name in config.loss.terms if name not in LOSSES]:
        raise ConfigError(
            f"`loss.terms` (={config.loss.terms!r}) contains {unknown[0]!r}, which is not a loss. "
            f"Choose from: {', '.join(LOSSES)}."
        )
    if set(config.loss.terms) <= _OWN_FIELDS.keys():  # other losses can read any field
        for name in _OWN_FIELDS.keys() - set(config.loss.terms):
            for field in _OWN_FIELDS[name]:
                value = getattr(config.loss, field)
                if value != getattr(LossConfig(), field):
                    raise ConfigError(
                        f"`loss.{field}` (={value!r}) has no effect, because `loss.terms` (={config.loss.terms!r}) does not "
                        f"contain {name!r}. Leave it at {getattr(LossConfig(), field)!r}, or add the term."
                    )
