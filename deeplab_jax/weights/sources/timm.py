"""Backbone weights without a segmentation head, from timm or torchvision.

The tensor names are defined alongside each backbone in deeplab_jax/models/backbones. timm's folders have a config.json, which
names the network and gives the mean and the standard deviation of its images.
"""

from collections.abc import Mapping
from reprlib import repr as shorten
from typing import Any

from deeplab_jax.config import ModelConfig, adapt_to_channels
from deeplab_jax.errors import CheckpointError
from deeplab_jax.models.backbones import find_backbone
from deeplab_jax.weights.source import Facts, Source, StateDict


def read_facts(state: StateDict, model: ModelConfig, overrides: Mapping[str, Any]) -> Facts:
    """Return the `mean` and `std` in timm's config.json, unless all weights of the backbone have the same.

    Raises:
      CheckpointError: A value is not a list of three numbers.
    """
    if "architecture" not in state.config or find_backbone(model.backbone).images("timm"):
        return {}
    settings = state.config.get("pretrained_cfg") or state.config  # older versions of timm have no sections
    facts: Facts = {}
    for field in [name for name in ("mean", "std") if name in settings]:
        values = settings[field]
        if not isinstance(values, list) or len(values) != 3 or not all(isinstance(number, int | float) for number in values):
            raise CheckpointError(
                f"has {field}={shorten(values)} in its config.json, not three numbers. Correct it, or use the weights file."
            )
        # The product with 255 should be 127.5 and not 127.50000000000001.
        scaled = tuple(round(255 * number, 6) for number in values)
        facts[f"model.{field}"] = (adapt_to_channels(scaled, len(model.mean)), "config.json")
    return facts


SOURCE = Source(has_names=lambda _: True, read_facts=read_facts, is_backbone_only=True)
