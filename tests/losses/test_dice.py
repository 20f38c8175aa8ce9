import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.config import LossConfig
from deeplab_jax.losses import dice


def mean_loss(logits, labels):
    labels = jnp.asarray(labels, jnp.uint8)
    mean = dice(logits, labels, jnp.ones(labels.shape, bool), LossConfig())
    return mean.total / mean.count


def loss_of_probabilities(probability, labels):
    return float(mean_loss(jnp.log(jnp.asarray(probability, jnp.float32)), labels))


def test_loss_matches_values_computed_by_hand():
    # The middle pixel is ignored. Class 0 scores 2 (1/4) / (3/4 + 1) = 2/7, and class 1 scores 2 (1/2) / (5/4 + 1) = 4/9.
    image = [[[1 / 4, 3 / 4], [0.1, 0.9], [1 / 2, 1 / 2]]]
    assert loss_of_probabilities([image], [[[0, 255, 1]]]) == pytest.approx(1 - (2 / 7 + 4 / 9) / 2)
    # Class 1 is missing from the labels, so only class 0 counts, with a score of 2 (3/4) / (3/4 + 2).
    assert loss_of_probabilities([image], [[[0, 255, 0]]]) == pytest.approx(1 - 6 / 11)
    # The loss is the mean over the first two images. The third image is skipped because all its pixels are ignored.
    by_image = [[[0, 255, 1]], [[0, 255, 0]], [[255, 255, 255]]]
    assert loss_of_probabilities([image] * 3, by_image) == pytest.approx(1 - (2 / 7 + 4 / 9) / 4 - 3 / 11)


def test_perfect_predictions_have_loss_0_and_completely_wrong_ones_have_loss_1():
    labels = np.array([[[0, 1], [2, 255]]])
    one_hot = np.eye(3)[np.minimum(labels, 2)]
    assert loss_of_probabilities(one_hot + 1e-30, labels) == pytest.approx(0, abs=1e-6)
    assert loss_of_probabilities(one_hot[..., [1, 2, 0]] + 1e-30, labels) == pytest.approx(1)


def test_loss_matches_segmentation_models_pytorch():
    """Compare with segmentation_models.pytorch 0.6.0's DiceLoss("multiclass", ignore_index=255).

    The reference values, computed in float64 for each image, are the loss and the sum of absolute gradient values. The second
    image contains only three of the five classes, but the reference averages over all five, so its values are scaled by 5 / 3.
    """
    logits = 3 * np.sin(np.arange(120.0) ** 2).reshape(2, 3, 4, 5)
    labels = np.arange(24).reshape(2, 3, 4) % 7
    labels = np.where(labels < np.array([5, 3])[:, None, None], labels, 255)
    theirs = np.array([[0.9589773629624201, 0.07523730294694891], [0.5224918187098415, 0.11072061349092528]])
    loss, gradient = jax.value_and_grad(mean_loss)(logits.astype(np.float32), labels)
    expected = (theirs[0] + theirs[1] * 5 / 3) / 2
    assert [loss, np.abs(gradient).sum()] == pytest.approx(expected, rel=1e-5)  # float32 rounding
