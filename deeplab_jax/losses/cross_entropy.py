"""The softmax cross-entropy, with class weights, label smoothing and online hard example mining."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

from deeplab_jax.config import LossConfig
from deeplab_jax.labels import IGNORE
from deeplab_jax.losses.loss import Mean, one_hot


def cross_entropy(
    logits: Float[Array, "n h w k"], labels: UInt8[Array, "n h w"], mask: Bool[Array, "n h w"], config: LossConfig
) -> Mean:
    """Return the softmax cross-entropy over all non-ignored pixels, in nats.

    See `loss.Loss` for the arguments. With class weights w and label smoothing e, a pixel of class y adds
    (1 - e) w_y (-log p_y) + e / k sum_c w_c (-log p_c) to the sum and w_y to the count, as in torch.nn.CrossEntropyLoss.

    With `ohem_threshold`, only the hard pixels contribute to the sum; see `select_hard_pixels`. By default, the sum is
    divided by the number of hard pixels, as in HRNet's OhemCrossEntropy. With normalizer "all", it is divided by the number of
    pixels in the batch, as mmsegmentation does by default. (With avg_non_ignore=True, mmsegmentation instead divides by the
    number of valid pixels, easy and hard.)
    """
    valid = mask & (labels != IGNORE)
    count = _total_weight(labels, valid, mask, config)
    if not config.ohem_threshold:
        return Mean(_sum_losses(logits, labels, valid, config), count)
    probability = jnp.exp(_target_logit(logits, labels) - jax.nn.logsumexp(logits, axis=-1))
    # The cap keeps `min_kept` times the number of images from overflowing int32. It has no other effect, because no image has
    # that many pixels.
    min_kept = min(config.ohem_min_kept, (2**31 - 1) // len(labels))
    images = jnp.sum(jnp.any(mask, axis=(1, 2)))
    hard = select_hard_pixels(lax.stop_gradient(probability), valid, config.ohem_threshold, min_kept * images)
    total = _sum_losses(logits, labels, hard, config)
    # A loss's count must not depend on the logits, so the sum is rescaled instead of the count.
    return Mean(total if config.normalizer == "all" else total * (count / _total_weight(labels, hard, hard, config)), count)


def select_hard_pixels(
    probability: Float[Array, "n h w"], valid: Bool[Array, "n h w"], threshold: float, min_kept: Int[Array, ""]
) -> Bool[Array, "n h w"]:
    """Return a mask of the `valid` pixels that mmsegmentation's OHEMPixelSampler would keep.

    A pixel is kept if its probability is below the larger of two values: `threshold` and the order statistic
    sorted(probabilities)[min(min_kept, count - 1)], where only valid pixels are sorted and counted. This keeps at least
    `min_kept` pixels, with two exceptions: pixels tied at the order statistic are dropped, and a batch with at most `min_kept`
    valid pixels loses its easiest pixel. (Pixels below `threshold` are never dropped.) With a threshold near 0, only the
    `min_kept` hardest pixels are kept, as with the sampler's thresh=None.

    The order statistic is found by a bitwise binary search over pixel counts. Counts can be summed over devices, whereas a sort
    would have to move pixels between devices.

    Args:
      probability: The predicted probability of each pixel's target class, from 0 to 1.
      valid: A mask of the pixels to choose from.
      threshold: The probability below which every pixel is kept.
      min_kept: The minimum number of pixels to keep in the full batch, apart from the exceptions above.
    """
    # Non-negative floats sort in the same order as their bit patterns. NaN is mapped to 0, so NaN pixels are kept and the
    # training step sees the NaN in the loss.
    bits = lax.bitcast_convert_type(jnp.nan_to_num(probability).astype(jnp.float32), jnp.int32)
    bits = jnp.where(valid, bits, jnp.iinfo(jnp.int32).max)
    rank = jnp.minimum(min_kept, jnp.sum(valid) - 1)
    threshold_bits = lax.bitcast_convert_type(jnp.float32(threshold), jnp.int32)

    def try_bit(i: Array, limit: Array) -> Array:
        larger = limit | (2**29 >> i).astype(jnp.int32)
        return jnp.where(jnp.sum(bits < larger) <= rank, larger, limit)

    # The search finds the largest bit pattern with at most `rank` pixels below it. It starts at bit 29, the highest bit set in
    # 1.0.
    limit = lax.cond(
        jnp.sum(bits < threshold_bits) > rank,
        lambda: threshold_bits,
        lambda: lax.fori_loop(0, 30, try_bit, jnp.int32(0)),
    )
    return bits < limit


def _sum_losses(
    logits: Float[Array, "n h w k"], labels: UInt8[Array, "n h w"], pixels: Bool[Array, "n h w"], config: LossConfig
) -> Float[Array, ""]:
    """Return the loss summed over the pixels in the mask `pixels`. All other pixels have no effect."""
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    loss = log_sum - _target_logit(logits, labels)
    weights = jnp.asarray(config.class_weights or (1.0,) * logits.shape[-1], logits.dtype)
    if config.class_weights:
        # The weights need no gradient, so a lookup is enough. On CPUs, XLA would store a one-hot comparison with all classes
        # in memory.
        loss *= jnp.take(weights, labels, mode="clip")
    if config.label_smoothing:
        uniform_loss = jnp.mean(weights[None, None, None] * (log_sum[..., None] - logits), axis=-1)
        loss = (1 - config.label_smoothing) * loss + config.label_smoothing * uniform_loss
    return jnp.sum(jnp.where(pixels, loss, 0.0))


def _target_logit(logits: Float[Array, "n h w k"], labels: UInt8[Array, "n h w"]) -> Float[Array, "n h w"]:
    """Return each pixel's target-class logit, or 0 where the label is not a class."""
    return jnp.sum(jnp.where(one_hot(labels, logits.shape[-1]), logits, 0.0), axis=-1)


def _total_weight(
    labels: UInt8[Array, "n h w"], pixels: Bool[Array, "n h w"], mask: Bool[Array, "n h w"], config: LossConfig
) -> Shaped[Array, ""]:
    """Return the number of pixels in the mask `pixels`, or the sum of their class weights if class weights are set.

    With normalizer "all", the other pixels in `mask` are counted as well, each with the mean class weight. Without class
    weights, or without ignored pixels, this matches avg_non_ignore=False in mmsegmentation 1.2.2. If both are present,
    mmsegmentation raises an IndexError.

    The result is never 0, so a batch without valid pixels has loss 0 instead of NaN.
    """
    count = jnp.sum(pixels)
    others = jnp.sum(mask) - count if config.normalizer == "all" else 0
    if not config.class_weights:
        return jnp.maximum(count + others, 1)
    weights = jnp.asarray(config.class_weights, jnp.float32)
    # Pixels are counted per class first, because integer sums are the same on every mesh.
    pixels_per_class = jnp.sum(one_hot(labels, len(weights)) & pixels[..., None], axis=(0, 1, 2))
    total = jnp.sum(weights * pixels_per_class) + others * jnp.mean(weights)
    return jnp.where(total > 0, total, jnp.maximum(count, 1))
