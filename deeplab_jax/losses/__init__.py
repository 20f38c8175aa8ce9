"""Segmentation losses: a sum and what it is divided by, so that any share of a batch can be added up.

Where the rows of images are split over devices, inside `jax.shard_map`, the arrays hold one device's rows; what must be known
of all of them takes the name of the mesh axis. A sum of losses is the device's own share.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

from deeplab_jax.config import LossConfig
from deeplab_jax.labels import IGNORE


def cross_entropy(
    logits: Float[Array, "n h w k"], labels: UInt8[Array, "n h w"], mask: Bool[Array, "n h w"], config: LossConfig
) -> Float[Array, ""]:
    """Softmax cross-entropy summed over the pixels of `mask`, in nats.

    With class weights w and smoothing e a pixel of class y has the loss (1 - e) w_y (-log p_y) + e / k sum_c w_c (-log p_c), as
    in torch.nn.CrossEntropyLoss.

    Args:
      logits: float32, at the labels' size.
      labels: train ids; what is outside `mask` is never read.
      mask: which pixels count, see `valid_pixels`.
      config: class weights and smoothing.
    """
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    loss = log_sum - _picked(logits, labels)
    weights = jnp.asarray(config.class_weights or (1.0,) * logits.shape[-1], logits.dtype)
    if config.class_weights:
        # No comparison here: on a CPU XLA would write it out for every class, and the weights need no gradient.
        loss *= jnp.take(weights, labels, mode="clip")
    if config.label_smoothing:
        of_all = jnp.mean(weights[None, None, None] * (log_sum[..., None] - logits), axis=-1)
        loss = (1 - config.label_smoothing) * loss + config.label_smoothing * of_all
    return jnp.sum(jnp.where(mask, loss, 0.0))


def valid_pixels(labels: UInt8[Array, "n h w"], valid: Bool[Array, " n"]) -> Bool[Array, "n h w"]:
    """True where the label is not 255 and the row is no padding."""
    return (labels != IGNORE) & valid[:, None, None]


def normalizer(
    labels: UInt8[Array, "n h w"],
    mask: Bool[Array, "n h w"],
    size: int | Int[Array, ""],
    config: LossConfig,
    axis: str | None = None,
) -> Shaped[Array, ""]:
    """What the sum over the pixels of `mask` is divided by: their number, or the sum of their classes' weights.

    With config.normalizer "all" the `size` pixels of the batch count, in `mask` or not. One that is not weighs the mean of the
    class weights: mmsegmentation 1.2.2, whose avg_non_ignore=False this is, stops with an IndexError where class weights meet
    an ignored pixel; without either the two are the same.

    Never 0: a batch without any pixel has loss 0, not nan.
    """
    count = _count(mask, axis)
    if not config.class_weights:
        return jnp.maximum(size if config.normalizer == "all" else count, 1)
    weights = jnp.asarray(config.class_weights, jnp.float32)
    # Counted by class first: integers have the same sum on any mesh.
    of_each = jnp.sum(_is_class(labels, len(weights)) & mask[..., None], axis=(0, 1, 2))
    total = jnp.sum(weights * (lax.psum(of_each, axis) if axis else of_each))
    if config.normalizer == "all":
        total += (size - count) * jnp.mean(weights)
    return jnp.where(total > 0, total, jnp.maximum(count, 1))


def mined_cross_entropy(
    logits: Float[Array, "n h w k"],
    labels: UInt8[Array, "n h w"],
    mask: Bool[Array, "n h w"],
    images: Int[Array, ""],
    pixels: Shaped[Array, ""],
    config: LossConfig,
    axis: str | None = None,
) -> Float[Array, ""]:
    """`cross_entropy` over the hard pixels of `mask` alone: online hard example mining.

    Args:
      logits: float32, at the labels' size.
      labels: train ids.
      mask: which pixels count.
      images: how many the global batch has.
      pixels: `normalizer` of `mask`, which the sum is going to be divided by. With config.normalizer "all" that is the whole
        batch, as in mmsegmentation by default; with "valid" the sum is scaled so that it becomes the mean over the hard pixels,
        as in HRNet's OhemCrossEntropy. (mmsegmentation's avg_non_ignore=True divides by the valid ones, hard or not.)
      config: of the loss.
      axis: see the module.
    """
    probability = jnp.exp(_picked(logits, labels) - jax.nn.logsumexp(logits, axis=-1))
    # More than an image has would count no further pixel, and n times as many could be more than an int32 holds.
    min_kept = min(config.ohem_min_kept, (2**31 - 1) // len(labels))
    hard = hard_pixels(lax.stop_gradient(probability), mask, config.ohem_threshold, min_kept * images, axis)
    total = cross_entropy(logits, labels, hard, config)
    if config.normalizer == "all":
        return total
    return total * (pixels / normalizer(labels, hard, 0, config, axis))


def hard_pixels(
    probability: Float[Array, "n h w"],
    mask: Bool[Array, "n h w"],
    threshold: float,
    min_kept: Int[Array, ""],
    axis: str | None = None,
) -> Bool[Array, "n h w"]:
    """The pixels of `mask` that mmsegmentation's OHEMPixelSampler keeps, over all devices.

    Those whose probability is below the larger one of `threshold` and sorted(probabilities)[min(min_kept, pixels - 1)]. That is
    `min_kept` of them or more; fewer with ties there, and all but the last one where there are not as many. With a threshold
    near 0 the hardest `min_kept` are kept, as with the sampler's thresh=None.

    The order statistic is found bit by bit from counts, which add up over devices where a sort would move the pixels.

    Args:
      probability: of the pixel's own class, 0 to 1.
      mask: which pixels are looked at.
      threshold: all pixels below are kept.
      min_kept: see above.
      axis: see the module.
    """
    # Floats from 0 on are ordered as their bits. One that is not a number is kept: the step must see it in the loss.
    bits = lax.bitcast_convert_type(jnp.nan_to_num(probability).astype(jnp.float32), jnp.int32)
    bits = jnp.where(mask, bits, jnp.iinfo(jnp.int32).max)
    rank = jnp.minimum(min_kept, _count(mask, axis) - 1)
    at_threshold = lax.bitcast_convert_type(jnp.float32(threshold), jnp.int32)

    def raised(i: Array, found: Array) -> Array:
        larger = found | (2**29 >> i).astype(jnp.int32)
        return jnp.where(_count(bits < larger, axis) <= rank, larger, found)

    # The largest number that no more than `rank` pixels are below; 1.0 has no bit above the 29th.
    limit = lax.cond(
        _count(bits < at_threshold, axis) > rank, lambda: at_threshold, lambda: lax.fori_loop(0, 30, raised, jnp.int32(0))
    )
    return bits < limit


def _is_class(labels: UInt8[Array, "n h w"], classes: int) -> Bool[Array, "n h w k"]:
    """A comparison that XLA fuses into the reduction after it: no one-hot array is made, and the gradient needs no scatter."""
    return labels[..., None].astype(jnp.int32) == jnp.arange(classes)[None, None, None]


def _picked(logits: Float[Array, "n h w k"], labels: UInt8[Array, "n h w"]) -> Float[Array, "n h w"]:
    """The logit of each pixel's own class; 0 for a label that is none."""
    return jnp.sum(jnp.where(_is_class(labels, logits.shape[-1]), logits, 0.0), axis=-1)


def _count(pixels: Bool[Array, "n h w"], axis: str | None) -> Int[Array, ""]:
    """How many are True, over all devices."""
    count = jnp.sum(pixels)
    return lax.psum(count, axis) if axis else count
