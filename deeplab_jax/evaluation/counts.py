"""Count, on the device, what the metrics of a batch are computed from.

Counts are int32, so a batch must have fewer than 2**31 pixels. They do not depend on how images are divided among batches and
devices. Sums of floating-point numbers do, in their last bits.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from deeplab_jax.evaluation.boundaries import boundary_radius, boundary_radius_of_each, find_boundaries
from deeplab_jax.evaluation.metrics import BINS, Calibration, Totals
from deeplab_jax.labels import IGNORE

CONFIDENCE_STEPS = 1 << 15  # confidences are summed as multiples of 1 / CONFIDENCE_STEPS


class PixelCounts(NamedTuple):
    """Sums over the labelled pixels of a batch. Those of split rows can be added up.

    Attributes:
      confusion: For each image, the pixel count for each (label, prediction) pair.
      loss: The sum of the cross-entropy, in nats.
      calibration: The sums over bins of confidence.
    """

    confusion: Int[Array, "n k k"]
    loss: Float[Array, ""]
    calibration: Calibration


def valid_pixels(labels: UInt8[Array, "n h w"], valid: Bool[Array, " n"]) -> Bool[Array, "n h w"]:
    """Return a mask of the pixels whose label is not 255, excluding images that only pad the batch."""
    return (labels != IGNORE) & valid[:, None, None]


def count_pixels(
    logits: Float[Array, "n h w k"],
    labels: UInt8[Array, "n h w"],
    predictions: UInt8[Array, "n h w"],
    mask: Bool[Array, "n h w"],
) -> PixelCounts:
    """Return the sums over the pixels selected by `mask`."""
    return PixelCounts(
        confusion_counts(labels, predictions, mask, logits.shape[-1]),
        loss_sum(logits, labels, mask),
        calibration_counts(confidences(logits), labels == predictions, mask),
    )


def count_images(
    pixels: PixelCounts,
    labels: UInt8[Array, "n h w"],
    predictions: UInt8[Array, "n h w"],
    mask: Bool[Array, "n h w"],
    sizes: Int[Array, "n 2"] | None,
) -> Totals:
    """Return a batch's totals, given the sums over its pixels. The images must not be split.

    Args:
      pixels: The result of `count_pixels` for the same images.
      labels, predictions: Train ids.
      mask: The pixels to count.
      sizes: The images' heights and widths, or None if they fill their arrays.
    """
    num_classes = pixels.confusion.shape[-1]
    boundary = boundary_counts(labels, predictions, mask, sizes, num_classes)
    iou, has_pixels = image_mean_iou(pixels.confusion)
    return Totals(
        confusion=jnp.sum(pixels.confusion, axis=0, dtype=jnp.int32),
        loss=pixels.loss,
        boundary=boundary,
        images=jnp.sum(has_pixels, dtype=jnp.int32),
        image_iou=jnp.sum(iou),
        calibration=pixels.calibration,
    )


def confusion_counts(
    labels: UInt8[Array, "n h w"], predictions: UInt8[Array, "n h w"], mask: Bool[Array, "n h w"], num_classes: int
) -> Int[Array, "n k k"]:
    """Count each image's pixels selected by `mask` for each (label, prediction) pair."""
    cells = num_classes * num_classes
    cell = labels.astype(jnp.int32) * num_classes + predictions.astype(jnp.int32)
    cell = jnp.where(mask, cell, cells) + (cells + 1) * jnp.arange(len(labels), dtype=jnp.int32)[:, None, None]
    counts = jnp.bincount(cell.reshape(-1), length=len(labels) * (cells + 1))
    return counts.reshape(-1, cells + 1)[:, :-1].reshape(-1, num_classes, num_classes)


def loss_sum(logits: Float[Array, "n h w k"], labels: UInt8[Array, "n h w"], mask: Bool[Array, "n h w"]) -> Float[Array, ""]:
    """Return the sum of the cross-entropy, in nats, over the pixels selected by `mask`."""
    classes = jnp.where(mask, labels, 0).astype(jnp.int32)[..., None]
    # Comparing instead of gathering lets XLA compute the sums without keeping the logits in memory.
    is_chosen = classes == jax.lax.broadcasted_iota(jnp.int32, logits.shape, 3)
    chosen = jnp.sum(jnp.where(is_chosen, logits, 0), axis=-1)
    return jnp.sum(jnp.where(mask, jax.nn.logsumexp(logits, axis=-1) - chosen, 0))


def confidences(logits: Float[Array, "n h w k"]) -> Float[Array, "n h w"]:
    """Return the largest of each pixel's class probabilities."""
    return 1 / jnp.sum(jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True)), axis=-1)


def calibration_counts(
    confidence: Float[Array, "n h w"], is_hit: Bool[Array, "n h w"], mask: Bool[Array, "n h w"]
) -> Calibration:
    """Sum the pixels selected by `mask` over bins of confidence, which include their upper but not their lower ends.

    Confidences are rounded to 15 bits and summed as integers along each row of pixels, because a float32 sum of millions of
    pixels would lose more: adding 1 to 2**24 has no effect.
    """
    bins = jnp.clip(jnp.ceil(confidence * BINS).astype(jnp.int32) - 1, 0, BINS - 1)
    bins = jnp.where(mask, bins, BINS)
    hits = jnp.bincount((2 * bins + is_hit).reshape(-1), length=2 * (BINS + 1)).reshape(-1, 2)[:-1]
    rows = jnp.arange(bins.shape[0] * bins.shape[1], dtype=jnp.int32).reshape(*bins.shape[:2], 1)
    steps = jnp.round(confidence * CONFIDENCE_STEPS).astype(jnp.int32)
    cells = ((BINS + 1) * rows + bins).reshape(-1)
    of_rows = jnp.bincount(cells, weights=steps.reshape(-1), length=(BINS + 1) * rows.size).reshape(-1, BINS + 1)[:, :-1]
    return Calibration(
        pixels=jnp.sum(hits, axis=1, dtype=jnp.int32),
        hits=hits[:, 1],
        confidence=jnp.sum(of_rows.astype(jnp.float32), axis=0) / CONFIDENCE_STEPS,
    )


def boundary_counts(
    labels: UInt8[Array, "n h w"],
    predictions: UInt8[Array, "n h w"],
    mask: Bool[Array, "n h w"],
    sizes: Int[Array, "n 2"] | None,
    num_classes: int,
) -> Int[Array, "c c"]:
    """Count the pixels selected by `mask` for each pair of (label, prediction) classes on whose boundaries they lie.

    The last row and column are for pixels on no boundary. Pixels outside `mask` belong to no class in labels and predictions.

    Args:
      labels, predictions: Train ids.
      mask: The pixels to count.
      sizes: The images' heights and widths, or None if they fill their arrays.
      num_classes: The number of classes.
    """
    count, height, width = labels.shape
    largest = boundary_radius(height, width)
    radius = jnp.full(count, largest, jnp.int32) if sizes is None else boundary_radius_of_each(sizes, largest)

    def bounded(classes: Array) -> Array:
        return jnp.where(find_boundaries(jnp.where(mask, classes, IGNORE), radius, largest), classes, num_classes)

    return jnp.sum(confusion_counts(bounded(labels), bounded(predictions), mask, num_classes + 1), axis=0, dtype=jnp.int32)


def image_mean_iou(confusion: Int[Array, "n k k"]) -> tuple[Float[Array, " n"], Bool[Array, " n"]]:
    """Return each image's mean IoU over the classes in its label or prediction, and whether it has any.

    The mean IoU of an image without labelled pixels is 0.
    """
    hits = jnp.diagonal(confusion, axis1=1, axis2=2)
    union = jnp.sum(confusion, 1) + jnp.sum(confusion, 2) - hits
    classes = jnp.sum(union > 0, axis=1)
    return jnp.sum(hits / jnp.maximum(union, 1), axis=1) / jnp.maximum(classes, 1), classes > 0
