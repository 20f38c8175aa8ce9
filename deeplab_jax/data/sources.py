"""What the pipeline asks of a data set, whichever way it is stored: image files, prepared records, TensorFlow Datasets.

A store knows how to read the samples of one kind of source. Nothing here knows augmentation, and of files only that
they are the store of samples that name none (`store_of`).
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from deeplab_jax.data.lists import Samples
from deeplab_jax.errors import DataError
from deeplab_jax.labels import UNKNOWN, color_of

# (low, high), int32 [2] each: rows and columns -> what lies between, [high - low, ...].
Cut = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
# (rows, columns), int32 each, rising -> the pixels where they cross, [rows, columns].
Pick = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class Decoded(NamedTuple):
    """A sample as its source holds it.

    Attributes:
      image: uint8 [h, w, 3].
      values: [h, w], uint8 ids or int32 24-bit colours (see `lists.value_table`); None in a split without labels.
      fingerprint: uint8 [8], of what the source holds.
    """

    image: tf.Tensor
    values: tf.Tensor | None
    fingerprint: tf.Tensor


class Opened(NamedTuple):
    """A sample of which a window may be read.

    Attributes:
      size: int32 [2], height and width.
      image: windows uint8 [h, w, 3].
      label: pixels of uint8 train ids; None in a split without labels.
      fingerprint: uint8 [8].
    """

    size: tf.Tensor
    image: Cut
    label: Pick | None
    fingerprint: tf.Tensor


class Store(Protocol):
    """One way to store samples. `decoded` and `opened` are called with tensors, eagerly and inside tf.data."""

    def decoded(self, samples: Samples, index: tf.Tensor) -> Decoded:
        """The whole sample at a position in the list; an error of TensorFlow if it cannot be read."""

    def opened(self, samples: Samples, table: np.ndarray, index: tf.Tensor) -> Opened:
        """The same, for windows, with its label as train ids; an error of TensorFlow if a value is in no `table` entry."""

    def size(self, samples: Samples, i: int) -> tuple[int, int]:
        """(height, width) of sample `i`."""

    def fingerprint(self, samples: Samples, i: int) -> bytes:
        """What `decoded` gives as fingerprint, 8 bytes, at less cost."""

    def explain(self, samples: Samples, i: int, error: Exception) -> DataError:
        """What is wrong with sample `i`, reading of which failed with `error`."""


def whole(array: tf.Tensor) -> Cut:
    """Windows of an array at hand."""
    return lambda low, high: array[low[0] : high[0], low[1] : high[1]]


def picked(array: tf.Tensor) -> Pick:
    """Pixels of an array at hand, [h, w]."""

    def pick(rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
        # NumPy gathers columns in a fifth of TensorFlow's time.
        taken = tf.numpy_function(lambda a, r, c: a.take(r, 0).take(c, 1), [array, rows, columns], array.dtype, stateful=False)
        return tf.ensure_shape(taken, (None, None))

    return pick


def all_of(sample: Opened) -> dict[str, tf.Tensor]:
    """{"image", "label"} whole."""
    found = {"image": sample.image(tf.zeros(2, tf.int32), sample.size)}
    if sample.label is not None:
        found["label"] = sample.label(tf.range(sample.size[0]), tf.range(sample.size[1]))
    return found


def opened_whole(sample: Decoded, table: np.ndarray) -> Opened:
    """A decoded sample, for windows; an error of TensorFlow if a value is in no entry of `table`."""
    label = None
    if sample.values is not None:
        # NumPy looks up in a third of TensorFlow's time.
        train_ids = tf.numpy_function(table.take, [sample.values], tf.int16)
        train_ids.set_shape((None, None))
        tf.debugging.assert_greater(tf.reduce_min(train_ids), tf.constant(UNKNOWN, tf.int16), "a label value is in no table")
        label = picked(tf.cast(train_ids, tf.uint8))
    return Opened(tf.shape(sample.image)[:2], whole(sample.image), label, sample.fingerprint)


def store_of(samples: Samples) -> Store:
    """How the samples are stored."""
    from deeplab_jax.data.read import ImageFiles

    return samples.store or ImageFiles()


def unreadable(samples: Samples, table: np.ndarray, i: int) -> DataError | None:
    """What is wrong with sample `i`, which is read again; None if nothing is."""
    store = store_of(samples)
    try:
        all_of(store.opened(samples, table, tf.constant(i, tf.int64)))
    except Exception as error:  # Pillow, which reads palettes, has errors of many kinds for a broken file
        try:
            _, values = read_sample(samples, i)
        except DataError as problem:  # what the file is comes before what its values mean
            return problem
        return _unknown_value(samples, values, table, i) or store.explain(samples, i, error)
    return None


def read_sample(samples: Samples, i: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Sample `i` at once: image uint8 [h, w, 3], and the label's values [h, w] as in `Decoded`, whatever they mean.

    Raises:
      DataError: it cannot be read, or image and label do not belong together.
    """
    try:
        sample = store_of(samples).decoded(samples, tf.constant(i, tf.int64))
    except Exception as error:
        raise store_of(samples).explain(samples, i, error) from None
    return sample.image.numpy(), None if sample.values is None else sample.values.numpy()


def _unknown_value(samples: Samples, values: np.ndarray | None, table: np.ndarray, i: int) -> DataError | None:
    """The first of the values of sample `i` that is in no entry of `table`."""
    for value, count in zip(*np.unique([] if values is None else values, return_counts=True), strict=True):
        if table[int(value)] == UNKNOWN:
            shown = color_of(int(value)) if samples.kind == "color" else int(value)
            return DataError(
                f"{name_of_label(samples, i)} holds the value {shown} ({count} pixels), which labels of kind {samples.kind} "
                f"do not have: mend the file, or add the value to the config's label set (ignored_ids: no class)"
            )
    return None


def name_of_label(samples: Samples, i: int) -> str:
    """The label of sample `i`, for messages."""
    return f"{samples.root}/{samples.labels[i]}"


def fingerprint(samples: Samples, i: int) -> bytes:
    """The "fingerprint" that sample `i` has in a batch, without decoding it: 8 bytes.

    Raises:
      DataError: what the source holds of it is missing or cannot be read.
    """
    return store_of(samples).fingerprint(samples, i)
