"""The samples of a split: their names, from a list, and how a store reads them.

A store knows how to read the samples of one kind of source: image files, prepared records, TensorFlow Datasets. Nothing here
knows which stores there are, or augmentation.
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

# (low, high), int32 [2] each: first rows and columns, and those after the last -> the pixels between, [high - low, ...].
ReadWindow = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
# (rows, columns), int32 each, rising -> the pixels where they cross, [rows, columns].
ReadPixels = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class DecodedSample(NamedTuple):
    """A sample as its source holds it.

    Attributes:
      image: uint8 [h, w, 3].
      values: [h, w], uint8 ids or int32 24-bit colours (see `value_table`); None in a split without labels.
      fingerprint: uint8 [8], of what the source holds.
    """

    image: tf.Tensor
    values: tf.Tensor | None
    fingerprint: tf.Tensor


class OpenSample(NamedTuple):
    """A sample of which a window may be read.

    Attributes:
      size: int32 [2], height and width.
      image: reads windows, uint8 [h, w, 3].
      label: reads pixels, uint8 train ids; None in a split without labels.
      fingerprint: uint8 [8].
    """

    size: tf.Tensor
    image: ReadWindow
    label: ReadPixels | None
    fingerprint: tf.Tensor

    def read_whole(self) -> dict[str, tf.Tensor]:
        """Return {"image", "label"}, all of it."""
        arrays = {"image": self.image(tf.zeros(2, tf.int32), self.size)}
        if self.label is not None:
            arrays["label"] = self.label(tf.range(self.size[0]), tf.range(self.size[1]))
        return arrays


class Store(Protocol):
    """One way to store samples. `decode` and `open` are called with tensors, eagerly and inside tf.data."""

    def decode(self, samples: "Samples", index: tf.Tensor) -> DecodedSample:
        """Read the whole sample at a position in the list; an error of TensorFlow if it cannot be read."""

    def open(self, samples: "Samples", table: np.ndarray, index: tf.Tensor) -> OpenSample:
        """Open it for windows, with its label as train ids; an error of TensorFlow if a value is in no `table` entry.

        Here of the decoded sample; a store that can read a part of one does better.
        """
        sample, label = self.decode(samples, index), None
        if sample.values is not None:
            # NumPy looks up in a third of TensorFlow's time.
            train_ids = tf.numpy_function(table.take, [sample.values], tf.int16)
            train_ids.set_shape((None, None))
            tf.debugging.assert_greater(
                tf.reduce_min(train_ids), tf.constant(UNKNOWN, tf.int16), "a label value is in no table"
            )
            label = pixel_reader(tf.cast(train_ids, tf.uint8))
        return OpenSample(tf.shape(sample.image)[:2], window_reader(sample.image), label, sample.fingerprint)

    def size(self, samples: "Samples", i: int) -> tuple[int, int]:
        """Return (height, width) of sample `i`."""

    def fingerprint(self, samples: "Samples", i: int) -> bytes:
        """Return what `decode` gives as fingerprint, 8 bytes, at less cost."""

    def explain(self, samples: "Samples", i: int, error: Exception) -> DataError:
        """Return what is wrong with sample `i`, reading of which failed with `error`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Samples:
    """One split of a data set, in list order.

    Attributes:
      root: the folder that the names are relative to.
      images: image files, relative to `root`.
      labels: label files, relative to `root`; empty for a split without labels.
      kind: how the label files encode classes.
      source: where the names come from, for messages.
      store: what reads the samples.
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
    """Yield (image, label) of each line of a `.lst` file; label "" where there is one column.

    Columns are separated by a tab, else by spaces; blank lines are skipped.

    Raises:
      DataError: the file is not UTF-8; a line, named by its number, has more than two columns or leaves the root.
    """
    for number, line in enumerate(read_lines(path), start=1):
        columns = [c.strip() for c in line.split("\t") if c.strip()] if "\t" in line else line.split()
        if not columns:
            continue
        if len(columns) > 2:
            raise DataError(
                f"{path}, line {number}: {len(columns)} columns; write `image`, or `image<TAB>label` if names hold spaces"
            )
        for name in columns:
            if name.startswith("/") or ".." in name.split("/"):
                raise DataError(f"{path}, line {number}: {name!r} leaves the root; names are relative to it")
        yield columns[0], columns[1] if len(columns) == 2 else ""


def read_lines(path: epath.Path) -> list[str]:
    """Return the lines of a list; `\\r\\n` and a byte order mark are accepted.

    Raises:
      DataError: the file is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from None


def digest(samples: Samples) -> str:
    """Return the SHA-256 of the names in order and of the kind: equal for one list, wherever the data set lies."""
    names = json.dumps([samples.kind, samples.images, samples.labels])
    return hashlib.sha256(names.encode()).hexdigest()


def require_disjoint(name: str, parts: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Check that no image is in two of the splits, (split, images) each, that are joined to the one called `name`."""
    seen: dict[str, str] = {}
    for split, images in parts:
        twice = next((image for image in images if image in seen), None)
        if twice:
            raise DataError(f"{name}: {twice} is in {seen[twice]} and in {split}: name only one, or correct the lists")
        seen.update(dict.fromkeys(images, split))


def value_table(kind: str, labels: LabelSet) -> np.ndarray:
    """Return an int16 table from a label file's values to train ids, 255 or `labels.UNKNOWN`; that of `color` is indexed by
    24-bit colour."""
    return {"labelIds": labels.id_table, "labelTrainIds": labels.train_id_table, "color": labels.color_table}[kind]()


def window_reader(array: tf.Tensor) -> ReadWindow:
    """Return a function that cuts windows out of an array in memory."""
    return lambda low, high: array[low[0] : high[0], low[1] : high[1]]


def pixel_reader(array: tf.Tensor) -> ReadPixels:
    """Return a function that gathers pixels of an array in memory, [h, w]."""

    def read(rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
        # NumPy gathers columns in a fifth of TensorFlow's time.
        pixels = tf.numpy_function(lambda a, r, c: a.take(r, 0).take(c, 1), [array, rows, columns], array.dtype, stateful=False)
        return tf.ensure_shape(pixels, (None, None))

    return read


def read_sample(samples: Samples, i: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Read sample `i`: image uint8 [h, w, 3], and the label's values [h, w] as in `DecodedSample`, whatever they mean.

    Raises:
      DataError: it cannot be read, or image and label do not belong together.
    """
    try:
        sample = samples.store.decode(samples, tf.constant(i, tf.int64))
    except Exception as error:
        raise samples.store.explain(samples, i, error) from None
    return sample.image.numpy(), None if sample.values is None else sample.values.numpy()


def diagnose(samples: Samples, table: np.ndarray, i: int) -> DataError | None:
    """Read sample `i` again and return what is wrong with it; None if nothing is."""
    try:
        samples.store.open(samples, table, tf.constant(i, tf.int64)).read_whole()
    except Exception as error:  # Pillow, which reads palettes, has errors of many kinds for a broken file
        try:
            _, values = read_sample(samples, i)
        except DataError as problem:  # what the file is comes before what its values mean
            return problem
        return _unknown_value(samples, values, table, i) or samples.store.explain(samples, i, error)
    return None


def _unknown_value(samples: Samples, values: np.ndarray | None, table: np.ndarray, i: int) -> DataError | None:
    """Return an error that names the first of the values of sample `i` that is in no entry of `table`."""
    for value, count in zip(*np.unique([] if values is None else values, return_counts=True), strict=True):
        if table[int(value)] == UNKNOWN:
            shown = color_of(int(value)) if samples.kind == "color" else int(value)
            return DataError(
                f"{samples.root}/{samples.labels[i]} holds the value {shown} ({count} pixels), which labels of kind "
                f"{samples.kind} do not have: correct the file, or add the value to the config's label set "
                "(ignored_ids: no class)"
            )
    return None
