"""The samples of a split: their names and the store that reads them.

A store reads the samples of one kind of source: image files, prepared records or TensorFlow Datasets. This module does not
depend on any particular store, nor on augmentation.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf
from etils import epath

from deeplab_jax.errors import DataError
from deeplab_jax.labels import UNKNOWN, LabelSet, color_of

# Reads a window of an image or label. It takes (low, high), int32 [2] each: the first (row, column) of the window, and the
# (row, column) after its last. It returns the pixels, [high - low, ...].
ReadWindow = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
# Reads the pixels at some rows and columns. It takes (rows, columns), two int32 vectors in ascending order, and returns the
# pixels where they cross, [number of rows, number of columns].
ReadPixels = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class DecodedSample(NamedTuple):
    """A decoded sample, with the label values as they are stored in the source.

    Attributes:
      image: The image, uint8 [h, w, 3].
      values: The label values [h, w]: ids (uint8) or 24-bit colours (int32), see `value_table`. None in a split without
        labels.
      fingerprint: A hash of what the source holds for this sample, uint8 [8].
    """

    image: tf.Tensor
    values: tf.Tensor | None
    fingerprint: tf.Tensor


class OpenSample(NamedTuple):
    """A sample from which single windows can be read.

    Attributes:
      size: The height and width of the full image, int32 [2].
      image: A function that reads a window of the image, uint8 [h, w, 3].
      label: A function that reads label pixels as train ids (uint8). None in a split without labels.
      fingerprint: A hash of what the source holds for this sample, uint8 [8].
    """

    size: tf.Tensor
    image: ReadWindow
    label: ReadPixels | None
    fingerprint: tf.Tensor

    def read_all(self) -> dict[str, tf.Tensor]:
        """Return the full image and, if the sample has one, the full label, under the keys "image" and "label"."""
        arrays = {"image": self.image(tf.zeros(2, tf.int32), self.size)}
        if self.label is not None:
            arrays["label"] = self.label(tf.range(self.size[0]), tf.range(self.size[1]))
        return arrays


class Store(Protocol):
    """The interface that reads the samples of one kind of source.

    `decode` and `open` take tensors. They run both eagerly and inside tf.data.
    """

    def decode(self, samples: "Samples", index: tf.Tensor) -> DecodedSample:
        """Read and decode the full sample at position `index` in the list.

        A sample that cannot be read raises a TensorFlow error.
        """

    def open(self, samples: "Samples", table: np.ndarray, index: tf.Tensor) -> OpenSample:
        """Open the sample at position `index` in the list, so that windows of it can be read.

        `table` maps the label values to train ids (see `value_table`). A value without an entry raises a TensorFlow error.

        The default implementation decodes the full sample first. A store that can read part of a sample overrides it.
        """
        sample, label = self.decode(samples, index), None
        if sample.values is not None:
            # NumPy does this lookup in a third of the time that TensorFlow takes.
            train_ids = tf.numpy_function(table.take, [sample.values], tf.int16)
            train_ids.set_shape((None, None))
            tf.debugging.assert_greater(
                tf.reduce_min(train_ids), tf.constant(UNKNOWN, tf.int16), "a label value is not in the table"
            )
            label = pixel_reader(tf.cast(train_ids, tf.uint8))
        return OpenSample(tf.shape(sample.image)[:2], window_reader(sample.image), label, sample.fingerprint)

    def size(self, samples: "Samples", i: int) -> tuple[int, int]:
        """Return the (height, width) of sample `i` in pixels."""

    def fingerprint(self, samples: "Samples", i: int) -> bytes:
        """Return the 8 bytes of the fingerprint that `decode` returns, without decoding the sample."""

    def explain(self, samples: "Samples", i: int, error: Exception) -> DataError:
        """Return an error that tells the user why reading sample `i` failed with `error`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Samples:
    """One split of a data set, in list order.

    Attributes:
      root: The folder that the names are relative to.
      images: The image files, relative to `root`.
      labels: The label files, relative to `root`. Empty for a split without labels.
      kind: How the label files encode classes: "labelIds", "labelTrainIds" or "color".
      source: Where the names come from, for messages.
      store: The store that reads the samples.
    """

    root: str
    images: tuple[str, ...]
    labels: tuple[str, ...]
    kind: str
    source: str
    store: Store

    def __len__(self) -> int:
        return len(self.images)


def read_list(path: epath.Path) -> Iterator[tuple[str, str]]:
    """Yield the (image, label) names on each line of a `.lst` file.

    The columns of a line are separated by tabs or, in a line without tabs, by spaces. The label is "" in a line with one
    column. Blank lines are skipped.

    Raises:
      DataError: The file is not UTF-8, or a line has more than two columns or names a file outside the root.
    """
    for number, line in enumerate(read_lines(path), start=1):
        columns = [c.strip() for c in line.split("\t") if c.strip()] if "\t" in line else line.split()
        if not columns:
            continue
        if len(columns) > 2:
            raise DataError(
                f"Line {number} of {path} has {len(columns)} columns. "
                "Write `image` or `image label`, or `image<TAB>label` if the names contain spaces."
            )
        for name in columns:
            if name.startswith("/") or ".." in name.split("/"):
                raise DataError(
                    f"Line {number} of {path} names {name!r}, which is outside the root folder. "
                    "Write names relative to the root folder."
                )
        yield columns[0], columns[1] if len(columns) == 2 else ""


def read_lines(path: epath.Path) -> list[str]:
    """Return the lines of a text file, which may use `\\r\\n` line ends and start with a byte order mark.

    Raises:
      DataError: The file is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8.") from None


def digest(samples: Samples) -> str:
    """Return the SHA-256 of the names, in list order, and of the label kind.

    The digest does not depend on where the data set is stored.
    """
    names = json.dumps([samples.kind, samples.images, samples.labels])
    return hashlib.sha256(names.encode()).hexdigest()


def require_disjoint(name: str, parts: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Check that no image is in two of the splits that are joined.

    Args:
      name: What the message calls the joined split.
      parts: The (name, images) of each split.

    Raises:
      DataError: An image is in two of the splits.
    """
    seen: dict[str, str] = {}
    for split, images in parts:
        twice = next((image for image in images if image in seen), None)
        if twice:
            raise DataError(
                f"{name} contains {twice} twice: it is in {seen[twice]} and in {split}. "
                "Use only one of these splits, or correct the lists."
            )
        seen.update(dict.fromkeys(images, split))


def value_table(kind: str, labels: LabelSet) -> np.ndarray:
    """Return an int16 table that maps the values in label files of `kind` to train ids.

    Ignored values map to 255, and values without a meaning to `labels.UNKNOWN`. The table for "color" is indexed by 24-bit
    colour.
    """
    return {"labelIds": labels.id_table, "labelTrainIds": labels.train_id_table, "color": labels.color_table}[kind]()


def window_reader(array: tf.Tensor) -> ReadWindow:
    """Return a function that reads windows of an array in memory."""
    return lambda low, high: array[low[0] : high[0], low[1] : high[1]]


def pixel_reader(array: tf.Tensor) -> ReadPixels:
    """Return a function that gathers pixels from an array [h, w] in memory."""

    def read(rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
        # NumPy gathers columns in a fifth of the time that TensorFlow takes.
        pixels = tf.numpy_function(lambda a, r, c: a.take(r, 0).take(c, 1), [array, rows, columns], array.dtype, stateful=False)
        return tf.ensure_shape(pixels, (None, None))

    return read


def read_sample(samples: Samples, i: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Read sample `i` and return its image and its label values.

    Returns:
      The image, uint8 [h, w, 3], and the label values [h, w] as in `DecodedSample`, which are not looked up in a label set.
      The values are None in a split without labels.

    Raises:
      DataError: The sample cannot be read, or the image and the label do not belong together.
    """
    try:
        sample = samples.store.decode(samples, tf.constant(i, tf.int64))
    except Exception as error:
        raise samples.store.explain(samples, i, error) from None
    return sample.image.numpy(), None if sample.values is None else sample.values.numpy()


def diagnose(samples: Samples, table: np.ndarray, i: int) -> DataError | None:
    """Read sample `i` again and return an error that explains what is wrong with it, or None if it can be read."""
    try:
        samples.store.open(samples, table, tf.constant(i, tf.int64)).read_all()
    except Exception as error:  # Pillow decodes palette images and raises many types of errors for broken files
        try:
            _, values = read_sample(samples, i)
        except DataError as problem:  # a file that cannot be read takes precedence over a value that is not in the table
            return problem
        return _unknown_value(samples, values, table, i) or samples.store.explain(samples, i, error)
    return None


def _unknown_value(samples: Samples, values: np.ndarray | None, table: np.ndarray, i: int) -> DataError | None:
    """Return an error that names the first label value of sample `i` that is not in `table`, or None."""
    for value, count in zip(*np.unique([] if values is None else values, return_counts=True), strict=True):
        if table[int(value)] == UNKNOWN:
            shown = color_of(int(value)) if samples.kind == "color" else int(value)
            return DataError(
                f"{samples.root}/{samples.labels[i]} holds the value {shown} ({count} pixels), which the label set does not "
                f"define for {samples.kind} labels. Correct the file, or add the value to the label set of the config "
                "(to ignored_ids or ignored_colors if it has no class)."
            )
    return None
