"""One sample from its files: decoding inside tf.data, and what is wrong where that fails."""

import io
import re
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from etils import epath
from PIL import Image

from deeplab_jax.data.lists import Samples
from deeplab_jax.errors import DataError
from deeplab_jax.labels import UNKNOWN

# Accelerators belong to JAX: a TensorFlow built for GPUs would take their memory.
tf.config.set_visible_devices([], "GPU")

Row = dict[str, tf.Tensor]
Loader = Callable[[tf.Tensor], Row]


def loader(samples: Samples, table: np.ndarray) -> Loader:
    """A function from a position in the list to {"image": uint8 [h, w, 3], "label": uint8 [h, w], "fingerprint": uint8 [8]}.

    The label holds train ids; there is none in a split without labels.
    """
    root = str(epath.Path(samples.root))
    images = tf.constant(list(samples.images))
    labels = tf.constant(list(samples.labels)) if samples.labels else None
    lookup = tf.constant(table)

    def load(index: tf.Tensor) -> Row:
        image_file = tf.io.read_file(tf.strings.join([root, images[index]], "/"))
        image = _decode_image(image_file)
        if labels is None:
            return {"image": image, "fingerprint": _fingerprint([image_file])}
        label_file = tf.io.read_file(tf.strings.join([root, labels[index]], "/"))
        values = _decode_label(label_file, samples.kind == "color")
        tf.debugging.assert_equal(tf.shape(image)[:2], tf.shape(values), "image and label differ in size")
        label = tf.gather(lookup, values)
        tf.debugging.assert_greater(tf.reduce_min(label), tf.constant(UNKNOWN, tf.int16), "a label value is in no table")
        return {"image": image, "label": tf.cast(label, tf.uint8), "fingerprint": _fingerprint([image_file, label_file])}

    return load


def _fingerprint(files: Sequence[tf.Tensor | bytes]) -> tf.Tensor:
    """uint8 [8]: FarmHash64 of a file's bytes; for an image and its label, that of the two fingerprints in a row."""
    return tf.fingerprint([files])[0]


def fingerprint(samples: Samples, i: int) -> bytes:
    """The "fingerprint" that sample `i` has in a batch, from its files alone: 8 bytes.

    Raises:
      DataError: a file is missing or cannot be read.
    """
    return _fingerprint([_contents(path) for path in _paths(samples, i)]).numpy().tobytes()


def _contents(path: str) -> bytes:
    try:
        return epath.Path(path).read_bytes()
    # TensorFlow reads what lies on object storage.
    except (OSError, tf.errors.OpError) as error:
        raise _unreadable_file(path, error) from None


def _decode_image(data: tf.Tensor) -> tf.Tensor:
    """uint8 [h, w, 3]; grey is repeated and alpha dropped."""
    image = tf.cond(
        tf.io.is_jpeg(data),
        # The accurate transform: what every other decoder gives, to the bit.
        lambda: tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(data, channels=3, expand_animations=False),
    )
    image.set_shape((None, None, 3))
    return image


def _decode_label(data: tf.Tensor, is_color: bool) -> tf.Tensor:
    """int32 [h, w] of a PNG: its grey values or palette indices, or 24-bit colours."""
    header = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 0, 26), tf.uint8), tf.int32)
    bit_depth, color_type = header[24], header[25]
    tf.debugging.assert_equal(bit_depth <= 8, True, "a label file has 16 bits a value")
    if is_color:
        rgb = tf.cast(tf.io.decode_png(data, channels=3), tf.int32)
        return rgb[..., 0] * 65536 + rgb[..., 1] * 256 + rgb[..., 2]

    def grey() -> tf.Tensor:
        tf.debugging.assert_equal(color_type, 0, "a label file of ids has colours")
        # Fewer bits would be stretched to 0-255.
        tf.debugging.assert_equal(bit_depth, 8, "a label file of ids has fewer than 8 bits a value")
        return tf.io.decode_png(data, channels=1)[..., 0]

    # TensorFlow would turn a palette's indices into its colours.
    values = tf.cond(color_type == 3, lambda: tf.numpy_function(_palette_indices, [data], tf.uint8), grey)
    values.set_shape((None, None))
    return tf.cast(values, tf.int32)


def _palette_indices(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image, np.uint8)


def image_size(path: epath.Path) -> tuple[int, int]:
    """(height, width) from the file's header."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            return image.height, image.width
    except OSError as error:
        raise DataError(f"{path} cannot be read as an image ({reason(error)}): replace it or take it off the list") from None


def unreadable(samples: Samples, table: np.ndarray, load: Loader, i: int) -> DataError | None:
    """What is wrong with sample `i`, which is read again; None if nothing is."""
    try:
        load(tf.constant(i, tf.int64))
    except Exception as error:  # Pillow, which reads palettes, has errors of many kinds for a broken file
        return _explain_sample(samples, table, i) or _unreadable_file(" or ".join(_paths(samples, i)), error)
    return None


def _explain_sample(samples: Samples, table: np.ndarray, i: int) -> DataError | None:
    """Pillow's view of sample `i`: what is wrong with it, if Pillow can tell."""
    pictures, formats = [], []
    for path in _paths(samples, i):
        try:
            with epath.Path(path).open("rb") as file, Image.open(file) as picture:
                pictures.append(picture.copy())
                formats.append(picture.format)
                # Pillow accepts some files that lack their end, which TensorFlow does not.
                tf.io.decode_image(epath.Path(path).read_bytes())
        except Exception as error:
            return _unreadable_file(path, error)
    if not samples.labels:
        return None
    (image, label), (image_path, label_path) = pictures, _paths(samples, i)
    if image.size != label.size:
        sizes = " and ".join(f"{picture.width}x{picture.height}" for picture in pictures)
        return DataError(f"{image_path} and its label {samples.labels[i]} differ in size ({sizes} pixels): make them the same")
    if formats[1] != "PNG":
        return DataError(f"{label_path} is a {formats[1]} file: labels must be PNG, which keeps values exact")
    is_color = samples.kind == "color"
    if not is_color and label.mode not in ("L", "P"):
        return DataError(f"{label_path} is no 8-bit id image (mode {label.mode}): for colours set data.label_kind=color")
    values = np.array(label.convert("RGB"), np.int64) @ (65536, 256, 1) if is_color else np.array(label)
    found, counts = np.unique(values, return_counts=True)
    for value, count in zip(found.tolist(), counts.tolist(), strict=True):
        if table[value] == UNKNOWN:
            shown = (value >> 16, value >> 8 & 255, value & 255) if is_color else value
            return DataError(
                f"{label_path} holds the value {shown} ({count} pixels), which labels of kind {samples.kind} do not have: "
                f"mend the file, or add the value to the config's label set"
            )
    return None


def _unreadable_file(path: str, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read ({reason(error)}): replace it or take it off the list")


def _paths(samples: Samples, i: int) -> list[str]:
    return [str(epath.Path(samples.root) / name) for name in (samples.images[i], *samples.labels[i : i + 1])]


def reason(error: Exception) -> str:
    """What TensorFlow or Pillow says in its first line, without the names of TensorFlow's nodes."""
    line = str(error).partition("\n")[0]
    return re.sub(r"^{{.*?}} | \[Op:.*", "", line)[:200] or type(error).__name__
