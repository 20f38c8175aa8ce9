"""Segmentation sets of TensorFlow Datasets, read sample by sample: any position costs the same, as with files.

Builders store TFRecords, which have no index. One is made on opening, from the records' headers: 16 bytes a sample are read.
"""

import dataclasses
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from etils import epath

from deeplab_jax.data.lists import Samples
from deeplab_jax.data.ranges import read_range
from deeplab_jax.data.sources import Decoded, Opened, opened_whole
from deeplab_jax.errors import DataError, one_line

HEADER, FOOTER = 12, 4  # of a TFRecord: length and its checksum; checksum of the data
LABEL_WORDS = ("segmentation", "mask", "annotation", "label")


@dataclasses.dataclass(frozen=True, slots=True)
class Builder:
    """The samples of a prepared TFDS builder. A `sources.Store`.

    Attributes:
      features: the image's and the label's, which decode an example.
      image, label: names of those features.
      places: (file, offset, length) of each sample's serialized example, by position in the list.
    """

    features: Any
    image: str
    label: str
    places: tuple[tuple[str, int, int], ...]

    def decoded(self, samples: Samples, index: tf.Tensor) -> Decoded:
        """See `Store`."""
        example = tf.ensure_shape(tf.numpy_function(lambda i: self._example(int(i)), [index], tf.string), ())
        features = self.features.deserialize_example(example)
        image, values = features[self.image], features[self.label][..., 0]
        tf.debugging.assert_equal(tf.shape(image)[:2], tf.shape(values), "image and label differ in size")
        return Decoded(image, values, tf.fingerprint([example])[0])

    def opened(self, samples: Samples, table: np.ndarray, index: tf.Tensor) -> Opened:
        """See `Store`."""
        return opened_whole(self.decoded(samples, index), table)

    def size(self, samples: Samples, i: int) -> tuple[int, int]:
        """See `Store`."""
        try:
            height, width = self.decoded(samples, tf.constant(i, tf.int64)).image.shape[:2]
        except tf.errors.OpError as error:
            raise self.explain(samples, i, error) from None
        return height, width

    def fingerprint(self, samples: Samples, i: int) -> bytes:
        """See `Store`."""
        return tf.fingerprint([self._example(i)])[0].numpy().tobytes()

    def explain(self, samples: Samples, i: int, error: Exception) -> DataError:
        """See `Store`."""
        return DataError(f"{samples.images[i]} of {samples.source} cannot be read ({one_line(error)}): build the set again")

    def _example(self, i: int) -> bytes:
        return read_range(*self.places[i])


def find_tfds(name: str, data_dir: str, split: str, kind: str = "auto", *, need_labels: bool = True) -> Samples:
    """The samples of a split of a TFDS data set that has been built.

    Args:
      name: such as "cityscapes/semantic_segmentation".
      data_dir: where it was built; "" for TFDS's own place.
      split: in TFDS's words, such as "train", "validation" or "train[:80%]+test".
      kind: of the label's values; "auto" are ids.
      need_labels: is always met, since a set without labels cannot be read.

    Raises:
      DataError: there is no such data set or split here, or its features are no image and its segmentation.
    """
    import tensorflow_datasets as tfds

    place = data_dir or "the default data_dir"
    try:
        builder = tfds.builder(name, data_dir=data_dir or None, try_gcs=False)
    except Exception as error:  # of many kinds, for names and versions
        raise DataError(f"`data.source` (='tfds:{name}') cannot be used ({one_line(error)}): see `tfds build`") from None
    if not builder.is_prepared():
        raise DataError(
            f"`data.source` (='tfds:{name}') has not been built in {place}: run `tfds build {name}`, "
            "or set data.root to its data_dir"
        )
    if str(builder.info.file_format.value) != "tfrecord":
        raise DataError(f"`data.source` (='tfds:{name}') is stored as {builder.info.file_format.value}: build it as tfrecord")
    image, label = _features(name, dict(builder.info.features.items()))
    try:
        files = builder.info.splits[split].file_instructions
    except (KeyError, ValueError) as error:
        known = ", ".join(builder.info.splits)
        raise DataError(f"tfds:{name} has no split {split!r} but {known} ({one_line(error)})") from None
    found = [(f"{epath.Path(f.filename).name}/{n:06d}", place) for f in files for n, place in _index(f)]
    names = tuple(name for name, _ in found)
    features = tfds.decode.PartialDecoding({image: True, label: True}).extract_features(builder.info.features)
    store = Builder(features, image, label, tuple(place for _, place in found))
    labels = tuple(f"{name}#{label}" for name in names)
    return Samples(
        str(builder.data_path), names, labels, "labelIds" if kind == "auto" else kind, f"tfds:{builder.info.full_name}", store
    )


def _features(name: str, features: dict[str, Any]) -> tuple[str, str]:
    """Names of the image, of three channels, and of its segmentation, of one."""
    channels = {key: (getattr(feature, "shape", None) or (0,))[-1] for key, feature in features.items()}
    pictures = {key: n for key, n in channels.items() if len(features[key].shape or ()) == 3}
    labels = [key for key, n in pictures.items() if n == 1]
    labels = [key for key in labels if any(word in key for word in LABEL_WORDS)] or labels
    images = [key for key, n in pictures.items() if n == 3]
    images = [key for key in images if key in ("image", "image_left")] or images
    if len(images) != 1 or len(labels) != 1:
        shown = ", ".join(f"{key} {tuple(feature.shape or ())}" for key, feature in features.items())
        raise DataError(f"`data.source` (='tfds:{name}') has no single image and segmentation among its features: {shown}")
    return images[0], labels[0]


def _index(instruction: Any) -> Iterator[tuple[int, tuple[str, int, int]]]:
    """(number in the file, (file, offset, length)) of the examples that an instruction takes."""
    path = str(instruction.filename)
    size = epath.Path(path).stat().length
    offset, number = 0, 0
    end = size if instruction.take < 0 else instruction.skip + instruction.take
    while offset < size and number < end:
        (length,) = struct.unpack("<Q", read_range(path, offset, 8))
        if number >= instruction.skip:
            yield number, (path, offset + HEADER, length)
        offset += HEADER + length + FOOTER
        number += 1
