"""Samples stored as image files: decoding inside tf.data, and what is wrong where that fails."""

import dataclasses
import io
import re
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from etils import epath
from PIL import Image

from deeplab_jax.data.samples import DecodedSample, Samples, Store
from deeplab_jax.errors import DataError

# Accelerators belong to JAX: a TensorFlow built for GPUs would take their memory.
tf.config.set_visible_devices([], "GPU")


@dataclasses.dataclass(frozen=True, slots=True)
class ImageFiles(Store):
    """Image and label files below `samples.root`."""

    def decode(self, samples: Samples, index: tf.Tensor) -> DecodedSample:
        """See `Store`."""
        image_file = tf.io.read_file(_path(samples.root, samples.images, index))
        image = _decode_image(image_file)
        if not samples.labels:
            return DecodedSample(image, None, _fingerprint([image_file]))
        label_file = tf.io.read_file(_path(samples.root, samples.labels, index))
        values = decode_mask(label_file, is_color=samples.kind == "color")
        tf.debugging.assert_equal(tf.shape(image)[:2], tf.shape(values), "image and label differ in size")
        return DecodedSample(image, values, _fingerprint([image_file, label_file]))

    def size(self, samples: Samples, i: int) -> tuple[int, int]:
        """See `Store`. Read from the file's header; raises DataError where that is impossible."""
        path = epath.Path(samples.root) / samples.images[i]
        try:
            with path.open("rb") as file, Image.open(file) as image:
                return image.height, image.width
        except Exception as error:  # Pillow has many, and warns of very large images by one
            message = f"{path} cannot be read as an image ({reason(error)}): replace it or take it off the list"
            raise DataError(message) from None

    def fingerprint(self, samples: Samples, i: int) -> bytes:
        """See `Store`. Raises DataError where a file is missing or cannot be read."""
        return _fingerprint([_contents(path) for path in _paths(samples, i)]).numpy().tobytes()

    def explain(self, samples: Samples, i: int, error: Exception) -> DataError:
        """Return Pillow's view where it has one, else TensorFlow's."""
        paths = _paths(samples, i)
        try:
            image, *labels = [_load_picture(path) for path in paths]
        except DataError as problem:
            return problem
        for label in labels:
            if image.size != label.size:
                sizes = " and ".join(f"{picture.width}x{picture.height}" for picture in (image, label))
                names = f"{paths[0]} and its label {samples.labels[i]}"
                return DataError(f"{names} differ in size ({sizes} pixels): make them the same")
            objection = _object_to_mask(paths[1], label, is_color=samples.kind == "color")
            if objection:
                return objection
        return _unreadable_file(" or ".join(paths), error)


def read_mask(path: str, *, is_color: bool) -> np.ndarray:
    """Return the values of a label file, as `decode_mask`.

    Raises:
      DataError: it cannot be read, or is no mask of that kind.
    """
    try:
        return decode_mask(tf.constant(_contents(path)), is_color=is_color).numpy()
    except DataError:
        raise
    except Exception as error:  # Pillow, which reads palettes, has errors of many kinds for a broken file
        raise _object_to_mask(path, _load_picture(path), is_color=is_color) or _unreadable_file(path, error) from None


def decode_mask(data: tf.Tensor, *, is_color: bool) -> tf.Tensor:
    """Return the values of a PNG: its grey values or palette indices, uint8 [h, w], or 24-bit colours, int32 [h, w].

    This is the one reader of label pixels, eagerly and inside tf.data; whatever else it cannot take is an error of TensorFlow
    or Pillow.
    """
    # TensorFlow's PNG decoder takes JPEG and GIF as well.
    is_png = tf.equal(tf.strings.substr(data, 0, 8), b"\x89PNG\r\n\x1a\n")
    # Of two strings the assertion would print bytes, which no error of tf.data can hold.
    tf.debugging.assert_equal(is_png, True, "a label file is no PNG")
    header = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 0, 26), tf.uint8), tf.int32)
    bit_depth, color_type = header[24], header[25]
    tf.debugging.assert_equal(bit_depth <= 8, True, "a label file has 16 bits a value")
    if is_color:
        rgb = tf.cast(tf.io.decode_png(data, channels=3), tf.int32)
        return rgb[..., 0] * 65536 + rgb[..., 1] * 256 + rgb[..., 2]

    def decode_grey() -> tf.Tensor:
        tf.debugging.assert_equal(color_type, 0, "a label file of ids has colours")
        # Fewer bits would be stretched to 0-255.
        tf.debugging.assert_equal(bit_depth, 8, "a label file of ids has fewer than 8 bits a value")
        return tf.io.decode_png(data, channels=1)[..., 0]

    # TensorFlow would turn a palette's indices into its colours.
    values = tf.cond(color_type == 3, lambda: tf.numpy_function(_palette_indices, [data], tf.uint8), decode_grey)
    values.set_shape((None, None))
    return values


def _palette_indices(data: bytes | np.ndarray) -> np.ndarray:
    # TensorFlow hands over bytes inside tf.data, and an array of one object outside.
    with Image.open(io.BytesIO(data if isinstance(data, bytes) else data.item())) as image:
        return np.array(image, np.uint8)


def _object_to_mask(path: str, picture: Image.Image, *, is_color: bool) -> DataError | None:
    """Return why `decode_mask` refuses a file that can be read as a picture."""
    if picture.format != "PNG":
        return DataError(f"{path} is a {picture.format} file: labels must be PNG, which keeps values exact")
    bits = _contents(path)[24]
    if is_color:
        return DataError(f"{path} has {bits} bits a value: save it with 8") if bits > 8 else None
    if picture.mode not in ("L", "P"):
        advice = "for colours set data.label_kind=color" if picture.mode in ("RGB", "RGBA") else "save it as 8-bit grey PNG"
        return DataError(f"{path} is no 8-bit id image (mode {picture.mode}): {advice}")
    # Pillow stretches 2 and 4 bits to 8.
    is_short = picture.mode == "L" and bits < 8
    return DataError(f"{path} has {bits} bits a value: save it as 8-bit grey PNG") if is_short else None


def _decode_image(data: tf.Tensor) -> tf.Tensor:
    """Return uint8 [h, w, 3]; grey is repeated and alpha dropped."""
    image = tf.cond(
        tf.io.is_jpeg(data),
        # The accurate transform: what every other decoder gives, to the bit.
        lambda: tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(data, channels=3, expand_animations=False),
    )
    image.set_shape((None, None, 3))
    return image


def _load_picture(path: str) -> Image.Image:
    data = _contents(path)
    try:
        picture = Image.open(io.BytesIO(data))
        picture.load()
        # Pillow accepts some files that lack their end, which TensorFlow does not.
        tf.io.decode_image(data)
    except Exception as error:
        raise _unreadable_file(path, error) from None
    return picture


def _contents(path: str) -> bytes:
    try:
        return epath.Path(path).read_bytes()
    # TensorFlow reads what lies on object storage.
    except (OSError, tf.errors.OpError) as error:
        raise _unreadable_file(path, error) from None


def _unreadable_file(path: str, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read ({reason(error)}): replace it or take it off the list")


def _fingerprint(files: Sequence[tf.Tensor | bytes]) -> tf.Tensor:
    """Return uint8 [8]: FarmHash64 of a file's bytes; for an image and its label, that of the two fingerprints in a row."""
    return tf.fingerprint([files])[0]


def _path(root: str, names: Sequence[str], index: tf.Tensor) -> tf.Tensor:
    """Return the path of the file at a position in the list."""
    if tf.executing_eagerly():  # for one sample, the names of all others stay where they are
        return tf.constant(str(epath.Path(root) / names[int(index)]))
    return tf.strings.join([str(epath.Path(root)), tf.constant(names)[index]], "/")


def _paths(samples: Samples, i: int) -> list[str]:
    return [str(epath.Path(samples.root) / name) for name in (samples.images[i], *samples.labels[i : i + 1])]


def reason(error: Exception) -> str:
    """Return the first line of what TensorFlow or Pillow says, without the names of TensorFlow's nodes."""
    line = str(error).partition("\n")[0]
    line = re.sub(r"^cannot identify image file .*", "it is no image", line)  # Pillow shows the Python object
    return re.sub(r"^{{.*?}} | \[Op:.*", "", line)[:200] or type(error).__name__
