"""Tests for fields that have an effect only with others."""

import pytest

from deeplab_jax.config import ModelConfig
from deeplab_jax.errors import ConfigError
from deeplab_jax.models import check_effects


@pytest.mark.parametrize(
    ("field", "value", "needs"),
    [
        ("low_level_width", 32, {"decoder_width": 256}),
        ("decoder_conv", "depthwise+1x1", {"decoder_width": 256}),
        ("decoder_depth", 1, {"decoder_width": 256}),
        ("decoder_dropout", 0.1, {"decoder_width": 256}),
        ("aux_dropout", 0.2, {"aux_head": True}),
        ("pool_dilated_shortcuts", False, {"shortcut": "avgpool+1x1"}),
    ],
)
def test_a_field_without_effect_is_refused_with_what_it_needs(field, value, needs):
    message = rf"^`model.{field}` \(={value!r}\) has no effect without .*model.{next(iter(needs))}.*\. Leave it at "
    with pytest.raises(ConfigError, match=message.replace("+", r"\+")):
        check_effects(ModelConfig(**{field: value}))
    check_effects(ModelConfig(**{field: value}, **needs))
