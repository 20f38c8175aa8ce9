"""Softmax cross-entropy, with class weights, label smoothing and online hard example mining."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

from deeplab_jax.config import LossConfig
from deeplab_jax.labels import IGNORE
from deeplab_jax.losses.loss import Mean, is_class


def cross_entropy(
    logits: Float[Array, "n h w k"], labels: UInt8[Array, "n h w"], mask: Bool[Array, "n h w"], config: LossConfig
) -> Mean:
    """Return the softmax cross-entropy of the pixels that are not ignored, in nats; see `loss.Loss`.

    With class weights w and smoothing e a pixel of class y has the loss (1 - e) w_y (-log p_y) + e / k sum_c w_c (-log p_c),
    and the weight w_y in the mean, as in torch.nn.CrossEntropyLoss.

    With `ohem_threshold` only the hard pixels have a loss, see `hard_pixels`. Their sum is divided by their own number, as in
    HRNet's OhemCrossEntropy; with normalizer "all" by that of the whole batch, as in mmsegmentation by default. (Its
    avg_non_ignore=True divides by the valid ones, hard or not.)
    """
    counted = mask & (labels != IGNORE)
    count = _weight(labels, counted, mask, config)
    if not config.ohem_threshold:
        return Mean(_sum(logits, labels, counted, config), count)
    probability = jnp.exp(_own_logit(logits, labels) - jax.nn.logsumexp(logits, axis=-1))
    # More than an image has would count no further pixel, and n times as many could be more than an int32 holds.
    min_kept = min(config.ohem_min_kept, (2**31 - 1) // len(labels))
    images = jnp.sum(jnp.any(mask, axis=(1, 2)))
    hard = hard_pixels(lax.stop_gradient(probability), counted, config.ohem_threshold, min_kept * images)
    total = _sum(logits, labels, hard, config)
    # The count must not depend on the logits: the sum is scaled instead.
    return Mean(total if config.normalizer == "all" else total * (count / _weight(labels, hard, hard, config)), count)


def hard_pixels(
    probability: Float[Array, "n h w"], counted: Bool[Array, "n h w"], threshold: float, min_kept: Int[Array, ""]
) -> Bool[Array, "n h w"]:
    """Return the pixels of `counted` that mmsegmentation's OHEMPixelSampler keeps.

    Those whose probability is below the larger one of `threshold` and sorted(probabilities)[min(min_kept, pixels - 1)]. That is
    `min_kept` of them or more; fewer with ties there, and all but the last one where there are not as many. With a threshold
    near 0 the hardest `min_kept` are kept, as with the sampler's thresh=None.

    The order statistic is found bit by bit from counts, which add up over devices where a sort would move the pixels.

    Args:
      probability: of the pixel's own class, 0 to 1.
      counted: which pixels to choose from.
      threshold: all pixels below are kept.
      min_kept: of the whole batch, see above.
    """
    # Floats from 0 on are ordered as their bits. One that is not a number is kept: the step must see it in the loss.
    bits = lax.bitcast_convert_type(jnp.nan_to_num(probability).astype(jnp.float32), jnp.int32)
    bits = jnp.where(counted, bits, jnp.iinfo(jnp.int32).max)
    rank = jnp.minimum(min_kept, jnp.sum(counted) - 1)
    at_threshold = lax.bitcast_convert_type(jnp.float32(threshold), jnp.int32)

    def raised(i: Array, found: Array) -> Array:
        larger = found | (2**29 >> i).astype(jnp.int32)
        return jnp.where(jnp.sum(bits < larger) <= rank, larger, found)

    # The largest number that no more than `rank` pixels are below; 1.0 has no bit above the 29th.
    limit = lax.cond(
        jnp.sum(bits < at_threshold) > rank, lambda: at_threshold, lambda: lax.fori_loop(0, 30, raised, jnp.int32(0))
    )
    return bits < limit


def _sum(
    logits: Float[Array, "n h w k"], labels: UInt8[Array, "n h w"], counted: Bool[Array, "n h w"], config: LossConfig
) -> Float[Array, ""]:
    """Add up the losses of the pixels of `counted`; what is outside is never read."""
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    loss = log_sum - _own_logit(logits, labels)
    weights = jnp.asarray(config.class_weights or (1.0,) * logits.shape[-1], logits.dtype)
    if config.class_weights:
        # No comparison here: on a CPU XLA would write it out for every class, and the weights need no gradient.
        loss *= jnp.take(weights, labels, mode="clip")
    if config.label_smoothing:
        of_all = jnp.mean(weights[None, None, None] * (log_sum[..., None] - logits), axis=-1)
        loss = (1 - config.label_smoothing) * loss + config.label_smoothing * of_all
    return jnp.sum(jnp.where(counted, loss, 0.0))


def _own_logit(logits: Float[Array, "n h w k"], labels: UInt8[Array, "n h w"]) -> Float[Array, "n h w"]:
    """Return the logit of each pixel's own class; 0 for a label that is none."""
    return jnp.sum(jnp.where(is_class(labels, logits.shape[-1]), logits, 0.0), axis=-1)


def _weight(
    labels: UInt8[Array, "n h w"], counted: Bool[Array, "n h w"], mask: Bool[Array, "n h w"], config: LossConfig
) -> Shaped[Array, ""]:
    """Return the number of the pixels of `counted`, or the sum of their classes' weights.

    With normalizer "all" the other pixels of `mask` weigh the mean of the class weights: mmsegmentation 1.2.2, whose
    avg_non_ignore=False this is, stops with an IndexError where class weights meet an ignored pixel; without either the two are
    the same.

    Never 0: a batch without any pixel has loss 0, not nan.
    """
    count = jnp.sum(counted)
    others = jnp.sum(mask) - count if config.normalizer == "all" else 0
    if not config.class_weights:
        return jnp.maximum(count + others, 1)
    weights = jnp.asarray(config.class_weights, jnp.float32)
    # Counted by class first: integers have the same sum on any mesh.
    of_each = jnp.sum(is_class(labels, len(weights)) & counted[..., None], axis=(0, 1, 2))
    total = jnp.sum(weights * of_each) + others * jnp.mean(weights)
    return jnp.where(total > 0, total, jnp.maximum(count, 1))
