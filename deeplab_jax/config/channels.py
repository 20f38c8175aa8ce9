"""Adapt settings for RGB images to other numbers of channels."""

import dataclasses
from typing import Any

from deeplab_jax.config.model import IMAGENET_MEAN, IMAGENET_STD
from deeplab_jax.config.schema import Config


def adapt_to_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return one number for each channel, from the numbers for R, G and B.

    One channel gets their average. Otherwise, they are repeated: R, G, B, R, ... Published weights are adapted to other numbers
    of channels in the same way (see `weights.channels`), so each kernel keeps the normalisation that it was trained with.
    """
    return (sum(values) / 3,) if channels == 1 else tuple(values[i % 3] for i in range(channels))


def fill_defaults(config: Config) -> Config:
    """Return the config with `model.mean` and `model.std` adapted to `data.channels`, if they have their default values."""
    defaults = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    channels, model = config.data.channels, config.model
    adapted: dict[str, Any] = {
        name: adapt_to_channels(default, channels)
        for name, default in defaults.items()
        if channels != 3 and getattr(model, name) == default
    }
    return dataclasses.replace(config, model=dataclasses.replace(model, **adapted)) if adapted else config
