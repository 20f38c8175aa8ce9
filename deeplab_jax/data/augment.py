"""Training augmentation: pure functions of (image, label, key), usable eagerly and inside tf.data.

Labels are resized and turned by nearest neighbour, always: no value appears that was not in the source, except 255 for what
lies outside. Colours are distorted on the device (`photometric.py`); here only the numbers for it are drawn.
"""

import math

import tensorflow as tf

from deeplab_jax.config import DataConfig
from deeplab_jax.data.crops import choose_window, show_image, show_label, uniforms
from deeplab_jax.data.sources import Cut, Pick, picked, whole
from deeplab_jax.labels import IGNORE

Pair = tuple[tf.Tensor, tf.Tensor]


def augment(image: tf.Tensor, label: tf.Tensor, key: tf.Tensor, *, data: DataConfig, fill: tuple[float, ...]) -> Pair:
    """Everything that `data` switches on but colour: crop, flip, rotation, cutout, in that order.

    Args:
      image: uint8 [h, w, 3].
      label: uint8 [h, w] train ids.
      key: what `windows.sample_key` returns.
      data: of the config.
      fill: RGB (0-255) of pixels outside the image; their label is 255.

    Returns:
      uint8 [crop_h, crop_w, 3] and uint8 [crop_h, crop_w].
    """
    return augment_opened(tf.shape(label), whole(image), picked(label), key, data=data, fill=fill)


def augment_opened(
    size: tf.Tensor, image: Cut, label: Pick, key: tf.Tensor, *, data: DataConfig, fill: tuple[float, ...]
) -> Pair:
    """The same of an image and a label of int32 [2] `size` that are read window by window."""
    fill = rounded(fill)
    window = choose_window(
        size,
        label,
        key,
        crop_size=data.crop_size,
        scale=data.scale,
        cat_max_ratio=data.cat_max_ratio,
        class_balanced=data.class_balanced,
    )
    pair = show_image(image, window, data.crop_size, fill), show_label(label, window, data.crop_size)
    if data.flip:
        pair = flip(*pair, key)
    if data.rotation:
        pair = rotate(*pair, key, degrees=data.rotation, fill=fill)
    if data.cutout:
        pair = cut_out(*pair, key, share=data.cutout, fill=fill)
    return pair


def rounded(fill: tuple[float, ...]) -> tuple[int, ...]:
    """The fill colour as pixels have it."""
    return tuple(min(max(math.floor(value + 0.5), 0), 255) for value in fill)


def flip(image: tf.Tensor, label: tf.Tensor, key: tf.Tensor) -> Pair:
    """Mirrors every second sample, on average."""
    mirrored = uniforms(key, "flip", ()) < 0.5
    return tf.cond(mirrored, lambda: (tf.reverse(image, [1]), tf.reverse(label, [1])), lambda: (image, label))


def rotate(image: tf.Tensor, label: tf.Tensor, key: tf.Tensor, *, degrees: float, fill: tuple[int, ...]) -> Pair:
    """Turns the crop about its centre by up to `degrees` either way; `fill` and 255 come in at the edges."""
    angle = (uniforms(key, "rotation", ()) * 2 - 1) * degrees * math.pi / 180
    height, width = label.shape
    cos, sin = tf.cos(angle), tf.sin(angle)
    y, x = (height - 1) / 2, (width - 1) / 2
    # Output pixel (x, y) shows the input at (a x + b y + c, d x + e y + f).
    transform = tf.stack([cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y, 0.0, 0.0])

    def turned(array: tf.Tensor, interpolation: str, value: float) -> tf.Tensor:
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=array[None],
            transforms=tf.cast(transform, tf.float32)[None],
            output_shape=[height, width],
            fill_value=value,
            interpolation=interpolation,
            fill_mode="CONSTANT",
        )[0]

    colour = tf.constant(fill, tf.float32)
    image = turned(tf.cast(image, tf.float32) - colour, "BILINEAR", 0.0) + colour
    label = turned(label[..., None], "NEAREST", float(IGNORE))[..., 0]
    return tf.cast(tf.clip_by_value(image, 0.0, 255.0) + 0.5, tf.uint8), label


def cut_out(image: tf.Tensor, label: tf.Tensor, key: tf.Tensor, *, share: float, fill: tuple[int, ...]) -> Pair:
    """Blanks a rectangle of `share` of the crop's height and width, anywhere inside (DeVries and Taylor, arXiv 1708.04552)."""
    u = uniforms(key, "cutout", (2,))
    inside = []
    for axis, length in enumerate(label.shape):
        hole = round(share * length)
        low = tf.cast(tf.floor(u[axis] * (length - hole + 1)), tf.int32)
        inside.append((tf.range(length) >= low) & (tf.range(length) < low + hole))
    hole_mask = inside[0][:, None] & inside[1]
    image = tf.where(hole_mask[..., None], tf.constant(fill, tf.uint8), image)
    return image, tf.where(hole_mask, tf.constant(IGNORE, tf.uint8), label)


def photometric_factors(key: tf.Tensor) -> tf.Tensor:
    """float32 [5] for `photometric.distort`: what mmsegmentation's PhotoMetricDistortion draws, each with probability 1/2.

    Brightness from [-32, 32), contrast and saturation from [0.5, 1.5), hue from [-36, 36) degrees (there [-18, 18) steps of
    2), and whether contrast comes before saturation and hue (1) or after (0).
    """
    u = uniforms(key, "photometric", (2, 5))
    applies = u[0] < 0.5
    neutral = tf.constant([0.0, 1.0, 1.0, 0.0], tf.float64)
    low, high = tf.constant([-32.0, 0.5, 0.5, -36.0], tf.float64), tf.constant([32.0, 1.5, 1.5, 36.0], tf.float64)
    drawn = tf.where(applies[:4], low + u[1, :4] * (high - low), neutral)
    return tf.cast(tf.concat([drawn, tf.cast(applies[4:], tf.float64)], 0), tf.float32)


def blank(crop_size: tuple[int, int], fill: tuple[float, ...]) -> Pair:
    """An image and a label of what lies outside of images: uint8 [crop_h, crop_w, 3], [crop_h, crop_w]."""
    pixel = tf.constant(rounded(fill), tf.uint8)
    return tf.broadcast_to(pixel, (*crop_size, 3)), tf.fill(crop_size, tf.constant(IGNORE, tf.uint8))


def neutral_factors() -> tf.Tensor:
    """float32 [5] with which `photometric.distort` changes nothing."""
    return tf.constant([0.0, 1.0, 1.0, 0.0, 0.0])
