import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplab_jax.evaluation import metrics


def test_metrics_equal_values_computed_by_hand():
    labels = jnp.array([[[0, 0, 1], [1, 255, 2]]], jnp.uint8)
    predictions = jnp.array([[[0, 1, 1], [1, 0, 1]]], jnp.uint8)
    mask = metrics.valid_pixels(labels, jnp.array([True]))
    confusion = np.asarray(metrics.confusion_counts(labels, predictions, mask, 4))
    assert confusion.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    # Class 0 has 1 hit and 1 missed pixel. Class 1 has 2 hits and 2 false positives. Class 2 is never predicted. Class 3 is
    # absent from labels and predictions.
    np.testing.assert_array_equal(metrics.class_iou(confusion), [0.5, 0.5, 0.0, np.nan])
    assert metrics.mean_iou(confusion) == 1 / 3
    assert metrics.pixel_accuracy(confusion) == 3 / 5


def test_metrics_are_nan_if_all_pixels_are_ignored():
    labels = jnp.full((2, 3, 3), 255, jnp.uint8)
    mask = metrics.valid_pixels(labels, jnp.array([True, True]))
    confusion = np.asarray(metrics.confusion_counts(labels, jnp.zeros((2, 3, 3), jnp.uint8), mask, 3))
    assert confusion.sum() == 0
    assert np.isnan(metrics.mean_iou(confusion))
    assert np.isnan(metrics.pixel_accuracy(confusion))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_iou_equals_intersection_over_union_of_pixel_sets(seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2, 255], (2, 4, 5)).astype(np.uint8)
    predictions = rng.integers(0, 3, (2, 4, 5)).astype(np.uint8)
    valid = rng.random(2) < 0.7
    mask = metrics.valid_pixels(jnp.asarray(labels), jnp.asarray(valid))
    confusion = np.asarray(metrics.confusion_counts(jnp.asarray(labels), jnp.asarray(predictions), mask, 3))
    kept = (labels != 255) & valid[:, None, None]
    for k in range(3):
        truth, predicted = (labels == k) & kept, (predictions == k) & kept
        union = (truth | predicted).sum()
        expected = (truth & predicted).sum() / union if union else np.nan
        np.testing.assert_equal(metrics.class_iou(confusion)[k], expected)
