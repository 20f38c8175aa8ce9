import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.config import LossConfig
from deeplab_jax.losses import cross_entropy, focal

# The pixels have probabilities of 1/4 and 1/2 for their classes. The pixel between them is ignored.
LOGITS = np.log(np.array([[[[1 / 4, 3 / 4], [0.1, 0.9], [1 / 2, 1 / 2]]]], np.float32))
LABELS = np.array([[[0, 255, 1]]], np.uint8)


def mean_loss(loss, **settings):
    mean = loss(jnp.asarray(LOGITS), jnp.asarray(LABELS), jnp.ones(LABELS.shape, bool), LossConfig(**settings))
    return float(mean.total / mean.count)


@pytest.mark.parametrize("gamma", [0.5, 1, 2, 5])
def test_loss_matches_values_computed_by_hand(gamma):
    expected = ((3 / 4) ** gamma * np.log(4) + (1 / 2) ** gamma * np.log(2)) / 2
    assert mean_loss(focal, focal_gamma=gamma) == pytest.approx(expected, rel=1e-6)


def test_without_gamma_it_is_the_cross_entropy():
    assert mean_loss(focal, focal_gamma=0.0) == pytest.approx(mean_loss(cross_entropy), rel=1e-6)
