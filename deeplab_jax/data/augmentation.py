"""Augment training samples with pure functions of a sample and its random numbers.

The functions run both eagerly and inside tf.data. `augment` first chooses a window (a rectangle aligned to the source pixels)
and resizes it to the crop size. Pixels outside the window are never used. `augment` then applies the enabled STEPS in order.

Labels are always resized and rotated with nearest-neighbour interpolation, so the only label value they can introduce is 255,
which marks blanked pixels and pixels outside the image. Colours are distorted later, on the device (`photometric.py`). This
module only draws the random distortion factors.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from deeplab_jax.config import DataConfig
from deeplab_jax.data.samples import OpenSample, ReadPixels, ReadWindow
from deeplab_jax.labels import IGNORE

# A training sample as a dict. "image" is uint8 [crop_h, crop_w, c], and "label" holds train ids, uint8 [crop_h, crop_w].
# Augmentation steps can add more entries.
Row = dict[str, tf.Tensor]
Fill = tuple[int, ...]  # colour of pixels outside the image, with one value for each channel
MAX_RETRIES = 10  # mmsegmentation's RandomCrop also accepts any crop after 10 retries
NEUTRAL_FACTORS = (0.0, 1.0, 1.0, 0.0, 0.0)  # with these factors, `photometric.distort` leaves an image unchanged


def augment(sample: OpenSample, key: tf.Tensor, *, data: DataConfig, fill: tuple[float, ...]) -> Row:
    """Draw a random window from a sample and apply the augmentation steps enabled in `data`.

    Args:
      sample: A sample with a label.
      key: The sample's random key, from `make_sample_key`.
      data: The config's data section.
      fill: The colour (0 to 255, one value for each channel) for pixels outside the image. These pixels get the label 255.
    """
    assert sample.label is not None  # a training split has labels
    pixel = _round_fill(fill)
    window = choose_window(sample, key, data)
    image, label = render_image(sample.image, window, data.crop_size, pixel), render_label(sample.label, window, data.crop_size)
    row = {"image": image, "label": label}
    for field, (step, _) in STEPS.items():
        if amount := getattr(data, field):
            row = step(row, draw_uniforms(key, field), amount, pixel)
    return row


def make_blank_row(data: DataConfig, fill: tuple[float, ...]) -> Row:
    """Return a row in the format produced by `augment`. Every pixel has the fill colour and the label 255."""
    image = tf.broadcast_to(tf.constant(_round_fill(fill), tf.uint8), (*data.crop_size, len(fill)))
    row = {"image": image, "label": tf.fill(data.crop_size, tf.constant(IGNORE, tf.uint8))}
    return row | ({"photometric": tf.constant(NEUTRAL_FACTORS)} if data.photometric else {})


def _round_fill(fill: tuple[float, ...]) -> Fill:
    return tuple(min(max(math.floor(value + 0.5), 0), 255) for value in fill)


def make_sample_key(seed: tf.Tensor | int, number: tf.Tensor | int) -> tf.Tensor:
    """Return the int64 [2] key that determines all random numbers for training sample `number`."""
    return tf.stack([tf.cast(seed, tf.int64), tf.cast(number, tf.int64)])


def draw_uniforms(key: tf.Tensor, stream: str) -> tf.Tensor:
    """Return a sample's random numbers for one random stream, as float64 [n] in [0, 1)."""
    # Fix the algorithm, because "auto" can choose a different one on each device.
    numbers = tf.random.stateless_uniform([sum(STREAMS.values())], key, alg="philox")
    return tf.cast(tf.split(numbers, list(STREAMS.values()))[list(STREAMS).index(stream)], tf.float64)


class Window(NamedTuple):
    """A rectangle of source pixels and its size after resizing.

    Attributes:
      low: The first row and column, int32 [2].
      high: One past the last row and column, int32 [2].
      output_size: The height and width after resizing, int32 [2]. The resized window is placed at the top left of the crop, and
        the rest of the crop is filled.
    """

    low: tf.Tensor
    high: tf.Tensor
    output_size: tf.Tensor


def choose_window(sample: OpenSample, key: tf.Tensor, data: DataConfig) -> Window:
    """Choose a random window from a sample.

    The window size is the crop size divided by a factor drawn uniformly from `data.scale`, rounded to whole source pixels. If
    the image is smaller than this size along an axis, the window spans the full image along that axis.

    The window is redrawn, up to MAX_RETRIES times, as long as a single class covers at least `data.cat_max_ratio` of its
    labelled pixels. This follows mmsegmentation's RandomCrop, except that RandomCrop counts the pixels after resizing.

    With probability `data.class_balanced`, the window is instead centred, as closely as the image edges allow, on a random
    pixel from a random class. All classes in the label are equally likely. Unlike with NVIDIA's uniform sampling (arXiv
    1812.01593, section 3.3), which draws the class first and then an image, each epoch still uses every image exactly once.
    """
    size, label = sample.size, sample.label
    assert label is not None  # a training split has labels
    drawn = tf.numpy_function(
        lambda size, u: _draw_window(size, u, data.crop_size, data.scale),
        [size, draw_uniforms(key, "window")],
        tf.int32,
        stateful=False,
    )
    low, extent, output_size = tf.unstack(tf.ensure_shape(drawn, (3, 2)))
    if data.cat_max_ratio < 1:
        retries = tf.reshape(draw_uniforms(key, "retry"), (MAX_RETRIES, 2)) * tf.cast(size - extent + 1, tf.float64)
        low = _choose_varied(tf.concat([low[None], tf.cast(retries, tf.int32)], 0), extent, label, data.cat_max_ratio)
    if data.class_balanced > 0:
        u = draw_uniforms(key, "balance")
        low = tf.cond(u[0] < data.class_balanced, lambda: _centre_on_class(size, extent, low, label, u[1:]), lambda: low)
    return Window(low, low + extent, output_size)


def _draw_window(size: np.ndarray, u: np.ndarray, crop_size: tuple[int, int], scale: tuple[float, float]) -> np.ndarray:
    """Return a window's first row and column, its height and width, and its size after resizing, as int32 [3, 2]."""
    factor = scale[0] + u[0] * (scale[1] - scale[0])
    crop = np.array(crop_size)
    wanted = np.maximum(np.round(crop / factor), 1)
    extent = np.minimum(wanted, size)
    output_size = np.where(wanted <= size, crop, np.clip(np.round(size * factor), 1, crop))
    return np.array([np.floor(u[1:] * (size - extent + 1)), extent, output_size], np.int32)


def _choose_varied(places: tf.Tensor, extent: tf.Tensor, label: ReadPixels, cat_max_ratio: float) -> tf.Tensor:
    """Return the first acceptable window position in `places`, or the last position if none is acceptable.

    A window is acceptable if it contains at least two classes, each covering less than `cat_max_ratio` of the labelled pixels.
    """

    def is_varied(window: np.ndarray) -> np.bool_:
        counts = np.bincount(window.reshape(-1), minlength=IGNORE + 1)[:IGNORE]
        return np.bool_(np.count_nonzero(counts) > 1 and counts.max() < cat_max_ratio * counts.sum())

    def is_rejected(i: tf.Tensor) -> tf.Tensor:
        window = label(*_index_ranges(places[i], places[i] + extent))
        return ~tf.ensure_shape(tf.numpy_function(is_varied, [window], tf.bool, stateful=False), ())

    def needs_retry(i: tf.Tensor) -> tf.Tensor:
        return tf.cond(i < MAX_RETRIES, lambda: is_rejected(i), lambda: tf.constant(False))

    (i,) = tf.while_loop(needs_retry, lambda i: [i + 1], [tf.constant(0)])
    return places[i]


def _centre_on_class(size: tf.Tensor, extent: tf.Tensor, low: tf.Tensor, label: ReadPixels, u: tf.Tensor) -> tf.Tensor:
    """Return the first row and column of a window centred on a random pixel from a random class.

    If every pixel is ignored, return `low`.
    """

    def choose_pixel(values: np.ndarray, u: np.ndarray) -> np.ndarray:
        counts = np.bincount(values.reshape(-1), minlength=IGNORE + 1)[:IGNORE]
        classes = np.flatnonzero(counts)
        if not len(classes):
            return np.array([-1, -1], np.int32)
        chosen_class = classes[int(u[0] * len(classes))]
        pixels = np.flatnonzero(values.reshape(-1) == chosen_class)
        return np.array(divmod(pixels[int(u[1] * len(pixels))], values.shape[1]), np.int32)

    values = label(*_index_ranges(tf.zeros_like(size), size))
    pixel = tf.numpy_function(choose_pixel, [values, u], tf.int32, stateful=False)
    centred = tf.clip_by_value(pixel - extent // 2, 0, size - extent)
    return tf.where(pixel[0] < 0, low, centred)


def _index_ranges(low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.range(low[0], high[0]), tf.range(low[1], high[1])


def render_image(image: ReadWindow, window: Window, crop_size: tuple[int, int], fill: Fill) -> tf.Tensor:
    """Resize an image window bilinearly and pad it to the crop size with the colour `fill`.

    The interpolation does not use pixels outside the window.

    Returns:
      The crop, uint8 [crop_h, crop_w, c].
    """
    pixels = tf.raw_ops.ResizeBilinear(
        images=image(window.low, window.high)[None], size=window.output_size, half_pixel_centers=True
    )
    # The cast truncates and no value is negative, so adding 0.5 first has the effect of rounding to the nearest integer.
    rounded = tf.cast(pixels[0] + 0.5, tf.uint8)
    return _pad_to_crop(rounded, window, crop_size, tf.constant(fill, tf.uint8))


def render_label(label: ReadPixels, window: Window, crop_size: tuple[int, int]) -> tf.Tensor:
    """Resize a label window with nearest-neighbour interpolation and pad it to the crop size with 255.

    Each output pixel takes the value of the source pixel under its centre.

    Returns:
      The crop, uint8 [crop_h, crop_w].
    """
    centres = []
    for axis in (0, 1):
        extent, length = window.high[axis] - window.low[axis], window.output_size[axis]
        centres.append(window.low[axis] + (2 * tf.range(length) + 1) * extent // (2 * length))
    return _pad_to_crop(label(*centres), window, crop_size, tf.constant(IGNORE, tf.uint8))


def _pad_to_crop(array: tf.Tensor, window: Window, crop_size: tuple[int, int], outside: tf.Tensor) -> tf.Tensor:
    """Pad an array to [crop_h, crop_w, ...] on the right and at the bottom with the pixel value `outside`."""
    rows, columns = crop_size[0] - window.output_size[0], crop_size[1] - window.output_size[1]

    def pad() -> tf.Tensor:
        right = tf.broadcast_to(outside, [window.output_size[0], columns, *outside.shape])
        below = tf.broadcast_to(outside, [rows, crop_size[1], *outside.shape])
        return tf.concat([tf.concat([array, right], 1), below], 0)

    full = tf.cond(rows + columns > 0, pad, lambda: array)
    return tf.ensure_shape(full, (*crop_size, *outside.shape))


def flip(row: Row, u: tf.Tensor, amount: bool, fill: Fill) -> Row:
    """Mirror a sample horizontally with probability 1/2. Uses 1 random number."""

    def mirror() -> Row:
        return row | {"image": tf.reverse(row["image"], [1]), "label": tf.reverse(row["label"], [1])}

    return tf.cond(u[0] < 0.5, mirror, lambda: row)


def rotate(row: Row, u: tf.Tensor, degrees: float, fill: Fill) -> Row:
    """Rotate a crop about its centre by a random angle of up to `degrees` in either direction.

    Pixels rotated in from outside the crop get the colour `fill` and the label 255. Uses 1 random number.
    """
    angle = (u[0] * 2 - 1) * degrees * math.pi / 180
    height, width = row["label"].shape
    cos, sin = tf.cos(angle), tf.sin(angle)
    y, x = (height - 1) / 2, (width - 1) / 2
    # Output pixel (x, y) samples the input at (a x + b y + c, d x + e y + f), where a to f are the transform's first six
    # entries.
    transform = tf.stack([cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y, 0.0, 0.0])

    def transform_image(array: tf.Tensor, interpolation: str, outside: float) -> tf.Tensor:
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=array[None],
            transforms=tf.cast(transform, tf.float32)[None],
            output_shape=[height, width],
            fill_value=outside,
            interpolation=interpolation,
            fill_mode="CONSTANT",
        )[0]

    colour = tf.constant(fill, tf.float32)
    image = transform_image(tf.cast(row["image"], tf.float32) - colour, "BILINEAR", 0.0) + colour
    label = transform_image(row["label"][..., None], "NEAREST", float(IGNORE))[..., 0]
    return row | {"image": tf.cast(tf.clip_by_value(image, 0.0, 255.0) + 0.5, tf.uint8), "label": label}


def cut_out(row: Row, u: tf.Tensor, share: float, fill: Fill) -> Row:
    """Blank a random rectangle inside a crop (Cutout, DeVries and Taylor, arXiv 1708.04552).

    The rectangle's height and width are `share` times the crop's. Blanked pixels get the colour `fill` and the label 255. Uses
    2 random numbers.
    """
    inside = []
    for axis, length in enumerate(row["label"].shape):
        hole = round(share * length)
        low = tf.cast(tf.floor(u[axis] * (length - hole + 1)), tf.int32)
        inside.append((tf.range(length) >= low) & (tf.range(length) < low + hole))
    hole_mask = inside[0][:, None] & inside[1]
    image = tf.where(hole_mask[..., None], tf.constant(fill, tf.uint8), row["image"])
    return row | {"image": image, "label": tf.where(hole_mask, tf.constant(IGNORE, tf.uint8), row["label"])}


def draw_photometric(row: Row, u: tf.Tensor, amount: bool, fill: Fill) -> Row:
    """Draw random factors for `photometric.distort` and add them to the row as "photometric", float32 [5].

    The distributions follow mmsegmentation's PhotoMetricDistortion, except that mmsegmentation draws the hue as an integer in
    [-18, 18), in units of 2 degrees. Each of the first four factors is neutral with probability 1/2 and otherwise uniform:
    brightness in [-32, 32), contrast and saturation in [0.5, 1.5), and hue in [-36, 36) degrees. The fifth factor is 1 if
    contrast is applied before saturation and hue, and 0 if it is applied after them. Both orders are equally likely. Uses 10
    random numbers.
    """
    applies, u = u[:5] < 0.5, u[5:]
    neutral = tf.constant(NEUTRAL_FACTORS[:4], tf.float64)
    low, high = tf.constant([-32.0, 0.5, 0.5, -36.0], tf.float64), tf.constant([32.0, 1.5, 1.5, 36.0], tf.float64)
    drawn = tf.where(applies[:4], low + u[:4] * (high - low), neutral)
    return row | {"photometric": tf.cast(tf.concat([drawn, tf.cast(applies[4:], tf.float64)], 0), tf.float32)}


# Maps a DataConfig field to its augmentation step and how many random numbers the step uses. The step is a function of (row,
# random numbers, field value, fill) and runs if the field is set. Add new steps at the end, so that the existing steps keep
# their random numbers.
STEPS: dict[str, tuple[Callable[[Row, tf.Tensor, Any, Fill], Row], int]] = {
    "flip": (flip, 1),
    "rotation": (rotate, 1),
    "cutout": (cut_out, 2),
    "photometric": (draw_photometric, 10),
}
# Maps each random stream to the number of values that it draws per sample. Every sample draws from all streams, so enabling one
# step does not change the random numbers for another.
STREAMS = {"window": 3, "retry": 2 * MAX_RETRIES, "balance": 3} | {field: draws for field, (_, draws) in STEPS.items()}
