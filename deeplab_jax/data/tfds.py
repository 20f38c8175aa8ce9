"""Segmentation sets of TensorFlow Datasets, read sample by sample: any position costs the same, as with files.

Builders store TFRecords, which have no index. One is made on opening, from the records' headers: 8 bytes a sample are read.
"""

import dataclasses
import io
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from etils import epath
from PIL import Image

from deeplab_jax.data.image_files import reason
from deeplab_jax.data.ranges import File, open_ranges, read_range, stat_file
from deeplab_jax.data.samples import DecodedSample, Samples, Store
from deeplab_jax.errors import DataError

HEADER, FOOTER = 12, 4  # of a TFRecord: length and its checksum; checksum of the data
LABEL_WORDS = ("segmentation", "mask", "annotation", "label")


@dataclasses.dataclass(frozen=True, eq=False)
class Builder(Store):
    """The samples of a prepared TFDS builder.

    Attributes:
      features: the image's and the label's, which decode an example.
      image, label: names of those features.
      places: (file, offset, length) of each sample's serialized example, by position in the list.
    """

    features: Any
    image: str
    label: str
    places: tuple[tuple[File, int, int], ...]

    def decode(self, samples: Samples, index: tf.Tensor) -> DecodedSample:
        """See `Store`."""
        example = tf.ensure_shape(tf.numpy_function(lambda i: self._example(int(i)), [index], tf.string), ())
        features = self.features.deserialize_example(example)
        image, values = features[self.image], features[self.label][..., 0]
        tf.debugging.assert_equal(tf.shape(image)[:2], tf.shape(values), "image and label differ in size")
        return DecodedSample(image, values, tf.fingerprint([example])[0])

    def size(self, samples: Samples, i: int) -> tuple[int, int]:
        """See `Store`. Read from the header of the encoded image."""
        try:
            example = tf.train.Example.FromString(self._example(i))
            (encoded,) = example.features.feature[self.image].bytes_list.value
            with Image.open(io.BytesIO(encoded)) as picture:
                return picture.height, picture.width
        except Exception as error:  # of many kinds, for files, examples and pictures
            raise self.explain(samples, i, error) from None

    def fingerprint(self, samples: Samples, i: int) -> bytes:
        """See `Store`."""
        try:
            return tf.fingerprint([self._example(i)])[0].numpy().tobytes()
        except (OSError, tf.errors.OpError) as error:
            raise self.explain(samples, i, error) from None

    def explain(self, samples: Samples, i: int, error: Exception) -> DataError:
        """See `Store`."""
        return DataError(f"{samples.images[i]} of {samples.source} cannot be read ({reason(error)}): build the set again")

    def _example(self, i: int) -> bytes:
        return read_range(*self.places[i])


def find_tfds(name: str, data_dir: str, split: str, kind: str = "auto") -> Samples:
    """Return the samples of a split of a TFDS data set that has been built. Nothing is downloaded.

    Args:
      name: such as "cityscapes/semantic_segmentation".
      data_dir: where it was built; "" for TFDS's own place.
      split: in TFDS's words, such as "train", "validation" or "train[:80%]+test".
      kind: of the label's values; "auto" are ids.

    Raises:
      DataError: there is no such data set or split here, its features are no image and its segmentation, or a file of it is
        missing or truncated.
    """
    if kind == "color":
        raise DataError(f"`data.label_kind` (='color') does not go with tfds:{name}: TFDS holds ids, leave it at auto")
    builder = _open_builder(name, data_dir)
    known = dict(builder.info.features.items()) if hasattr(builder.info.features, "items") else {}
    image, label = _features(name, known)
    try:
        files = builder.info.splits[split].file_instructions
    except (KeyError, ValueError, AssertionError) as error:
        splits = ", ".join(builder.info.splits)
        raise DataError(f"tfds:{name} has no split {split!r} but {splits} ({_first_line(error)})") from None
    try:
        examples = [(f"{epath.Path(f.filename).name}/{n:06d}", place) for f in files for n, place in _index(f)]
    # TensorFlow reads what lies on object storage.
    except (OSError, tf.errors.OpError) as error:
        raise DataError(f"a file of tfds:{name} cannot be read ({reason(error)}): build the set again") from None
    names = tuple(name for name, _ in examples)
    if not names:
        raise DataError(f"split {split!r} of tfds:{name} is empty: name another one")
    if len(set(names)) < len(names):
        raise DataError(f"split {split!r} of tfds:{name} holds samples twice: name parts that do not overlap")
    features = _decoders(builder, image, label)
    store = Builder(features, image, label, tuple(place for _, place in examples))
    labels = tuple(f"{name}#{label}" for name in names)
    source = f"tfds:{builder.info.full_name}"
    return Samples(str(builder.data_path), names, labels, "labelIds" if kind == "auto" else kind, source, store)


def _open_builder(name: str, data_dir: str) -> Any:
    """Return the TFDS builder of a set that has been built as TFRecords."""
    import tensorflow_datasets as tfds

    named = f"`data.source` (='tfds:{name}')"
    try:
        builder = tfds.builder(name, data_dir=data_dir or None, try_gcs=False)
    except Exception as error:  # of many kinds, for names and versions
        where = f" in {data_dir}" if data_dir else ""
        raise DataError(f"{named} cannot be used{where} ({_first_line(error)}): see `tfds build`") from None
    if not builder.is_prepared():
        place = data_dir or f"{builder.data_path}, TFDS's own place"
        raise DataError(f"{named} has not been built in {place}: run `tfds build {name}`, or set data.root to its data_dir")
    stored = builder.info.file_format.value
    if stored != "tfrecord":
        raise DataError(f"{named} is stored as {stored}: build it with --file_format=tfrecord")
    return builder


def _decoders(builder: Any, image: str, label: str) -> Any:
    """Return features that decode the image and the label of an example, and nothing else."""
    import tensorflow_datasets as tfds

    return tfds.decode.PartialDecoding({image: True, label: True}).extract_features(builder.info.features)


def _first_line(error: Exception) -> str:
    return next(filter(None, map(str.strip, str(error.args[0] if error.args else "").splitlines())), type(error).__name__)[:200]


def _features(name: str, features: dict[str, Any]) -> tuple[str, str]:
    """Return the names of the image, of three channels, and of its segmentation, of one; of 8 bits both."""
    # A nested feature has a dict of shapes.
    shapes = {key: feature.shape if isinstance(feature.shape, tuple) else () for key, feature in features.items()}
    channels = {key: shape[2] for key, shape in shapes.items() if len(shape) == 3 and features[key].np_dtype == np.uint8}
    labels = [key for key, n in channels.items() if n == 1]
    labels = [key for key in labels if any(word in key for word in LABEL_WORDS)] or labels
    images = [key for key, n in channels.items() if n == 3]
    images = [key for key in images if key in ("image", "image_left")] or images
    if len(images) != 1 or len(labels) != 1:
        shown = ", ".join(
            f"{key} {shape} {np.dtype(features[key].np_dtype).name}" if shape else key for key, shape in shapes.items()
        )
        raise DataError(
            f"`data.source` (='tfds:{name}') has no single image (h, w, 3) and segmentation (h, w, 1) of uint8 among its "
            f"features: {shown}"
        )
    return images[0], labels[0]


def _index(instruction: Any) -> Iterator[tuple[int, tuple[File, int, int]]]:
    """Yield (number in the file, (file, offset, length)) of the examples that an instruction takes."""
    file = stat_file(str(instruction.filename))
    offset, end = 0, instruction.skip + instruction.take if instruction.take >= 0 else instruction.examples_in_shard
    with open_ranges(file) as read:
        for number in range(end):
            (length,) = struct.unpack("<Q", read(offset, 8))
            if offset + HEADER + length + FOOTER > file.size:
                raise OSError(f"{file.path} is truncated in example {number}")
            if number >= instruction.skip:
                yield number, (file, offset + HEADER, length)
            offset += HEADER + length + FOOTER
