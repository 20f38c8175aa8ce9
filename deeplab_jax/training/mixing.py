"""Paste pixels from one training sample into the next, on the device: ClassMix and copy-paste.

Sample i receives pixels from its donor, sample i - 1 of the global batch. The first sample's donor is the last one. ClassMix's
code pairs samples in the same way. The host shuffles the samples, so neighbours are random pairs. Moving every sample by one
place sends one sample per device. With a random distance, XLA would gather the full batch on every device.

The pasted pixels keep their positions. Copy-paste in the paper also scales and flips the pasted objects. Here, the host has
already scaled, cropped and flipped each sample independently.

Mixing comes before the photometric distortion, as in ClassMix's code. A mixed image is therefore distorted as a whole, and only
bytes are exchanged between devices.

Sources: Olsson et al. 2020 (arXiv 2007.07936, section 3.1) with github.com/WilhelmT/ClassMix, and Ghiasi et al. 2021 (arXiv
2012.07177, section 3), applied to the pixels of classes instead of instances.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from deeplab_jax.config import Config
from deeplab_jax.labels import IGNORE

# Dropout derives its keys from the step's key and the number of the micro-batch, which is always smaller.
_STREAM = 2**32 - 1


def mix(
    images: UInt8[Array, "n h w c"], labels: UInt8[Array, "n h w"], valid: Bool[Array, " n"], step_key: Array, config: Config
) -> tuple[UInt8[Array, "n h w c"], UInt8[Array, "n h w"]]:
    """Mix a global batch as set in `data.class_mix`, `data.copy_paste` and `data.copy_paste_classes`.

    With probability `data.class_mix`, a sample receives half of its donor's classes. With probability `data.copy_paste`, it
    receives the classes in `data.copy_paste_classes`. Both can happen to the same sample, which then receives all of these
    classes. Ignored pixels are never pasted, but can be covered. A sample that is not valid neither gives nor receives pixels.

    The random numbers depend only on the step's key and the position in the global batch.

    Args:
      images: The images.
      labels: The train ids. 255 is ignored.
      valid: False for padding and unreadable samples.
      step_key: The step's random key.
      config: The run's config.

    Returns:
      The mixed images and labels, or the same arrays if both probabilities are 0.
    """
    if not (config.data.class_mix or config.data.copy_paste):
        return images, labels
    pasted = _choose_classes(labels, step_key, config) & valid[:, None]
    donated = jnp.where(_select_pixels(labels, pasted), labels, IGNORE)
    donors, donated = jnp.roll(images, 1, 0), jnp.roll(donated, 1, 0)
    is_pasted = (donated != IGNORE) & valid[:, None, None]
    return jnp.where(is_pasted[..., None], donors, images), jnp.where(is_pasted, donated, labels)


def _choose_classes(labels: UInt8[Array, "n h w"], step_key: Array, config: Config) -> Bool[Array, "n k"]:
    """Return which classes each sample gives to the next one."""
    names = config.labels.names
    shape = (len(labels), 2 + len(names))
    u = jax.random.uniform(jax.random.fold_in(step_key, _STREAM), shape, jnp.float32)
    mixes, copies = u[:, :1] < config.data.class_mix, u[:, 1:2] < config.data.copy_paste
    is_listed = jnp.array([[name in config.data.copy_paste_classes for name in names]])
    return (mixes & _choose_half(find_classes(labels, len(names)), u[:, 2:])) | (copies & is_listed)


def _choose_half(present: Bool[Array, "n k"], u: Float[Array, "n k"]) -> Bool[Array, "n k"]:
    """Choose half of the present classes, rounded down as in ClassMix's code: those with the smallest random numbers."""
    ranks = jnp.argsort(jnp.argsort(jnp.where(present, u, 1.0), 1), 1)
    return ranks < jnp.sum(present, 1, keepdims=True) // 2


def find_classes(labels: UInt8[Array, "n h w"], num_classes: int) -> Bool[Array, "n k"]:
    """Return which classes occur in each sample."""
    # On CPUs, XLA stores what it reduces, so comparing with all classes at once would need k bytes per pixel. Rows can be split
    # across devices, so they are reduced after the loop, with one exchange instead of k.
    in_row = jax.lax.map(lambda k: jnp.any(labels == k, 2), jnp.arange(num_classes, dtype=labels.dtype))
    return jnp.any(in_row, 2).T


def _select_pixels(labels: UInt8[Array, "n h w"], classes: Bool[Array, "n k"]) -> Bool[Array, "n h w"]:
    """Return which pixels belong to their sample's `classes`."""

    # A lookup table would be slow on TPUs.
    def add(k: Array, mask: Array) -> Array:
        return mask | ((labels == k.astype(labels.dtype)) & classes[:, k, None, None])

    return jax.lax.fori_loop(0, classes.shape[1], add, jnp.zeros(labels.shape, bool))
