"""Tests for the properties required of every loss. Any loss added to `LOSSES` is tested automatically."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from deeplab_jax.config import Config, LossConfig, MeshConfig, ModelConfig
from deeplab_jax.errors import ConfigError
from deeplab_jax.losses import LOSSES, check_terms
from deeplab_jax.runtime.mesh import make_mesh

# The name of each loss, and in one case the field that couples neighbouring pixels.
RELAXED = "cross_entropy, relaxed"
EVERY_LOSS = pytest.mark.parametrize("name", [*LOSSES, RELAXED])
ALL = np.ones((4, 16, 14), bool)


@functools.cache
def compile_loss(name):
    """Return a compiled function that maps (logits, labels, mask) to (loss, count, gradient).

    The gradient is with respect to the logits.
    """

    def value(logits, labels, mask):
        if name == RELAXED:
            mean = LOSSES["cross_entropy"](logits, labels, mask, LossConfig(relax_border=1))
        else:
            mean = LOSSES[name](logits, labels, mask, LossConfig())
        return mean.total / mean.count, mean.count

    def run(logits, labels, mask):
        (loss, count), gradient = jax.value_and_grad(value, has_aux=True)(logits, labels, mask)
        return loss, count, gradient

    return jax.jit(run)


def make_batch(seed=0):
    """Return random logits and labels for four images with four classes.

    Some pixels are ignored, and the second image lacks class 2.
    """
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2, 3, 255], (4, 16, 14)).astype(np.uint8)
    labels[1][labels[1] == 2] = 3
    return rng.normal(size=(4, 16, 14, 4)).astype(np.float32), labels


@EVERY_LOSS
def test_the_count_depends_only_on_labels_and_mask(name):
    logits, labels = make_batch()
    count = compile_loss(name)(logits, labels, ALL)[1]
    assert count > 0
    assert compile_loss(name)(np.zeros_like(logits), labels, ALL)[1] == count


@EVERY_LOSS
def test_padding_does_not_change_loss_and_gradient(name):
    """Mark the last image and the bottom two rows of every image as padding."""
    logits, labels = make_batch()
    mask = ALL.copy()
    mask[3] = mask[:, 14:] = False
    loss, count, gradient = compile_loss(name)(logits, labels, mask)
    expected_loss, expected_count, expected_gradient = compile_loss(name)(logits[:3, :14], labels[:3, :14], ALL[:3, :14])
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    assert count == expected_count
    np.testing.assert_allclose(gradient[:3, :14], expected_gradient, rtol=1e-5, atol=1e-8)
    assert not gradient[~mask].any()


@EVERY_LOSS
def test_ignored_pixels_have_no_gradient(name):
    logits, labels = make_batch()
    gradient = compile_loss(name)(logits, labels, ALL)[2]
    assert not gradient[labels == 255].any()
    assert np.abs(gradient).max() > 0


@EVERY_LOSS
@pytest.mark.parametrize("is_padding", [True, False])
def test_a_batch_without_valid_pixels_has_zero_loss_and_gradient(name, is_padding):
    logits, labels = make_batch()
    labels = labels if is_padding else np.full_like(labels, 255)
    loss, count, gradient = compile_loss(name)(logits, labels, ALL & (not is_padding))
    assert loss == 0
    assert count > 0
    assert not gradient.any()


@EVERY_LOSS
def test_the_gradient_is_finite_at_extreme_logits(name):
    _, labels = make_batch()
    logits = np.full((4, 16, 14, 4), np.array([1e30, -1e30, 0, 0], np.float32))
    assert np.isfinite(compile_loss(name)(logits, labels, ALL)[2]).all()


@EVERY_LOSS
def test_loss_and_gradient_are_finite_without_labels_with_one_class_and_with_certain_predictions(name):
    logits, labels = make_batch()
    labels[0], labels[1] = 255, 2
    for batch in (logits, 100 * np.sign(logits)):
        loss, _, gradient = compile_loss(name)(batch, labels, ALL)
        assert np.isfinite(loss)
        assert np.isfinite(gradient).all()
        assert not gradient[0].any()


@EVERY_LOSS
def test_sums_and_counts_of_the_parts_of_a_batch_add_up(name):
    logits, labels = make_batch()
    parts = (compile_loss(name)(logits[part], labels[part], ALL[part])[:2] for part in (slice(2), slice(2, 4), slice(4)))
    (first_loss, first_count), (second_loss, second_count), (loss, count) = parts
    total = first_loss * first_count + second_loss * second_count
    np.testing.assert_allclose(total, loss * count, rtol=1e-5)  # float32 rounding
    assert first_count + second_count == count


@EVERY_LOSS
def test_loss_and_gradient_do_not_depend_on_the_devices(name):
    logits, labels = make_batch()
    expected = compile_loss(name)(logits, labels, ALL)
    on_devices = NamedSharding(make_mesh(MeshConfig(2, 2)), P("data", "spatial"))
    actual = compile_loss(name)(*(jax.device_put(x, on_devices) for x in (logits, labels, ALL)))
    # Splitting over devices changes the order of float32 sums. RMI solves linear systems, which amplifies the rounding.
    atol = 1e-4 * np.abs(expected[2]).max() if name == "rmi" else 1e-8
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=atol), actual, expected)
    assert actual[1] == expected[1]


def test_an_unknown_loss_is_rejected_with_a_list_of_losses():
    check_terms(Config(loss=LossConfig(terms=("dice", "cross_entropy"), weights=(1.0, 0.5))))
    message = r"`loss.terms` \(=\('contrast',\)\) contains 'contrast', .* Choose from: cross_entropy, dice, .*, rmi\."
    with pytest.raises(ConfigError, match=message):
        check_terms(Config(loss=LossConfig(terms=("contrast",))))


@pytest.mark.parametrize(
    ("terms", "fields", "missing"),
    [
        (("focal",), {"class_weights": (1.0, 2.0)}, "cross_entropy"),
        (("dice", "lovasz"), {"label_smoothing": 0.1}, "cross_entropy"),
        (("cross_entropy",), {"focal_gamma": 3.0}, "focal"),
        (("rmi",), {"normalizer": "all"}, "cross_entropy"),
    ],
)
def test_a_field_that_no_term_reads_is_rejected(terms, fields, missing):
    with pytest.raises(ConfigError, match=rf"`loss.{next(iter(fields))}` .* has no effect, .* does not contain '{missing}'"):
        check_terms(Config(loss=LossConfig(terms=terms, weights=(1.0,) * len(terms), **fields)))
    check_terms(Config(loss=LossConfig(terms=(*terms, missing), weights=(1.0,) * (len(terms) + 1), **fields)))


def test_a_field_of_a_feature_that_is_off_is_rejected():
    with pytest.raises(
        ConfigError, match=r"`loss.ohem_min_kept` \(=1000\) has no effect, because `loss.ohem_threshold` is 0\."
    ):
        check_terms(Config(loss=LossConfig(ohem_min_kept=1000)))
    check_terms(Config(loss=LossConfig(ohem_min_kept=1000, ohem_threshold=0.7)))
    with pytest.raises(ConfigError, match=r"`loss.aux_weight` \(=0\.5\) .* Set model.aux_head to True, or leave it at 0\.4"):
        check_terms(Config(loss=LossConfig(aux_weight=0.5)))
    check_terms(Config(loss=LossConfig(aux_weight=0.5), model=ModelConfig(aux_head=True)))


def test_a_loss_of_the_user_can_read_every_field(monkeypatch):
    monkeypatch.setitem(LOSSES, "mine", lambda logits, labels, mask, config: LOSSES["dice"](logits, labels, mask, config))
    check_terms(Config(loss=LossConfig(terms=("mine",), label_smoothing=0.1)))
