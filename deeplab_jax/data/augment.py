"""Training augmentation: pure functions of (image, label, uniforms), usable eagerly and inside tf.data.

Labels are resized by nearest neighbour, always.

Crop first, resize after: only the part of the image that the crop shows is resized. The result equals resizing the whole
image and cropping then, pixel for pixel.
"""

import tensorflow as tf

from deeplab_jax.labels import IGNORE

NUM_UNIFORMS = 4  # scale, row, column, flip


def uniforms(seed: tf.Tensor | int, index: tf.Tensor | int) -> tf.Tensor:
    """float32 [NUM_UNIFORMS] in [0, 1): the random numbers of training sample `index` (counted over the whole run)."""
    key = tf.stack([tf.cast(seed, tf.int64), tf.cast(index, tf.int64)])
    # The algorithm is named because "auto" may choose another one on another device.
    return tf.random.stateless_uniform([NUM_UNIFORMS], key, alg="philox")


def scale_crop_flip(
    image: tf.Tensor,
    label: tf.Tensor,
    u: tf.Tensor,
    *,
    crop_size: tuple[int, int],
    scale: tuple[float, float],
    flip: bool,
    fill: tuple[float, ...],
) -> tuple[tf.Tensor, tf.Tensor]:
    """Random resize, random crop, random mirror, in that order of effect.

    Args:
      image: uint8 [h, w, 3].
      label: uint8 [h, w] train ids.
      u: what `uniforms` returns.
      crop_size: height and width of the result.
      scale: range of the resize factor, uniform.
      flip: whether to mirror where u says so.
      fill: RGB (0-255) of pixels outside the image; their label is 255.

    Returns:
      uint8 [crop_h, crop_w, 3] and uint8 [crop_h, crop_w].
    """
    u = tf.cast(u, tf.float64)
    size = tf.cast(tf.shape(label), tf.float64)
    factor = scale[0] + u[0] * (scale[1] - scale[0])
    scaled = tf.maximum(tf.round(size * factor), 1.0)
    crop = tf.constant(crop_size, tf.float64)
    start = tf.floor(u[1:3] * (tf.maximum(scaled - crop, 0.0) + 1.0))
    shown = tf.cast(tf.minimum(crop, scaled), tf.int32)
    image = _resize_window(image, scaled / size, start, shown)
    label = _nearest_window(label, scaled / size, start, shown)
    rest = tf.constant(crop_size) - shown
    margins = [[0, rest[0]], [0, rest[1]]]
    fill_pixel = tf.constant(fill, tf.float32)
    image = tf.pad(image - fill_pixel, [*margins, [0, 0]]) + fill_pixel
    image = tf.saturate_cast(tf.round(image), tf.uint8)
    label = tf.pad(label, margins, constant_values=tf.constant(IGNORE, tf.uint8))
    if flip:
        step = tf.where(u[3] < 0.5, -1, 1)
        image, label = image[:, ::step], label[:, ::step]
    image.set_shape((*crop_size, 3))
    label.set_shape(crop_size)
    return image, label


def _resize_window(image: tf.Tensor, factor: tf.Tensor, start: tf.Tensor, shown: tf.Tensor) -> tf.Tensor:
    """float32 [shown_h, shown_w, 3]: rows and columns from `start` on of the image resized by `factor`, bilinear."""
    size = tf.cast(tf.shape(image)[:2], tf.float64)
    # One pixel more on each side than the bilinear kernel reaches, so that the cut is never taken for the image's edge.
    low = tf.maximum(tf.floor((start + 0.5) / factor - 0.5) - 1.0, 0.0)
    high = tf.minimum(tf.math.ceil((start + tf.cast(shown, tf.float64) - 0.5) / factor - 0.5) + 2.0, size)
    lo, hi = tf.cast(low, tf.int32), tf.cast(high, tf.int32)
    window = image[lo[0] : hi[0], lo[1] : hi[1]]
    return tf.raw_ops.ScaleAndTranslate(
        images=tf.cast(window, tf.float32)[None],
        size=shown,
        scale=tf.cast(factor, tf.float32),
        translation=tf.cast(low * factor - start, tf.float32),
        kernel_type="triangle",
        antialias=False,
    )[0]


def _nearest_window(label: tf.Tensor, factor: tf.Tensor, start: tf.Tensor, shown: tf.Tensor) -> tf.Tensor:
    """uint8 [shown_h, shown_w]: the source pixel under the centre of each pixel of the resized window."""
    for axis in (0, 1):
        centre = (start[axis] + tf.cast(tf.range(shown[axis]), tf.float64) + 0.5) / factor[axis]
        index = tf.minimum(tf.cast(tf.floor(centre), tf.int32), tf.shape(label)[axis] - 1)
        label = tf.gather(label, index, axis=axis)
    return label


def blank(crop_size: tuple[int, int], fill: tuple[float, ...]) -> tuple[tf.Tensor, tf.Tensor]:
    """An image and a label of what `scale_crop_flip` shows outside the image: uint8 [crop_h, crop_w, 3], [crop_h, crop_w]."""
    pixel = tf.saturate_cast(tf.round(tf.constant(fill, tf.float32)), tf.uint8)
    return tf.broadcast_to(pixel, (*crop_size, 3)), tf.fill(crop_size, tf.constant(IGNORE, tf.uint8))
