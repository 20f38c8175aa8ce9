"""Augment training samples with pure functions of a sample and its random numbers.

The functions run both eagerly and inside tf.data. `augment` first chooses a window, a rectangle of whole source pixels, and
resizes it to the crop size. Only the pixels in the window are used. It then applies the enabled STEPS in order.

Labels are always resized and rotated with nearest-neighbour interpolation. The only value that is not taken from the source is
255, for pixels that are outside the image or blanked. Colours are distorted on the device (`photometric.py`). Only the random
factors for that are drawn here.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from deeplab_jax.config import DataConfig
from deeplab_jax.data.samples import OpenSample, ReadPixels, ReadWindow
from deeplab_jax.labels import IGNORE

# A training sample: "image" uint8 [crop_h, crop_w, 3], "label" uint8 [crop_h, crop_w] train ids, and the entries that the
# steps add.
Row = dict[str, tf.Tensor]
Fill = tuple[int, ...]  # RGB colour of pixels outside the image
MAX_RETRIES = 10  # mmsegmentation's RandomCrop redraws a crop this often, then accepts it
NEUTRAL_FACTORS = (0.0, 1.0, 1.0, 0.0, 0.0)  # with these, `photometric.distort` leaves an image unchanged


def augment(sample: OpenSample, key: tf.Tensor, *, data: DataConfig, fill: tuple[float, ...]) -> Row:
    """Draw a window of a sample and apply the augmentation steps that `data` enables.

    Args:
      sample: A sample with a label.
      key: The sample's key, from `make_sample_key`.
      data: The data section of the config.
      fill: The RGB colour (0 to 255) of pixels outside the image. Their label is 255.
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
    """Return a row with the same entries as a row of `augment`, where every pixel has the fill colour and the label 255."""
    image = tf.broadcast_to(tf.constant(_round_fill(fill), tf.uint8), (*data.crop_size, 3))
    row = {"image": image, "label": tf.fill(data.crop_size, tf.constant(IGNORE, tf.uint8))}
    return row | ({"photometric": tf.constant(NEUTRAL_FACTORS)} if data.photometric else {})


def _round_fill(fill: tuple[float, ...]) -> Fill:
    return tuple(min(max(math.floor(value + 0.5), 0), 255) for value in fill)


def make_sample_key(seed: tf.Tensor | int, number: tf.Tensor | int) -> tf.Tensor:
    """Return the key, int64 [2], that determines all random numbers of sample `number` of a run."""
    return tf.stack([tf.cast(seed, tf.int64), tf.cast(number, tf.int64)])


def draw_uniforms(key: tf.Tensor, stream: str) -> tf.Tensor:
    """Return the random numbers of a sample for one of STREAMS, as float64 [n] in [0, 1)."""
    # The algorithm is set explicitly because "auto" may choose a different one on a different device.
    numbers = tf.random.stateless_uniform([sum(STREAMS.values())], key, alg="philox")
    return tf.cast(tf.split(numbers, list(STREAMS.values()))[list(STREAMS).index(stream)], tf.float64)


class Window(NamedTuple):
    """A rectangle of source pixels, and the size that it is resized to.

    Attributes:
      low: The first row and column, int32 [2].
      high: The row and column after the last ones, int32 [2].
      output_size: The height and width of the resized window, int32 [2]. It is placed at the top left of the crop. The rest of
        the crop is filled.
    """

    low: tf.Tensor
    high: tf.Tensor
    output_size: tf.Tensor


def choose_window(sample: OpenSample, key: tf.Tensor, data: DataConfig) -> Window:
    """Choose a random window of a sample.

    The height and width of the window are those of the crop divided by a factor that is uniform over `data.scale`, rounded to
    whole source pixels. Along an axis where such a window does not fit, it covers the full image.

    The window is drawn again, at most MAX_RETRIES times, while a single class makes up a fraction of `data.cat_max_ratio` or
    more of its labelled pixels. This follows mmsegmentation's RandomCrop, except that it counts the pixels after resizing.

    With probability `data.class_balanced`, the window is centred instead, as far as the image allows, on a pixel of a random
    class. Each class in the label is equally likely. NVIDIA's uniform sampling (arXiv 1812.01593, section 3.3) draws the class
    first and then an image. Here, every epoch still uses every image once.
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
    """Return the first row and column of a window, its extent, and its size after resizing, as int32 [3, 2]."""
    factor = scale[0] + u[0] * (scale[1] - scale[0])
    crop = np.array(crop_size)
    wanted = np.maximum(np.round(crop / factor), 1)
    extent = np.minimum(wanted, size)
    output_size = np.where(wanted <= size, crop, np.clip(np.round(size * factor), 1, crop))
    return np.array([np.floor(u[1:] * (size - extent + 1)), extent, output_size], np.int32)


def _choose_varied(places: tf.Tensor, extent: tf.Tensor, label: ReadPixels, cat_max_ratio: float) -> tf.Tensor:
    """Return the first of `places` whose window holds several classes, each below `cat_max_ratio`, or else the last place."""

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
    """Return the first row and column of a window that is centred on a pixel of a random class.

    If the label has no labelled pixel, `low` is returned.
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
    """Resize a window of an image bilinearly and pad it with `fill` to the crop size.

    Pixels outside the window do not take part in the interpolation.

    Returns:
      The crop, uint8 [crop_h, crop_w, 3].
    """
    pixels = tf.raw_ops.ResizeBilinear(
        images=image(window.low, window.high)[None], size=window.output_size, half_pixel_centers=True
    )
    # The cast truncates. Adding a half first rounds, because no value is negative.
    rounded = tf.cast(pixels[0] + 0.5, tf.uint8)
    return _pad_to_crop(rounded, window, crop_size, tf.constant(fill, tf.uint8))


def render_label(label: ReadPixels, window: Window, crop_size: tuple[int, int]) -> tf.Tensor:
    """Resize a window of a label by nearest neighbour and pad it with 255 to the crop size.

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
    """Pad an array on the right and at the bottom with the pixel `outside`, to [crop_h, crop_w, ...]."""
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

    Pixels from outside the crop get the colour `fill` and the label 255. Uses 1 random number.
    """
    angle = (u[0] * 2 - 1) * degrees * math.pi / 180
    height, width = row["label"].shape
    cos, sin = tf.cos(angle), tf.sin(angle)
    y, x = (height - 1) / 2, (width - 1) / 2
    # Output pixel (x, y) takes the input at (a x + b y + c, d x + e y + f), where a to f are the first six entries.
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

    The height and width of the rectangle are `share` times those of the crop. Its pixels get the colour `fill` and the label
    255. Uses 2 random numbers.
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
    """Draw the factors for `photometric.distort` and add them to a row as "photometric", float32 [5].

    The distributions are those of mmsegmentation's PhotoMetricDistortion. Each of the first four factors is neutral with
    probability 1/2 and otherwise uniform: brightness in [-32, 32), contrast and saturation in [0.5, 1.5), and hue in [-36, 36)
    degrees. Only the hue differs slightly: mmsegmentation draws an integer in [-18, 18), in units of 2 degrees. The fifth
    factor is 1 if contrast is applied before saturation and hue, and 0 if it is applied after them, each with probability 1/2.
    Uses 10 random numbers.
    """
    applies, u = u[:5] < 0.5, u[5:]
    neutral = tf.constant(NEUTRAL_FACTORS[:4], tf.float64)
    low, high = tf.constant([-32.0, 0.5, 0.5, -36.0], tf.float64), tf.constant([32.0, 1.5, 1.5, 36.0], tf.float64)
    drawn = tf.where(applies[:4], low + u[:4] * (high - low), neutral)
    return row | {"photometric": tf.cast(tf.concat([drawn, tf.cast(applies[4:], tf.float64)], 0), tf.float32)}


# Maps a field of DataConfig to an augmentation step: a function of (row, random numbers, the field's value, fill), and the
# number of random numbers it uses. A step is applied if its field is set. Add new steps at the end, because this keeps the
# random numbers of the existing steps unchanged.
STEPS: dict[str, tuple[Callable[[Row, tf.Tensor, Any, Fill], Row], int]] = {
    "flip": (flip, 1),
    "rotation": (rotate, 1),
    "cutout": (cut_out, 2),
    "photometric": (draw_photometric, 10),
}
# Maps each use of a sample's random numbers to how many it gets. All are drawn for every sample, so that enabling one step does
# not change the random numbers of another.
STREAMS = {"window": 3, "retry": 2 * MAX_RETRIES, "balance": 3} | {field: draws for field, (_, draws) in STEPS.items()}
