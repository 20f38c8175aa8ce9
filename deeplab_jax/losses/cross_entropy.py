"""The softmax cross-entropy, with class weights, label smoothing, boundary relaxation and online hard example mining."""

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

    With `relax_border`, a pixel near a class boundary may have any of the classes nearby; see `find_targets`. Its p_y is the
    sum of their probabilities, and its w_y is the mean of their weights, as in NVIDIA's ImgWtLossSoftNLL (Zhu et al. 2019,
    arXiv:1812.01593). Unlike this function, NVIDIA's divides by the number of pixels even with class weights. It also adds up
    the images' means, and its own class weights follow from the classes in each image.

    With `ohem_threshold`, only the hard pixels contribute to the sum; see `select_hard_pixels`. By default, the sum is
    divided by the number of hard pixels, as in HRNet's OhemCrossEntropy. With normalizer "all", it is divided by the number of
    pixels in the batch, as mmsegmentation does by default. (With avg_non_ignore=True, mmsegmentation instead divides by the
    number of valid pixels, easy and hard.)
    """
    valid = mask & (labels != IGNORE)
    targets = find_targets(labels, valid, logits.shape[-1], config.relax_border)
    weights = _weigh_pixels(labels, targets, config)
    count = _total_weight(labels, weights, valid, mask, config)
    if not config.ohem_threshold:
        return Mean(_sum_losses(logits, targets, weights, valid, config), count)
    probability = jnp.exp(_target_logit(logits, targets, config) - jax.nn.logsumexp(logits, axis=-1))
    # The cap keeps `min_kept` times the number of images from overflowing int32. It has no other effect, because no image has
    # that many pixels.
    min_kept = min(config.ohem_min_kept, (2**31 - 1) // len(labels))
    images = jnp.sum(jnp.any(mask, axis=(1, 2)))
    hard = select_hard_pixels(lax.stop_gradient(probability), valid, config.ohem_threshold, min_kept * images)
    total = _sum_losses(logits, targets, weights, hard, config)
    # A loss's count must not depend on the logits, so the sum is rescaled instead of the count.
    hard_count = _total_weight(labels, weights, hard, hard, config)
    return Mean(total if config.normalizer == "all" else total * (count / hard_count), count)


def find_targets(
    labels: UInt8[Array, "n h w"], valid: Bool[Array, "n h w"], classes: int, border: int
) -> Bool[Array, "n h w k"]:
    """Return the classes that a pixel may have: its own, and those of all `valid` pixels in the window around it.

    The window reaches `border` pixels in each direction. A pixel that is not valid may have any class, if there is a border.
    (In NVIDIA's RelaxedBoundaryLossToTensor, an ignored pixel has the classes in its window, and counts if there are any.)
    """
    if not border:
        return one_hot(labels, classes)
    targets = one_hot(labels, classes) & valid[..., None]
    for window in ((1, 2 * border + 1, 1, 1), (1, 1, 2 * border + 1, 1)):
        targets = lax.reduce_window(targets, False, lax.bitwise_or, window, (1, 1, 1, 1), "SAME")
    return targets | ~valid[..., None]


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
    logits: Float[Array, "n h w k"],
    targets: Bool[Array, "n h w k"],
    weights: Float[Array, "n h w"] | None,
    pixels: Bool[Array, "n h w"],
    config: LossConfig,
) -> Float[Array, ""]:
    """Return the loss summed over the pixels in the mask `pixels`. All other pixels have no effect."""
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    loss = log_sum - _target_logit(logits, targets, config)
    if weights is not None:
        loss *= weights
    if config.label_smoothing:
        class_weights = jnp.asarray(config.class_weights or (1.0,) * logits.shape[-1], logits.dtype)
        uniform_loss = jnp.mean(class_weights[None, None, None] * (log_sum[..., None] - logits), axis=-1)
        loss = (1 - config.label_smoothing) * loss + config.label_smoothing * uniform_loss
    return jnp.sum(jnp.where(pixels, loss, 0.0))


def _target_logit(
    logits: Float[Array, "n h w k"], targets: Bool[Array, "n h w k"], config: LossConfig
) -> Float[Array, "n h w"]:
    """Return the logarithm of the sum of exp(logit) over each pixel's targets.

    Without a border, this is the logit of the pixel's class, or 0 where the label is not a class.
    """
    if config.relax_border:
        return jax.nn.logsumexp(logits, axis=-1, where=targets)
    return jnp.sum(jnp.where(targets, logits, 0.0), axis=-1)


def _weigh_pixels(
    labels: UInt8[Array, "n h w"], targets: Bool[Array, "n h w k"], config: LossConfig
) -> Float[Array, "n h w"] | None:
    """Return the mean class weight of each pixel's targets, or None without class weights."""
    if not config.class_weights:
        return None
    weights = jnp.asarray(config.class_weights, jnp.float32)
    if config.relax_border:
        return jnp.mean(jnp.broadcast_to(weights, targets.shape), axis=-1, where=targets)
    # The weights need no gradient, so a lookup is enough. On CPUs, XLA would store a one-hot comparison with all classes in
    # memory.
    return jnp.take(weights, labels, mode="clip")


def _total_weight(
    labels: UInt8[Array, "n h w"],
    weights: Float[Array, "n h w"] | None,
    pixels: Bool[Array, "n h w"],
    mask: Bool[Array, "n h w"],
    config: LossConfig,
) -> Shaped[Array, ""]:
    """Return the number of pixels in the mask `pixels`, or the sum of their weights if class weights are set.

    With normalizer "all", the other pixels in `mask` are counted as well, each with the mean class weight. Without class
    weights, or without ignored pixels, this matches avg_non_ignore=False in mmsegmentation 1.2.2. If both are present,
    mmsegmentation raises an IndexError.

    The result is never 0, so a batch without valid pixels has loss 0 instead of NaN.
    """
    count = jnp.sum(pixels)
    others = jnp.sum(mask) - count if config.normalizer == "all" else 0
    if weights is None:
        return jnp.maximum(count + others, 1)
    class_weights = jnp.asarray(config.class_weights, jnp.float32)
    if config.relax_border:
        total = jnp.sum(jnp.where(pixels, weights, 0.0))
    else:
        # Pixels are counted per class first, because integer sums are the same on every mesh.
        pixels_per_class = jnp.sum(one_hot(labels, len(class_weights)) & pixels[..., None], axis=(0, 1, 2))
        total = jnp.sum(class_weights * pixels_per_class)
    total += others * jnp.mean(class_weights)
    return jnp.where(total > 0, total, jnp.maximum(count, 1))
