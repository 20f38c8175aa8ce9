"""Which part of an image a training sample shows: random scale and place, chosen before a pixel is resized.

A window is a rectangle of whole source pixels that is resized to the crop: nothing outside it is read.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from deeplab_jax.data.sources import Cut, Pick
from deeplab_jax.labels import IGNORE

TRIES = 10  # of mmsegmentation's RandomCrop, before it takes what comes
# Random numbers of a sample: how many each use draws. One switch does not move what another one gets.
STREAMS = {"window": 3, "retry": 2 * TRIES, "balance": 3, "flip": 1, "rotation": 1, "cutout": 2, "photometric": 10}


class Window(NamedTuple):
    """Part of an image.

    Attributes:
      low, high: int32 [2], first row and column, and those after the last.
      shown: int32 [2], the size that it is resized to; the rest of the crop, below and to the right, shows nothing.
    """

    low: tf.Tensor
    high: tf.Tensor
    shown: tf.Tensor


def sample_key(seed: tf.Tensor | int, number: tf.Tensor | int) -> tf.Tensor:
    """int64 [2]: what every random number of the run's training sample `number` is a function of."""
    return tf.stack([tf.cast(seed, tf.int64), tf.cast(number, tf.int64)])


def uniforms(key: tf.Tensor, stream: str, shape: tuple[int, ...]) -> tf.Tensor:
    """float64 in [0, 1): the sample's random numbers for one of STREAMS."""
    # The algorithm is named because "auto" may choose another one on another device.
    numbers = tf.random.stateless_uniform([sum(STREAMS.values())], key, alg="philox")
    own = tf.split(numbers, list(STREAMS.values()))[list(STREAMS).index(stream)]
    return tf.cast(tf.reshape(own, shape), tf.float64)


def choose_window(
    size: tf.Tensor,
    label: Pick,
    key: tf.Tensor,
    *,
    crop_size: tuple[int, int],
    scale: tuple[float, float],
    cat_max_ratio: float = 1.0,
    class_balanced: float = 0.0,
) -> Window:
    """A window of crop / factor source pixels, rounded, where it fits; else the image's whole height or width.

    Args:
      size: int32 [2], of the image.
      label: pixels of its label, uint8 train ids; read only for the last two arguments.
      key: what `sample_key` returns.
      crop_size: height and width of the training sample.
      scale: range of the factor, uniform.
      cat_max_ratio: windows are drawn again while one class has this share of their labelled pixels or more
        (mmsegmentation's RandomCrop; there, the resized pixels are counted).
      class_balanced: probability that the window is instead centred, as far as the image allows, on a pixel of a class drawn
        evenly from those in the label. (NVIDIA's uniform sampling, arXiv 1812.01593, section 3.3, draws the class first and
        then the image; here every pass still sees every image once.)
    """
    placed = tf.numpy_function(
        lambda size, u: _place(size, u, crop_size, scale), [size, uniforms(key, "window", (3,))], tf.int32, stateful=False
    )
    low, extent, shown = tf.unstack(tf.ensure_shape(placed, (3, 2)))
    if cat_max_ratio < 1:
        again = uniforms(key, "retry", (TRIES, 2)) * tf.cast(size - extent + 1, tf.float64)
        low = _first_varied(tf.concat([low[None], tf.cast(again, tf.int32)], 0), extent, label, cat_max_ratio)
    if class_balanced > 0:
        u = uniforms(key, "balance", (3,))
        low = tf.cond(u[0] < class_balanced, lambda: _around_a_class(size, extent, low, label, u[1:]), lambda: low)
    return Window(low, low + extent, shown)


def _place(size: np.ndarray, u: np.ndarray, crop_size: tuple[int, int], scale: tuple[float, float]) -> np.ndarray:
    """int32 [3, 2]: first row and column, extent, and the size that it is resized to."""
    factor = scale[0] + u[0] * (scale[1] - scale[0])
    crop = np.array(crop_size)
    wanted = np.maximum(np.round(crop / factor), 1)
    extent = np.minimum(wanted, size)
    shown = np.where(wanted <= size, crop, np.clip(np.round(size * factor), 1, crop))
    return np.array([np.floor(u[1:] * (size - extent + 1)), extent, shown], np.int32)


def _first_varied(places: tf.Tensor, extent: tf.Tensor, label: Pick, cat_max_ratio: float) -> tf.Tensor:
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


def _around_a_class(size: tf.Tensor, extent: tf.Tensor, low: tf.Tensor, label: Pick, u: tf.Tensor) -> tf.Tensor:
    """The window's place with a pixel of a random class in its middle; `low` where no pixel is labelled."""

    def chosen(values: np.ndarray, u: np.ndarray) -> np.ndarray:
        counts = np.bincount(values.reshape(-1), minlength=IGNORE + 1)[:IGNORE]
        classes = np.flatnonzero(counts)
        if not len(classes):
            return np.array([-1, -1], np.int32)
        chosen_class = classes[int(u[0] * len(classes))]
        pixels = np.flatnonzero(values.reshape(-1) == chosen_class)
        return np.array(divmod(pixels[int(u[1] * len(pixels))], values.shape[1]), np.int32)

    pixel = tf.numpy_function(chosen, [label(*_ranges(tf.zeros_like(size), size)), u], tf.int32, stateful=False)
    centred = tf.clip_by_value(pixel - extent // 2, 0, size - extent)
    return tf.where(pixel[0] < 0, low, centred)


def _ranges(low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.range(low[0], high[0]), tf.range(low[1], high[1])


def show_image(image: Cut, window: Window, crop_size: tuple[int, int], fill: tuple[int, ...]) -> tf.Tensor:
    """uint8 [crop_h, crop_w, 3]: the window, resized bilinearly as if there were no image around it, above `fill`."""
    pixels = tf.raw_ops.ResizeBilinear(images=image(window.low, window.high)[None], size=window.shown, half_pixel_centers=True)
    # Positive, so that adding a half and cutting off rounds.
    rounded = tf.cast(pixels[0] + 0.5, tf.uint8)
    return _on_crop(rounded, window, crop_size, tf.constant(fill, tf.uint8))


def show_label(label: Pick, window: Window, crop_size: tuple[int, int]) -> tf.Tensor:
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
