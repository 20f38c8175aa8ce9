import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_boundaries import naive_boundaries

from deeplab_jax.evaluation.counts import (
    boundary_counts,
    calibration_counts,
    confidences,
    confusion_counts,
    count_images,
    count_pixels,
    loss_sum,
    valid_pixels,
)

K, SHAPE = 3, (2, 9, 12)


def test_confusions_equal_values_counted_by_hand():
    labels = jnp.array([[[0, 0, 1], [1, 255, 2]], [[0, 0, 0], [0, 0, 0]]], jnp.uint8)
    predictions = jnp.array([[[0, 1, 1], [1, 0, 1]], [[2, 2, 2], [2, 2, 0]]], jnp.uint8)
    for valid, second in ((True, [[1, 0, 5], [0, 0, 0], [0, 0, 0]]), (False, [[0] * 3] * 3)):
        mask = valid_pixels(labels, jnp.array([True, valid]))
        confusion = confusion_counts(labels, predictions, mask, 3)
        assert confusion.tolist() == [[[1, 1, 0], [0, 2, 0], [0, 1, 0]], second]


def test_the_loss_is_the_cross_entropy_of_the_labelled_pixels():
    logits = jnp.array([[[[0.0, math.log(3)], [5.0, 1.0], [2.0, 2.0]]]])
    labels = jnp.array([[[1, 255, 0]]], jnp.uint8)
    mask = valid_pixels(labels, jnp.ones(1, bool))
    assert float(loss_sum(logits, labels, mask)) == pytest.approx(math.log(4 / 3) + math.log(2), rel=1e-6)


def test_a_confidence_is_the_largest_probability():
    logits = jnp.array([[[[0.0, math.log(3)], [1e4, 0.0], [2.0, 2.0]]]])
    np.testing.assert_allclose(confidences(logits), [[[0.75, 1, 0.5]]], rtol=1e-6)


def test_a_bin_includes_its_upper_end():
    confidence = jnp.array([[[0.2, 0.2001, 1.0, 1e-3, 0.9]]])  # 0.2 is the end of bin 2
    is_hit = jnp.array([[[True, False, True, True, True]]])
    mask = jnp.array([[[True, True, True, True, False]]])
    counts = calibration_counts(confidence, is_hit, mask)
    assert {k: (int(counts.pixels[k]), int(counts.hits[k])) for k in np.flatnonzero(counts.pixels)} == {
        0: (1, 1),
        2: (1, 1),
        3: (1, 0),
        14: (1, 1),
    }
    # A confidence is rounded to 15 bits.
    np.testing.assert_allclose(counts.confidence[jnp.array([0, 2, 3, 14])], [1e-3, 0.2, 0.2001, 1], atol=2**-16)


def test_the_sum_of_many_confidences_is_accurate():
    """A plain float32 sum has a relative error of 4e-5 here on a CPU, because each addition rounds in the same direction."""
    confidence = np.full((1, 2048, 2048), 0.999, np.float32)
    mask = np.ones(confidence.shape, bool)
    counts = jax.jit(calibration_counts)(confidence, mask, mask)
    assert counts.confidence[14] / counts.pixels[14] == pytest.approx(round(0.999 * 2**15) / 2**15, rel=1e-6)


def make_images(seed):
    """Return random logits, labels with objects and ignored pixels, the valid images, and sizes on a canvas."""
    rng = np.random.default_rng(seed)
    sizes = np.stack([rng.integers(1, side + 1, 2) for side in SHAPE[1:]], axis=1).astype(np.int32)
    labels = np.kron(rng.choice([0, 1, 2, 255], (2, 3, 4)), np.ones((3, 3))).astype(np.uint8)
    for label, (height, width) in zip(labels, sizes, strict=True):
        label[height:], label[:, width:] = 255, 255
    logits = rng.normal(size=(*SHAPE, K)) + 2 * (labels[..., None] == np.arange(K))
    return logits.astype(np.float32), labels, rng.random(2) < 0.8, sizes


@jax.jit
def count(logits, labels, valid, sizes):
    predictions = jnp.argmax(logits, -1).astype(jnp.uint8)
    mask = valid_pixels(labels, valid)
    return count_images(count_pixels(logits, labels, predictions, mask), labels, predictions, mask, sizes)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_the_totals_equal_sums_over_one_image_after_the_other(seed):
    logits, labels, valid, sizes = make_images(seed)
    totals = count(logits, labels, valid, sizes)
    confusion, boundary, image_iou, images = np.zeros((K, K), int), np.zeros((3, K), int), 0.0, 0
    pixels = {"loss": [], "confidence": [], "hit": []}
    for i in np.flatnonzero(valid):
        height, width = sizes[i]
        label, scores = labels[i, :height, :width], logits[i, :height, :width].astype(np.float64)
        seen, prediction = label != 255, scores.argmax(-1).astype(np.uint8)
        probabilities = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        pixels["loss"] += [-np.log(p[k]) for p, k in zip(probabilities[seen], label[seen], strict=True)]
        pixels["confidence"] += probabilities.max(-1)[seen].tolist()
        pixels["hit"] += (prediction == label)[seen].tolist()
        np.add.at(confusion, (label[seen], prediction[seen]), 1)
        classes = set(label[seen]) | set(prediction[seen])
        ious = [
            ((label == k) & (prediction == k) & seen).sum() / (((label == k) | (prediction == k)) & seen).sum() for k in classes
        ]
        image_iou, images = image_iou + (np.mean(ious) if ious else 0), images + bool(ious)
        # An image of up to 9x12 pixels has a diagonal of 15 pixels, so the radius is 1.
        truth, guess = (np.where(naive_boundaries(np.where(seen, x, 255), 1), x, 255) for x in (label, prediction))
        boundary += [[(x == k).sum() for k in range(K)] for x in (truth, guess, np.where(truth == guess, truth, 255))]
    np.testing.assert_array_equal(totals.confusion, confusion)
    np.testing.assert_array_equal([totals.boundary[:K].sum(1), totals.boundary[:, :K].sum(0)], boundary[:2])
    np.testing.assert_array_equal(np.diagonal(totals.boundary)[:K], boundary[2])
    assert totals.images == images
    assert totals.image_iou == pytest.approx(image_iou, rel=1e-6)
    assert totals.loss == pytest.approx(sum(pixels["loss"]), rel=1e-5)
    bins = np.ceil(np.array(pixels["confidence"]) * 15).astype(int) - 1
    for k in range(15):
        chosen = [(c, h) for c, h, b in zip(pixels["confidence"], pixels["hit"], bins, strict=True) if b == k]
        assert totals.calibration.pixels[k] == len(chosen)
        assert totals.calibration.hits[k] == sum(h for _, h in chosen)
        assert totals.calibration.confidence[k] == pytest.approx(sum(c for c, _ in chosen), abs=2**-16 * len(chosen) + 1e-6)


def test_a_perfect_prediction_has_a_boundary_iou_of_one_next_to_ignored_pixels():
    label = np.full((1, 6, 8), 255, np.uint8)
    label[0, 1:5, 1:4], label[0, 1:5, 4:7] = 0, 1
    prediction = np.where(label == 255, 1, label)
    counts = jax.jit(boundary_counts, static_argnums=4)(label, prediction, label != 255, None, 2)
    assert counts.tolist() == [[10, 0, 0], [0, 10, 0], [0, 0, 4]]  # each class has 4x3 pixels, of which 2x1 are inside


def test_the_boundaries_on_a_canvas_have_the_radius_of_each_image():
    sizes = [(60, 80), (9, 12)]  # radii of 2 and 1, whereas the canvas has 4
    labels, predictions = np.random.default_rng(0).integers(0, 2, (2, 2, 8, 8)).repeat(16, 2).repeat(16, 3).astype(np.uint8)
    for label, (height, width) in zip(labels, sizes, strict=True):
        label[height:], label[:, width:] = 255, 255
    count = jax.jit(boundary_counts, static_argnums=4)
    together = count(labels, predictions, labels != 255, np.array(sizes, np.int32), 2)
    alone = 0
    for label, prediction, (height, width) in zip(labels, predictions, sizes, strict=True):
        images = (x[None, :height, :width] for x in (label, prediction, label != 255))
        alone = alone + count(*images, None, 2)
    np.testing.assert_array_equal(together, alone)


def test_images_without_labelled_pixels_do_not_count():
    logits, labels, _, sizes = make_images(0)
    totals = count(logits, np.full_like(labels, 255), np.ones(2, bool), sizes)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(totals))
