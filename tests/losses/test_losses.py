"""What every loss must be: a new one is tested by its line in `LOSSES`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from deeplab_jax.config import Config, LossConfig, MeshConfig
from deeplab_jax.errors import ConfigError
from deeplab_jax.losses import LOSSES, check_terms
from deeplab_jax.runtime.mesh import make_mesh

EVERY_LOSS = pytest.mark.parametrize("name", LOSSES)
ALL = np.ones((4, 8, 5), bool)


@functools.cache
def compiled(name):
    """A function from logits, labels and mask to the loss, its count, and the gradient by the logits."""

    def value(logits, labels, mask):
        mean = LOSSES[name](logits, labels, mask, LossConfig())
        return mean.total / mean.count, mean.count

    def run(logits, labels, mask):
        (loss, count), gradient = jax.value_and_grad(value, has_aux=True)(logits, labels, mask)
        return loss, count, gradient

    return jax.jit(run)


def sample(seed=0):
    """Four images of four classes, of which none need be in all images, with ignored pixels."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2, 3, 255], (4, 8, 5)).astype(np.uint8)
    labels[1][labels[1] == 2] = 3
    return rng.normal(size=(4, 8, 5, 4)).astype(np.float32), labels


@EVERY_LOSS
def test_the_count_depends_on_labels_and_mask_alone(name):
    logits, labels = sample()
    count = compiled(name)(logits, labels, ALL)[1]
    assert count > 0
    assert compiled(name)(np.zeros_like(logits), labels, ALL)[1] == count


@EVERY_LOSS
def test_padding_changes_nothing(name):
    """An image, and rows below the others."""
    logits, labels = sample()
    mask = ALL.copy()
    mask[3] = mask[:, 6:] = False
    padded, count, gradient = compiled(name)(logits, labels, mask)
    alone, count_alone, gradient_alone = compiled(name)(logits[:3, :6], labels[:3, :6], ALL[:3, :6])
    np.testing.assert_allclose(padded, alone, rtol=1e-6)
    assert count == count_alone
    np.testing.assert_allclose(gradient[:3, :6], gradient_alone, rtol=1e-5, atol=1e-8)
    assert not gradient[~mask].any()


@EVERY_LOSS
def test_ignored_pixels_have_no_gradient(name):
    logits, labels = sample()
    gradient = compiled(name)(logits, labels, ALL)[2]
    assert not gradient[labels == 255].any()
    assert np.abs(gradient).max() > 0


@EVERY_LOSS
@pytest.mark.parametrize("is_padding", [True, False])
def test_nothing_that_counts_gives_zero_loss_and_zero_gradient(name, is_padding):
    logits, labels = sample()
    labels = labels if is_padding else np.full_like(labels, 255)
    loss, count, gradient = compiled(name)(logits, labels, ALL & (not is_padding))
    assert loss == 0
    assert count > 0
    assert not gradient.any()


@EVERY_LOSS
def test_the_gradient_is_finite_at_extreme_logits(name):
    _, labels = sample()
    logits = np.full((4, 8, 5, 4), np.array([1e30, -1e30, 0, 0], np.float32))
    assert np.isfinite(compiled(name)(logits, labels, ALL)[2]).all()


@EVERY_LOSS
def test_the_parts_of_a_batch_add_up(name):
    logits, labels = sample()
    parts = [tuple(jnp.asarray(x[part]) for x in (logits, labels, ALL)) for part in (slice(1), slice(1, 4), slice(4))]
    means = [LOSSES[name](*part, LossConfig()) for part in parts]
    np.testing.assert_allclose(sum(mean.total for mean in means[:2]), means[2].total, rtol=1e-6)  # float32
    assert sum(mean.count for mean in means[:2]) == means[2].count


@EVERY_LOSS
def test_devices_change_nothing(name):
    logits, labels = sample()
    expected = compiled(name)(logits, labels, ALL)
    on_devices = NamedSharding(make_mesh(MeshConfig(2, 2)), P("data", "spatial"))
    actual = compiled(name)(*(jax.device_put(x, on_devices) for x in (logits, labels, ALL)))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-8), actual, expected)  # float32 sums
    assert actual[1] == expected[1]


def test_a_name_that_is_no_loss_is_named_with_those_that_are():
    check_terms(Config(loss=LossConfig(terms=("dice", "cross_entropy"), weights=(1.0, 0.5))))
    with pytest.raises(ConfigError, match=r"`loss.terms` \(=\('contrast',\)\).*no 'contrast', use cross_entropy, dice"):
        check_terms(Config(loss=LossConfig(terms=("contrast",))))
