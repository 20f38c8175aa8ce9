"""Read segmentation data sets from TensorFlow Datasets (TFDS), one sample at a time and in any order.

TFDS stores examples in TFRecord files, which have no index. Opening a split therefore builds an index by reading 8 bytes per
example. After that, any sample can be read directly, as with image files.
"""

import dataclasses
import io
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from etils import epath
from PIL import Image

from deeplab_jax.data.image_files import reason
from deeplab_jax.data.ranges import File, open_ranges, read_range, stat_file
from deeplab_jax.data.samples import DecodedSample, Samples, Store
from deeplab_jax.errors import DataError

HEADER, FOOTER = 12, 4  # bytes before the data in a TFRecord (length and checksum) and after it (checksum)
LABEL_WORDS = ("segmentation", "mask", "annotation", "label")


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsStore(Store):
    """A store that reads samples from a TFDS data set in TFRecord files.

    Attributes:
      features: The TFDS features for decoding the image and the label in an example.
      image: The name of the image feature.
      label: The name of the label feature.
      locations: The (file, byte offset, length) of each serialised example, in list order.
    """

    features: Any
    image: str
    label: str
    locations: tuple[tuple[File, int, int], ...]

    def decode(self, samples: Samples, index: tf.Tensor) -> DecodedSample:
        """Read and decode the example at position `index`. See `Store.decode`."""
        example = tf.ensure_shape(tf.numpy_function(lambda i: self._read_example(int(i)), [index], tf.string), ())
        features = self.features.deserialize_example(example)
        image, values = features[self.image], features[self.label][..., 0]
        tf.debugging.assert_equal(tf.shape(image)[:2], tf.shape(values), "image and label differ in size")
        return DecodedSample(image, values, tf.fingerprint([example])[0])

    def size(self, samples: Samples, i: int) -> tuple[int, int]:
        """Return the (height, width) of sample `i` in pixels, read from the image header without decoding the image."""
        try:
            example = tf.train.Example.FromString(self._read_example(i))
            (encoded,) = example.features.feature[self.image].bytes_list.value
            with Image.open(io.BytesIO(encoded)) as picture:
                return picture.height, picture.width
        except Exception as error:  # the file, the example and the image raise different error types
            raise self.explain(samples, i, error) from None

    def fingerprint(self, samples: Samples, i: int) -> bytes:
        """Return the fingerprint of sample `i`, computed from its serialised example."""
        try:
            return tf.fingerprint([self._read_example(i)])[0].numpy().tobytes()
        except (OSError, tf.errors.OpError) as error:
            raise self.explain(samples, i, error) from None

    def select(self, rows: Sequence[int]) -> "TfdsStore":
        """Return a store for the samples at the given positions. See `Store.select`."""
        return dataclasses.replace(self, locations=tuple(self.locations[i] for i in rows))

    def explain(self, samples: Samples, i: int, error: Exception) -> DataError:
        """Return an error that names sample `i` and tells the user to rebuild the data set."""
        return DataError(f"{samples.images[i]} of {samples.source} cannot be read ({reason(error)}). Build the data set again.")

    def _read_example(self, i: int) -> bytes:
        return read_range(*self.locations[i])


def find_tfds(name: str, data_dir: str, split: str, kind: str = "auto", channels: int = 3) -> Samples:
    """Return the samples of `split` from a TFDS data set that has already been built.

    Nothing is downloaded.

    Args:
      name: The TFDS name, such as "cityscapes/semantic_segmentation".
      data_dir: The TFDS data directory that contains the data set. "" means the default directory.
      split: A split in TFDS notation, such as "train", "validation" or "train[:80%]+test".
      kind: How the label values encode classes. "auto" means "labelIds".
      channels: The number of image channels, 1 or 3.

    Raises:
      DataError: The data set or the split does not exist, the data set does not have exactly one image feature and one
        segmentation feature, or a file is missing or truncated.
    """
    if kind == "color":
        raise DataError(
            f"`data.label_kind` (='color') cannot be used with tfds:{name}, whose masks hold ids. Leave it at auto."
        )
    if channels not in (1, 3):
        raise DataError(
            f"`data.channels` (={channels}) cannot be used with tfds:{name}, whose images have 1 or 3 channels. "
            "Set it to 3, or use image files."
        )
    builder = _open_builder(name, data_dir)
    available = dict(builder.info.features.items()) if hasattr(builder.info.features, "items") else {}
    image, label = _choose_features(name, available, channels)
    try:
        files = builder.info.splits[split].file_instructions
    except (KeyError, ValueError, AssertionError) as error:
        splits = ", ".join(builder.info.splits)
        raise DataError(f"tfds:{name} has no split {split!r} ({_first_line(error)}). Choose from {splits}.") from None
    try:
        examples = [(f"{epath.Path(f.filename).name}/{n:06d}", location) for f in files for n, location in _index_examples(f)]
    # Files on object storage are read through TensorFlow, which raises its own error types.
    except (OSError, tf.errors.OpError) as error:
        raise DataError(f"A file of tfds:{name} cannot be read ({reason(error)}). Build the data set again.") from None
    names = tuple(name for name, _ in examples)
    if not names:
        raise DataError(f"Split {split!r} of tfds:{name} is empty. Choose a different split.")
    if len(set(names)) < len(names):
        raise DataError(f"Split {split!r} of tfds:{name} contains some samples twice. Join only parts that do not overlap.")
    features = _select_features(builder, image, label)
    store = TfdsStore(features, image, label, tuple(location for _, location in examples))
    labels = tuple(f"{name}#{label}" for name in names)
    source = f"tfds:{builder.info.full_name}"
    sizes = tuple(builder.info.splits[part.strip()].num_examples for part in split.split("+"))
    kind = "labelIds" if kind == "auto" else kind
    return Samples(str(builder.data_path), names, labels, kind, source, store, part_sizes=sizes)


def _open_builder(name: str, data_dir: str) -> Any:
    """Return a TFDS builder, after checking that the data set has been built and is stored as TFRecord files."""
    import tensorflow_datasets as tfds

    source = f"`data.source` (='tfds:{name}')"
    try:
        builder = tfds.builder(name, data_dir=data_dir or None, try_gcs=False)
    except Exception as error:  # TFDS raises many error types for unknown names and versions
        where = f" in {data_dir}" if data_dir else ""
        raise DataError(
            f"{source} cannot be loaded{where} ({_first_line(error)}). Check the name, or build the data set with `tfds build`."
        ) from None
    if not builder.is_prepared():
        folder = data_dir or f"{builder.data_path}, the default folder"
        raise DataError(
            f"{source} has not been built in {folder}. "
            f"Run `tfds build {name}`, or set data.root to the data_dir in which it was built."
        )
    stored = builder.info.file_format.value
    if stored != "tfrecord":
        raise DataError(f"{source} is stored as {stored}. Build it again with --file_format=tfrecord.")
    return builder


def _select_features(builder: Any, image: str, label: str) -> Any:
    """Return TFDS features that decode only the image and the label from an example."""
    import tensorflow_datasets as tfds

    return tfds.decode.PartialDecoding({image: True, label: True}).extract_features(builder.info.features)


def _first_line(error: Exception) -> str:
    return next(filter(None, map(str.strip, str(error.args[0] if error.args else "").splitlines())), type(error).__name__)[:200]


def _choose_features(name: str, features: dict[str, Any], wanted: int = 3) -> tuple[str, str]:
    """Return the names of the image feature (uint8, `wanted` channels) and the segmentation feature (uint8, 1 channel)."""
    # A nested feature has a dict of shapes instead of a single shape.
    shapes = {key: feature.shape if isinstance(feature.shape, tuple) else () for key, feature in features.items()}
    channels = {key: shape[2] for key, shape in shapes.items() if len(shape) == 3 and features[key].np_dtype == np.uint8}
    labels = [key for key, n in channels.items() if n == 1]
    labels = [key for key in labels if any(word in key for word in LABEL_WORDS)] or labels
    images = [key for key, n in channels.items() if n == wanted and key not in labels]
    images = [key for key in images if key in ("image", "image_left")] or images
    if len(images) != 1 or len(labels) != 1:
        shown = ", ".join(
            f"{key} {shape} {np.dtype(features[key].np_dtype).name}" if shape else key for key, shape in shapes.items()
        )
        raise DataError(
            f"`data.source` (='tfds:{name}') must have exactly one uint8 image (h, w, {wanted}) and one uint8 "
            f"segmentation (h, w, 1). Choose a different data set or TFDS config. The features of this one are: {shown}"
        )
    return images[0], labels[0]


def _index_examples(instruction: Any) -> Iterator[tuple[int, tuple[File, int, int]]]:
    """Yield (example number in the file, (file, byte offset, length)) for each example that a read instruction selects."""
    file = stat_file(str(instruction.filename))
    offset, end = 0, instruction.skip + instruction.take if instruction.take >= 0 else instruction.examples_in_shard
    with open_ranges(file) as read:
        for number in range(end):
            (length,) = struct.unpack("<Q", read(offset, 8))
            if offset + HEADER + length + FOOTER > file.size:
                raise OSError(f"{file.path} is truncated at example {number}")
            if number >= instruction.skip:
                yield number, (file, offset + HEADER, length)
            offset += HEADER + length + FOOTER
