import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplab_jax import losses


def mean_loss(logits, labels, valid):
    mask = losses.valid_pixels(labels, valid)
    return losses.cross_entropy(logits, labels, mask) / losses.normalizer(mask)


def test_against_values_worked_out_by_hand():
    # Pixel 1: softmax of (0, log 3) is (1/4, 3/4); pixel 2 is ignored; pixel 3 is uniform.
    logits = jnp.log(jnp.array([[[[1.0, 3.0], [1.0, 1e6], [1.0, 1.0]]]]))
    labels = jnp.array([[[0, 255, 1]]], jnp.uint8)
    loss = mean_loss(logits, labels, jnp.array([True]))
    np.testing.assert_allclose(loss, (np.log(4) + np.log(2)) / 2, rtol=1e-6)  # float32 logarithms


@pytest.mark.parametrize("valid", [True, False])
def test_nothing_that_counts_gives_zero_loss_and_zero_gradient(valid):
    labels = jnp.full((1, 2, 2), 255 if valid else 0, jnp.uint8)
    loss, gradient = jax.value_and_grad(mean_loss)(jnp.ones((1, 2, 2, 3)), labels, jnp.array([valid]))
    assert loss == 0
    assert (gradient == 0).all()


def test_a_padding_row_changes_nothing():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(3, 4, 5, 6)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 6, (3, 4, 5)), jnp.uint8)
    masked = mean_loss(logits, labels, jnp.array([True, True, False]))
    np.testing.assert_allclose(masked, mean_loss(logits[:2], labels[:2], jnp.array([True, True])), rtol=1e-6)


def test_gradient_is_finite_at_extreme_logits():
    logits = jnp.array([[[[1e30, -1e30, 0.0]]]], jnp.float32)
    gradient = jax.grad(mean_loss)(logits, jnp.array([[[1]]], jnp.uint8), jnp.array([True]))
    assert jnp.isfinite(gradient).all()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30))
def test_equals_the_definition_in_float64(seed, classes):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=5, size=(2, 3, 4, classes))
    labels = rng.choice([*range(classes), 255], (2, 3, 4)).astype(np.uint8)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    kept = labels != 255
    picked = np.take_along_axis(log_p, np.where(kept, labels, 0)[..., None].astype(int), -1)[..., 0]
    expected = -(picked * kept).sum() / max(kept.sum(), 1)
    actual = mean_loss(jnp.asarray(logits, jnp.float32), jnp.asarray(labels), jnp.array([True, True]))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)  # float32 sums of 24 terms
