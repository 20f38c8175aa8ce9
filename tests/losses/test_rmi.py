import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.config import Config, DataConfig, LossConfig
from deeplab_jax.errors import ConfigError
from deeplab_jax.losses import rmi
from deeplab_jax.models.switches import validate


@jax.jit
def compute_loss(logits, labels):
    """Return the loss and its gradient with respect to the logits."""

    def loss(logits):
        mean = rmi(logits, labels, jnp.ones(labels.shape, bool), LossConfig())
        return mean.total / mean.count

    return jax.value_and_grad(loss)(logits)


def make_labels():
    """Return two images of blocks with classes 0 to 2 and a few ignored pixels."""
    rows, columns = np.indices((20, 23))
    labels = np.stack([(rows // 5 + columns // 7) % 3, (rows // 9 * 2 + columns // 8) % 3]).astype(np.uint8)
    labels[:, 3:6, 4:11] = 255
    return labels


LOGITS = 3 * np.sin(np.arange(2 * 20 * 23 * 4.0) ** 2).reshape(2, 20, 23, 4)
CONSTANT = np.log(5e-4) / 2  # the loss of a class without any information


def test_loss_matches_paddleseg():
    """Compare with PaddleSeg's RMILoss, run in float64 with paddlepaddle 3.3.1. Class 3 is not in the labels.

    The values are the loss and the sum of absolute gradient values. PaddleSeg rounds the loss to float32 and adds 1e-8 to each
    Cholesky factor.
    """
    expected = [-2.541545867919922, 1.6429447916033053]
    with jax.enable_x64(True):
        loss, gradient = compute_loss(LOGITS, make_labels())
    assert [float(loss), np.abs(gradient).sum()] == pytest.approx(expected, rel=1e-6)
    loss, gradient = compute_loss(LOGITS.astype(np.float32), make_labels())
    assert [float(loss), np.abs(gradient).sum()] == pytest.approx(expected, rel=5e-4)  # about 1e-4 of each is rounding


def test_classes_without_information_add_a_constant_and_have_no_gradient():
    labels = make_labels()
    assert not compute_loss(LOGITS.astype(np.float32), labels)[1][..., 3].any()
    # A class that fills the image has the same label in every region.
    loss, gradient = compute_loss(LOGITS.astype(np.float32), np.zeros_like(labels))
    assert float(loss) == pytest.approx(4 * CONSTANT, rel=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-9)


def test_an_image_without_labels_is_skipped():
    labels = make_labels()
    alone, gradient = compute_loss(LOGITS[:1].astype(np.float32), labels[:1])
    labels[1] = 255
    loss, padded_gradient = compute_loss(LOGITS.astype(np.float32), labels)
    assert float(loss) == pytest.approx(float(alone), rel=1e-6)  # float32 rounding
    np.testing.assert_allclose(padded_gradient[:1], gradient, atol=1e-4 * np.abs(gradient).max())
    assert not padded_gradient[1].any()


@pytest.mark.parametrize("scale", [-100, 100])
def test_the_gradient_is_finite_for_saturated_probabilities(scale):
    labels = make_labels()
    logits = scale * (2 * (labels[..., None] == np.arange(4)) - 1).astype(np.float32)
    loss, gradient = compute_loss(logits, labels)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()


def test_the_loss_is_finite_for_labels_with_exactly_dependent_regions():
    """Check checkerboards and stripes with the period of the pooling, which predictions repeat exactly.

    Their covariances are singular, with eigenvalues of up to 1e5 beside 5e-4.
    """
    rows, columns = np.indices((384, 512)) // 3
    labels = np.stack([(rows + columns) % 2, columns % 2]).astype(np.uint8)
    logits = 4.0 * (2 * (labels[..., None] == np.arange(2)) - 1).astype(np.float32)
    loss, gradient = compute_loss(logits, labels)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()


def test_a_better_prediction_has_a_lower_loss():
    labels = make_labels()
    noise = LOGITS.astype(np.float32)
    losses = [compute_loss(scale * (labels[..., None] == np.arange(4)) + noise, labels)[0] for scale in (0, 3, 30)]
    assert losses[0] > losses[1] > losses[2]


def test_an_image_smaller_than_a_region_has_the_constant_loss():
    """Regions have 3 x 3 pooled pixels, so the smallest image with a region is 7 x 7."""
    labels = make_labels()[:, 10:16]
    loss, gradient = compute_loss(LOGITS[:, 10:16].astype(np.float32), labels)
    assert float(loss) == pytest.approx(4 * CONSTANT, rel=1e-5)
    assert not gradient.any()


def test_a_small_crop_is_rejected():
    make_config = functools.partial(Config, loss=LossConfig(terms=("rmi",)))
    validate(make_config(data=DataConfig(crop_size=(16, 16))))
    with pytest.raises(ConfigError, match=r"`data.crop_size` \(=\(16, 15\)\) cannot be used. The loss 'rmi' .* 16 x 16"):
        validate(make_config(data=DataConfig(crop_size=(16, 15))))
