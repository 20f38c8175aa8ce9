"""Training augmentation: pure functions of a sample and its random numbers, usable eagerly and inside tf.data.

A window is chosen first: a rectangle of whole source pixels that is resized to the crop; nothing outside it is read. Then
come STEPS, in their order.

Labels are resized and turned by nearest neighbour, always: no value appears that was not in the source, except 255 for what
lies outside. Colours are distorted on the device (`photometric.py`); here only the numbers for it are drawn.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from deeplab_jax.config import DataConfig
from deeplab_jax.data.samples import OpenSample, ReadPixels, ReadWindow
from deeplab_jax.labels import IGNORE

# A training sample: "image" uint8 [crop_h, crop_w, 3], "label" uint8 [crop_h, crop_w] train ids, and what steps add.
Row = dict[str, tf.Tensor]
Fill = tuple[int, ...]  # RGB of pixels outside the image
TRIES = 10  # of mmsegmentation's RandomCrop, before it takes what comes
NEUTRAL_FACTORS = (0.0, 1.0, 1.0, 0.0, 0.0)  # with which `photometric.distort` changes nothing


def augment(sample: OpenSample, key: tf.Tensor, *, data: DataConfig, fill: tuple[float, ...]) -> Row:
    """Draw a window of the sample and apply the steps that `data` switches on.

    Args:
      sample: with a label.
      key: what `sample_key` returns.
      data: of the config.
      fill: RGB (0-255) of pixels outside the image; their label is 255.
    """
    assert sample.label is not None  # a training split has labels
    pixel = _round_fill(fill)
    window = choose_window(sample, key, data)
    image, label = show_image(sample.image, window, data.crop_size, pixel), show_label(sample.label, window, data.crop_size)
    row = {"image": image, "label": label}
    for field, (step, _) in STEPS.items():
        if amount := getattr(data, field):
            row = step(row, uniforms(key, field), amount, pixel)
    return row


def blank_row(data: DataConfig, fill: tuple[float, ...]) -> Row:
    """Return a row as `augment` would that shows nothing: the fill colour, its label 255."""
    image = tf.broadcast_to(tf.constant(_round_fill(fill), tf.uint8), (*data.crop_size, 3))
    row = {"image": image, "label": tf.fill(data.crop_size, tf.constant(IGNORE, tf.uint8))}
    return row | ({"photometric": tf.constant(NEUTRAL_FACTORS)} if data.photometric else {})


def _round_fill(fill: tuple[float, ...]) -> Fill:
    return tuple(min(max(math.floor(value + 0.5), 0), 255) for value in fill)


def sample_key(seed: tf.Tensor | int, number: tf.Tensor | int) -> tf.Tensor:
    """Return int64 [2]: what every random number of the run's training sample `number` is a function of."""
    return tf.stack([tf.cast(seed, tf.int64), tf.cast(number, tf.int64)])


def uniforms(key: tf.Tensor, stream: str) -> tf.Tensor:
    """Return float64 in [0, 1): the sample's random numbers for one of STREAMS, flat."""
    # The algorithm is named because "auto" may choose another one on another device.
    numbers = tf.random.stateless_uniform([sum(STREAMS.values())], key, alg="philox")
    return tf.cast(tf.split(numbers, list(STREAMS.values()))[list(STREAMS).index(stream)], tf.float64)


class Window(NamedTuple):
    """Part of an image.

    Attributes:
      low, high: int32 [2], first row and column, and those after the last.
      shown: int32 [2], the size that it is resized to; the rest of the crop, below and to the right, shows nothing.
    """

    low: tf.Tensor
    high: tf.Tensor
    shown: tf.Tensor


def choose_window(sample: OpenSample, key: tf.Tensor, data: DataConfig) -> Window:
    """Choose a window of crop / factor source pixels, rounded, where it fits; else the image's whole height or width.

    The factor is uniform over `data.scale`. A window is drawn again while one class has `data.cat_max_ratio` of its labelled
    pixels or more (mmsegmentation's RandomCrop; there, the resized pixels are counted). With probability `data.class_balanced`
    the window is instead centred, as far as the image allows, on a pixel of a class drawn evenly from those in the label.
    (NVIDIA's uniform sampling, arXiv 1812.01593, section 3.3, draws the class first and then the image; here every pass still
    sees every image once.)
    """
    size, label = sample.size, sample.label
    assert label is not None  # a training split has labels
    placed = tf.numpy_function(
        lambda size, u: _place(size, u, data.crop_size, data.scale), [size, uniforms(key, "window")], tf.int32, stateful=False
    )
    low, extent, shown = tf.unstack(tf.ensure_shape(placed, (3, 2)))
    if data.cat_max_ratio < 1:
        again = tf.reshape(uniforms(key, "retry"), (TRIES, 2)) * tf.cast(size - extent + 1, tf.float64)
        low = _first_varied(tf.concat([low[None], tf.cast(again, tf.int32)], 0), extent, label, data.cat_max_ratio)
    if data.class_balanced > 0:
        u = uniforms(key, "balance")
        low = tf.cond(u[0] < data.class_balanced, lambda: _around_a_class(size, extent, low, label, u[1:]), lambda: low)
    return Window(low, low + extent, shown)


def _place(size: np.ndarray, u: np.ndarray, crop_size: tuple[int, int], scale: tuple[float, float]) -> np.ndarray:
    """int32 [3, 2]: first row and column, extent, and the size that it is resized to."""
    factor = scale[0] + u[0] * (scale[1] - scale[0])
    crop = np.array(crop_size)
    wanted = np.maximum(np.round(crop / factor), 1)
    extent = np.minimum(wanted, size)
    shown = np.where(wanted <= size, crop, np.clip(np.round(size * factor), 1, crop))
    return np.array([np.floor(u[1:] * (size - extent + 1)), extent, shown], np.int32)


def _first_varied(places: tf.Tensor, extent: tf.Tensor, label: ReadPixels, cat_max_ratio: float) -> tf.Tensor:
    """The first of `places` whose window holds several classes and none too much; the last one, whatever it holds."""

    def is_varied(window: np.ndarray) -> np.bool_:
        counts = np.bincount(window.reshape(-1), minlength=IGNORE + 1)[:IGNORE]
        return np.bool_(np.count_nonzero(counts) > 1 and counts.max() < cat_max_ratio * counts.sum())

    def is_bad(i: tf.Tensor) -> tf.Tensor:
        varied = tf.numpy_function(is_varied, [label(*_ranges(places[i], places[i] + extent))], tf.bool, stateful=False)
        return ~tf.ensure_shape(varied, ())

    def goes_on(i: tf.Tensor) -> tf.Tensor:
        return tf.cond(i < TRIES, lambda: is_bad(i), lambda: tf.constant(False))

    (i,) = tf.while_loop(goes_on, lambda i: [i + 1], [tf.constant(0)])
    return places[i]


def _around_a_class(size: tf.Tensor, extent: tf.Tensor, low: tf.Tensor, label: ReadPixels, u: tf.Tensor) -> tf.Tensor:
    """The window's place with a pixel of a random class in its middle; `low` where no pixel is labelled."""

    def choose_pixel(values: np.ndarray, u: np.ndarray) -> np.ndarray:
        counts = np.bincount(values.reshape(-1), minlength=IGNORE + 1)[:IGNORE]
        classes = np.flatnonzero(counts)
        if not len(classes):
            return np.array([-1, -1], np.int32)
        chosen_class = classes[int(u[0] * len(classes))]
        pixels = np.flatnonzero(values.reshape(-1) == chosen_class)
        return np.array(divmod(pixels[int(u[1] * len(pixels))], values.shape[1]), np.int32)

    pixel = tf.numpy_function(choose_pixel, [label(*_ranges(tf.zeros_like(size), size)), u], tf.int32, stateful=False)
    centred = tf.clip_by_value(pixel - extent // 2, 0, size - extent)
    return tf.where(pixel[0] < 0, low, centred)


def _ranges(low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.range(low[0], high[0]), tf.range(low[1], high[1])


def show_image(image: ReadWindow, window: Window, crop_size: tuple[int, int], fill: Fill) -> tf.Tensor:
    """uint8 [crop_h, crop_w, 3]: the window, resized bilinearly as if there were no image around it, above `fill`."""
    pixels = tf.raw_ops.ResizeBilinear(images=image(window.low, window.high)[None], size=window.shown, half_pixel_centers=True)
    # Positive, so that adding a half and cutting off rounds.
    rounded = tf.cast(pixels[0] + 0.5, tf.uint8)
    return _on_crop(rounded, window, crop_size, tf.constant(fill, tf.uint8))


def show_label(label: ReadPixels, window: Window, crop_size: tuple[int, int]) -> tf.Tensor:
    """uint8 [crop_h, crop_w]: of each pixel the source pixel under its centre, nothing mixed; 255 outside."""
    centres = []
    for axis in (0, 1):
        extent, shown = window.high[axis] - window.low[axis], window.shown[axis]
        centres.append(window.low[axis] + (2 * tf.range(shown) + 1) * extent // (2 * shown))
    return _on_crop(label(*centres), window, crop_size, tf.constant(IGNORE, tf.uint8))


def _on_crop(array: tf.Tensor, window: Window, crop_size: tuple[int, int], outside: tf.Tensor) -> tf.Tensor:
    """[crop_h, crop_w, ...]: the array, and the pixel `outside` to its right and below it."""
    rows, columns = crop_size[0] - window.shown[0], crop_size[1] - window.shown[1]

    def padded() -> tf.Tensor:
        right = tf.broadcast_to(outside, [window.shown[0], columns, *outside.shape])
        below = tf.broadcast_to(outside, [rows, crop_size[1], *outside.shape])
        return tf.concat([tf.concat([array, right], 1), below], 0)

    full = tf.cond(rows + columns > 0, padded, lambda: array)
    return tf.ensure_shape(full, (*crop_size, *outside.shape))


def flip(row: Row, u: tf.Tensor, amount: bool, fill: Fill) -> Row:
    """Mirror every second sample, on average. Draws 1."""

    def mirror() -> Row:
        return row | {"image": tf.reverse(row["image"], [1]), "label": tf.reverse(row["label"], [1])}

    return tf.cond(u[0] < 0.5, mirror, lambda: row)


def rotate(row: Row, u: tf.Tensor, degrees: float, fill: Fill) -> Row:
    """Turn the crop about its centre by up to `degrees` either way; `fill` and 255 come in at the edges. Draws 1."""
    angle = (u[0] * 2 - 1) * degrees * math.pi / 180
    height, width = row["label"].shape
    cos, sin = tf.cos(angle), tf.sin(angle)
    y, x = (height - 1) / 2, (width - 1) / 2
    # Output pixel (x, y) shows the input at (a x + b y + c, d x + e y + f).
    transform = tf.stack([cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y, 0.0, 0.0])

    def turn(array: tf.Tensor, interpolation: str, outside: float) -> tf.Tensor:
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=array[None],
            transforms=tf.cast(transform, tf.float32)[None],
            output_shape=[height, width],
            fill_value=outside,
            interpolation=interpolation,
            fill_mode="CONSTANT",
        )[0]

    colour = tf.constant(fill, tf.float32)
    image = turn(tf.cast(row["image"], tf.float32) - colour, "BILINEAR", 0.0) + colour
    label = turn(row["label"][..., None], "NEAREST", float(IGNORE))[..., 0]
    return row | {"image": tf.cast(tf.clip_by_value(image, 0.0, 255.0) + 0.5, tf.uint8), "label": label}


def cut_out(row: Row, u: tf.Tensor, share: float, fill: Fill) -> Row:
    """Blank a rectangle of `share` of the crop's height and width, anywhere inside (DeVries and Taylor, arXiv 1708.04552).

    Draws 2.
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
    """Add "photometric", float32 [5] for `photometric.distort`: what mmsegmentation's PhotoMetricDistortion draws.

    Each with probability 1/2: brightness from [-32, 32), contrast and saturation from [0.5, 1.5), hue from [-36, 36) degrees
    (there [-18, 18) steps of 2), and whether contrast comes before saturation and hue (1) or after (0). Draws 10.
    """
    applies, u = u[:5] < 0.5, u[5:]
    neutral = tf.constant(NEUTRAL_FACTORS[:4], tf.float64)
    low, high = tf.constant([-32.0, 0.5, 0.5, -36.0], tf.float64), tf.constant([32.0, 1.5, 1.5, 36.0], tf.float64)
    drawn = tf.where(applies[:4], low + u[:4] * (high - low), neutral)
    return row | {"photometric": tf.cast(tf.concat([drawn, tf.cast(applies[4:], tf.float64)], 0), tf.float32)}


# By field of DataConfig: a function of (row, random numbers, the field's value, fill), applied where the field is set, and how
# many random numbers it draws. Add a step at the end: the steps before it then keep their numbers.
STEPS: dict[str, tuple[Callable[[Row, tf.Tensor, Any, Fill], Row], int]] = {
    "flip": (flip, 1),
    "rotation": (rotate, 1),
    "cutout": (cut_out, 2),
    "photometric": (draw_photometric, 10),
}
# A sample's random numbers: how many each use draws. One switch does not move what another one gets.
STREAMS = {"window": 3, "retry": 2 * TRIES, "balance": 3} | {field: draws for field, (_, draws) in STEPS.items()}
