import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.config import LossConfig
from deeplab_jax.losses import lovasz


def mean_loss(logits, labels):
    labels = jnp.asarray(labels, jnp.uint8)
    mean = lovasz(logits, labels, jnp.ones(labels.shape, bool), LossConfig())
    return mean.total / mean.count


def loss_of_probabilities(probability, labels):
    return float(mean_loss(jnp.log(jnp.asarray(probability, jnp.float32)), labels))


def test_loss_matches_values_computed_by_hand():
    # The middle pixel is ignored. For both classes, the errors are 1/2 at the third pixel and 3/4 at the first one. The first
    # pixel has class 0, so class 0 loses 1 when it is wrong, and nothing more. Class 1 loses 1/2 when it becomes a false
    # positive, and 1/2 more when its only pixel is wrong as well.
    image = [[[1 / 4, 3 / 4], [0.1, 0.9], [1 / 2, 1 / 2]]]
    assert loss_of_probabilities([image], [[[0, 255, 1]]]) == pytest.approx((3 / 4 + (3 / 8 + 1 / 4)) / 2)
    # Class 1 is missing, so only class 0 counts. It loses half of its two pixels with each of the errors 3/4 and 1/2.
    assert loss_of_probabilities([image], [[[0, 255, 0]]]) == pytest.approx((3 / 4 + 1 / 2) / 2)
    # The loss is the mean over the first two images. The third image is skipped because all its pixels are ignored.
    by_image = [[[0, 255, 1]], [[0, 255, 0]], [[255, 255, 255]]]
    assert loss_of_probabilities([image] * 3, by_image) == pytest.approx((3 / 4 + 5 / 8) / 4 + 5 / 16)


def test_hard_predictions_have_a_loss_of_one_minus_iou():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 3, (2, 1, 9, 7))
    hard = np.eye(3)[predictions] + 1e-30
    iou = [np.sum((labels == c) & (predictions == c)) / np.sum((labels == c) | (predictions == c)) for c in range(3)]
    assert loss_of_probabilities(hard, labels) == pytest.approx(1 - np.mean(iou))


def test_loss_matches_segmentation_models_pytorch():
    """Compare with segmentation_models.pytorch 0.6.0's LovaszLoss("multiclass", per_image=True, ignore_index=255).

    The reference values, computed in float32 for each image, are the loss and the sum of absolute gradient values.
    """
    logits = 3 * np.sin(np.arange(120.0) ** 2).reshape(2, 3, 4, 5)
    labels = np.arange(24).reshape(2, 3, 4) % 7
    labels = np.where(labels < np.array([5, 3])[:, None, None], labels, 255)
    theirs = [[0.96180659532547, 0.06972090899944305], [0.895947277545929, 0.1486692875623703]]
    loss, gradient = jax.value_and_grad(mean_loss)(logits.astype(np.float32), labels)
    assert [loss, np.abs(gradient).sum()] == pytest.approx(np.mean(theirs, 0), rel=1e-6)
