"""The samples in a split: their file names, and the interface for the store that reads them.

There is one store for each kind of source: image files, prepared records and TensorFlow Datasets. This module does not depend
on any particular store, or on augmentation.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from deeplab_jax.data.masks import advise_on_unknown, describe_mask
from deeplab_jax.errors import BucketError, BucketOutageError, DataError
from deeplab_jax.labels import UNKNOWN, LabelSet, color_of

# A function type for reading an image window. The function takes two int32 [2] tensors, (low, high): the first (row, column) in
# the window, and one past the last (row, column). It returns the pixels [h, w, ...], where (h, w) = high - low.
ReadWindow = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
# A function type for reading label pixels. The function takes two ascending int32 vectors, (rows, columns), and returns the
# pixels at every combination of the two, [len(rows), len(columns)].
ReadPixels = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class DecodedSample(NamedTuple):
    """A decoded sample, with label values as stored in the source.

    Attributes:
      image: The image, uint8 [h, w, c].
      values: The label values [h, w], which are uint8 ids or int32 24-bit colours (see `make_value_table`). None in a split
        without labels.
      fingerprint: A hash of the sample's source contents, uint8 [8].
    """

    image: tf.Tensor
    values: tf.Tensor | None
    fingerprint: tf.Tensor


class OpenSample(NamedTuple):
    """A sample that has been opened for reading windows.

    Attributes:
      size: The height and width of the full image, int32 [2].
      image: A function that reads an image window, uint8 [h, w, c].
      label: A function that reads label pixels as uint8 train ids. None in a split without labels.
      fingerprint: A hash of the sample's source contents, uint8 [8].
    """

    size: tf.Tensor
    image: ReadWindow
    label: ReadPixels | None
    fingerprint: tf.Tensor

    def read_all(self) -> dict[str, tf.Tensor]:
        """Return a dict with the full "image" and, if the sample has a label, the full "label"."""
        arrays = {"image": self.image(tf.zeros(2, tf.int32), self.size)}
        if self.label is not None:
            arrays["label"] = self.label(tf.range(self.size[0]), tf.range(self.size[1]))
        return arrays


class Store(Protocol):
    """The interface for reading samples from one kind of source.

    `decode` and `open` take tensors and work both eagerly and inside tf.data.
    """

    def decode(self, samples: "Samples", index: tf.Tensor) -> DecodedSample:
        """Read and decode the full sample at position `index` in the list.

        An unreadable sample raises a TensorFlow error.
        """

    def open(self, samples: "Samples", table: np.ndarray, index: tf.Tensor) -> OpenSample:
        """Open the sample at position `index` in the list for reading windows.

        `table` maps label values to train ids (see `make_value_table`). A value that it lacks raises a TensorFlow error.

        The default implementation decodes the full sample first. Stores that can read part of a sample override this method.
        """
        sample, label = self.decode(samples, index), None
        if sample.values is not None:
            # NumPy does this lookup three times as fast as TensorFlow.
            train_ids = tf.numpy_function(table.take, [sample.values], tf.int16)
            train_ids.set_shape((None, None))
            tf.debugging.assert_greater(
                tf.reduce_min(train_ids), tf.constant(UNKNOWN, tf.int16), "a label value is not in the table"
            )
            label = make_pixel_reader(tf.cast(train_ids, tf.uint8))
        return OpenSample(tf.shape(sample.image)[:2], make_window_reader(sample.image), label, sample.fingerprint)

    def size(self, samples: "Samples", i: int) -> tuple[int, int]:
        """Return the (height, width) of sample `i` in pixels."""

    def fingerprint(self, samples: "Samples", i: int) -> bytes:
        """Return the same 8-byte fingerprint as `decode`, without decoding the sample."""

    def orientation(self, samples: "Samples", i: int) -> int:
        """Return the EXIF orientation of sample `i` that its pixels do not have yet. 1 means upright."""
        return 1

    def omissions(self, samples: "Samples", i: int) -> Mapping[str, str]:
        """Return the parts of sample `i`'s image file that are not used. See `omissions.find_omissions`."""
        return {}

    def label_path(self, samples: "Samples", i: int) -> str:
        """Return the path of sample `i`'s label file, or "" if the labels are not image files."""
        return ""

    def select(self, rows: Sequence[int]) -> "Store":
        """Return a store for the samples at the given positions in the list.

        Stores without state per sample return themselves.
        """
        return self

    def explain(self, samples: "Samples", i: int, error: Exception) -> DataError:
        """Return an error that explains to the user why reading sample `i` raised `error`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Samples:
    """One split of a data set, in list order.

    Attributes:
      root: The root folder of the data set.
      images: The image files, relative to `root`.
      labels: The label files, relative to `root`. Empty for a split without labels.
      kind: How the label files encode classes: "labelIds", "labelTrainIds" or "color".
      source: Where the file names come from, as shown in messages.
      store: The store that reads the samples.
      notes: What the user should know about the choice of files.
      part_sizes: The number of samples from each of the joined splits, in order.
    """

    root: str
    images: tuple[str, ...]
    labels: tuple[str, ...]
    kind: str
    source: str
    store: Store
    notes: tuple[str, ...] = ()
    part_sizes: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


def digest(samples: Samples, *, is_mixed: bool = False) -> str:
    """Return a SHA-256 digest of the file names, their order and the label kind.

    The digest does not depend on where the data set is stored.

    Args:
      samples: The split.
      is_mixed: Whether `data.mix` is set. The training order then also depends on the sizes of the joined splits, so the digest
        includes them.
    """
    values = [samples.kind, samples.images, samples.labels, *([samples.part_sizes] if is_mixed else [])]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def digest_contents(samples: Samples) -> str:
    """Return a SHA-256 digest of the file names, their order, the label kind, and the contents of all files.

    The digest does not depend on where the data set is stored, and is the same for its prepared records.

    Raises:
      DataError: A file is missing or unreadable.
    """
    total = hashlib.sha256(digest(samples).encode())
    with ThreadPoolExecutor() as pool:
        for fingerprint in pool.map(lambda i: samples.store.fingerprint(samples, i), range(len(samples))):
            total.update(fingerprint)
    return total.hexdigest()


def require_disjoint(name: str, parts: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Check that the splits to be joined have no images in common.

    Args:
      name: The name of the joined split, for the error message.
      parts: A (name, images) pair for each split.

    Raises:
      DataError: Two of the splits share an image.
    """
    seen: dict[str, str] = {}
    for split, images in parts:
        twice = next((image for image in images if image in seen), None)
        if twice:
            raise DataError(
                f"{name} contains {twice} twice: it is in {seen[twice]} and in {split}. "
                "Use only one of these splits, or fix the lists."
            )
        seen.update(dict.fromkeys(images, split))


def make_value_table(kind: str, labels: LabelSet) -> np.ndarray:
    """Return an int16 table that maps label values to train ids.

    Ignored values map to 255, and undefined values map to `labels.UNKNOWN`. If `kind` is "color", the table is indexed by
    24-bit colour.
    """
    return {"labelIds": labels.id_table, "labelTrainIds": labels.train_id_table, "color": labels.color_table}[kind]()


def make_window_reader(array: tf.Tensor) -> ReadWindow:
    """Return a function that reads windows from an in-memory array."""
    return lambda low, high: array[low[0] : high[0], low[1] : high[1]]


def make_pixel_reader(array: tf.Tensor) -> ReadPixels:
    """Return a function that gathers pixels from an in-memory array [h, w]."""

    def read(rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
        # NumPy gathers columns five times as fast as TensorFlow.
        pixels = tf.numpy_function(lambda a, r, c: a.take(r, 0).take(c, 1), [array, rows, columns], array.dtype, stateful=False)
        return tf.ensure_shape(pixels, (None, None))

    return read


def raise_bucket_error(error: Exception) -> None:
    """Raise BucketError if TensorFlow reports one as `error`. The sample may be intact then."""
    if match := re.search(r"\b(BucketError|BucketOutageError): (.+)", str(error)):
        raise (BucketOutageError if match[1] == "BucketOutageError" else BucketError)(match[2]) from None


def read_sample(samples: Samples, i: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Read the image and the label values of sample `i`.

    Returns:
      The image, uint8 [h, w, c], and the label values [h, w], both read-only. The label values are as stored in the source (not
      train ids), or None in a split without labels.

    Raises:
      DataError: The sample is unreadable, or the image and the label do not match.
      BucketError: The bucket cannot be used.
    """
    try:
        sample = samples.store.decode(samples, tf.constant(i, tf.int64))
    except Exception as error:
        raise_bucket_error(error)
        raise samples.store.explain(samples, i, error) from None
    # Unlike `numpy()`, this does not copy the pixels, so the arrays are read-only.
    return np.asarray(sample.image), None if sample.values is None else np.asarray(sample.values)


def diagnose(samples: Samples, table: np.ndarray, i: int) -> DataError | None:
    """Read sample `i` again and return an error that explains the problem, or None if reading succeeds."""
    try:
        samples.store.open(samples, table, tf.constant(i, tf.int64)).read_all()
    except Exception as error:  # Pillow raises many types of errors for broken palette images
        raise_bucket_error(error)
        try:
            _, values = read_sample(samples, i)
        except DataError as problem:  # report an unreadable file before an unknown value
            return problem
        return _unknown_value(samples, values, table, i) or samples.store.explain(samples, i, error)
    return None


def _unknown_value(samples: Samples, values: np.ndarray | None, table: np.ndarray, i: int) -> DataError | None:
    """Return an error about the label values in sample `i` that are missing from `table`, or None if no value is missing."""
    mask = None if values is None else describe_mask(values)
    unknown = [value for value in mask.values if table[value] == UNKNOWN] if mask else []
    if not mask or not unknown:
        return None
    is_color = samples.kind == "color"
    shown = color_of(unknown[0]) if is_color else unknown[0]
    others = f" and {len(unknown) - 1} other value{'s' * (len(unknown) > 2)}" if len(unknown) > 1 else ""
    return DataError(
        f"{samples.root}/{samples.labels[i]} holds the value {shown} ({mask.values[unknown[0]]} pixels){others}, which the "
        f"label set does not define for {samples.kind} labels. {advise_on_unknown(mask, unknown, samples.kind)}"
    )
