"""The user's program may have set JAX up its own way."""

import jax
import numpy as np
import pytest
from conftest import random_variables, tiny_config

from deeplab_jax.api import Segmenter
from deeplab_jax.config import EvalConfig
from deeplab_jax.models import DeepLabV3

IMAGES = np.random.default_rng(0).integers(0, 256, (1, 3, 36, 50), np.uint8)


@pytest.fixture(scope="module")
def variables():
    config = tiny_config()
    return random_variables(DeepLabV3(config.model, config.labels.num_classes))


def predict(variables):
    """Return logits under every kind of view, with a new segmenter, so that everything is compiled again."""
    config = tiny_config()
    config.eval = EvalConfig(window=(24, 32), scales=(0.5, 1.0), flip=True)
    return Segmenter(config, variables).logits(IMAGES)


@pytest.fixture(scope="module")
def expected(variables):
    return predict(variables)


def test_64_bit_numbers_do_not_change_the_result(variables, expected):
    with jax.enable_x64(True):
        logits = predict(variables)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=1e-5)  # rounding of the log of probabilities


def test_the_result_is_the_same_if_jit_is_disabled(variables, expected):
    with jax.disable_jit():
        np.testing.assert_array_equal(predict(variables), expected)
