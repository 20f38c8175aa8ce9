"""Read samples from image files, and explain why a file is unreadable."""

import dataclasses
import io
import re
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from etils import epath
from PIL import Image

from deeplab_jax.data.decode import FormatError, decode_image, read_size
from deeplab_jax.data.samples import DecodedSample, Samples, Store
from deeplab_jax.errors import DataError

# Hide the GPUs from TensorFlow, which would otherwise take the GPU memory that JAX needs.
tf.config.set_visible_devices([], "GPU")


@dataclasses.dataclass(frozen=True, slots=True)
class ImageFiles(Store):
    """A store for image and label files below `samples.root`.

    Attributes:
      channels: The number of bands in the images, from 1 to 8. See `decode.decode_image`.
      value_range: The stored values that become 0 and 255, or (). See `decode.decode_image`.
    """

    channels: int = 3
    value_range: tuple[float, ...] = ()

    def decode(self, samples: Samples, index: tf.Tensor) -> DecodedSample:
        """Read and decode a sample's image and label files. See `Store.decode`."""
        image_file = tf.io.read_file(_get_path(samples.root, samples.images, index))
        image = _decode_image(image_file, self.channels, self.value_range)
        if not samples.labels:
            return DecodedSample(image, None, _hash_files([image_file]))
        label_file = tf.io.read_file(_get_path(samples.root, samples.labels, index))
        values = decode_mask(label_file, is_color=samples.kind == "color")
        tf.debugging.assert_equal(tf.shape(image)[:2], tf.shape(values), "image and label differ in size")
        return DecodedSample(image, values, _hash_files([image_file, label_file]))

    def size(self, samples: Samples, i: int) -> tuple[int, int]:
        """Return the (height, width) of sample `i` from its image file's header.

        Raises:
          DataError: The header is unreadable.
        """
        path = epath.Path(samples.root) / samples.images[i]
        try:
            with path.open("rb") as file:
                return read_size(file)
        except Exception as error:  # Pillow raises many error types, including one for very large images
            message = f"{path} cannot be read as an image ({reason(error)}). Replace the file or remove it from the list."
            raise DataError(message) from None

    def fingerprint(self, samples: Samples, i: int) -> bytes:
        """Return the 8-byte fingerprint of sample `i` without decoding its files.

        Raises:
          DataError: A file is missing or unreadable.
        """
        return _hash_files([_read_bytes(path) for path in _get_paths(samples, i)]).numpy().tobytes()

    def explain(self, samples: Samples, i: int, error: Exception) -> DataError:
        """Return an error that names sample `i`'s bad file and says what is wrong with it.

        If Pillow finds nothing wrong with the files, the reason is taken from `error`.
        """
        paths = _get_paths(samples, i)
        try:
            if self.channels != 3 or self.value_range:
                decode_image(_read_bytes(paths[0]), self.channels, self.value_range)
                return _make_read_error(" or ".join(paths), error)
            image, *labels = [_load_picture(path) for path in paths]
        except FormatError as problem:
            return DataError(f"{paths[0]} {problem}")
        except DataError as problem:
            return problem
        for label in labels:
            if image.size != label.size:
                sizes = " and ".join(f"{picture.width}x{picture.height}" for picture in (image, label))
                names = f"{paths[0]} and its label {samples.labels[i]}"
                return DataError(f"{names} differ in size ({sizes} pixels). Make both the same size.")
            mask_error = _check_mask_format(paths[1], label, is_color=samples.kind == "color")
            if mask_error:
                return mask_error
        return _make_read_error(" or ".join(paths), error)


def read_mask(path: str, *, is_color: bool) -> np.ndarray:
    """Read a label file and return its values in the format of `decode_mask`.

    Raises:
      DataError: The file is unreadable or has the wrong mask format.
    """
    try:
        return decode_mask(tf.constant(_read_bytes(path)), is_color=is_color).numpy()
    except DataError:
        raise
    except Exception as error:  # Pillow decodes palette files and raises many error types
        raise _check_mask_format(path, _load_picture(path), is_color=is_color) or _make_read_error(path, error) from None


def decode_mask(data: tf.Tensor, *, is_color: bool) -> tf.Tensor:
    """Decode a PNG label file.

    All label files are decoded by this function, both eagerly and inside tf.data. An invalid file raises a TensorFlow or Pillow
    error.

    Args:
      data: The file's bytes.
      is_color: Whether the label values are 24-bit colours instead of ids.

    Returns:
      The 24-bit colours, int32 [h, w], if `is_color`. Otherwise, the grey values or palette indices, uint8 [h, w].
    """
    # TensorFlow's PNG decoder also accepts JPEG and GIF files, so check the PNG signature.
    is_png = tf.equal(tf.strings.substr(data, 0, 8), b"\x89PNG\r\n\x1a\n")
    # Assert on a boolean: comparing the strings would put raw bytes into the error message, which tf.data does not support.
    tf.debugging.assert_equal(is_png, True, "a label file is not a PNG file")
    header = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 0, 26), tf.uint8), tf.int32)
    bit_depth, color_type = header[24], header[25]
    tf.debugging.assert_equal(bit_depth <= 8, True, "a label file has 16 bits per value")
    if is_color:
        rgb = tf.cast(tf.io.decode_png(data, channels=3), tf.int32)
        return rgb[..., 0] * 65536 + rgb[..., 1] * 256 + rgb[..., 2]

    def decode_grey() -> tf.Tensor:
        tf.debugging.assert_equal(color_type, 0, "a label file with ids contains colours")
        # TensorFlow would scale values with fewer than 8 bits to the range 0 to 255.
        tf.debugging.assert_equal(bit_depth, 8, "a label file with ids has fewer than 8 bits per value")
        return tf.io.decode_png(data, channels=1)[..., 0]

    # Pillow reads the palette indices, because TensorFlow would convert them to colours.
    values = tf.cond(color_type == 3, lambda: tf.numpy_function(_read_palette_indices, [data], tf.uint8), decode_grey)
    values.set_shape((None, None))
    return values


def _read_palette_indices(data: bytes | np.ndarray) -> np.ndarray:
    # TensorFlow passes bytes inside tf.data, but an array holding one bytes object in eager mode.
    with Image.open(io.BytesIO(data if isinstance(data, bytes) else data.item())) as image:
        return np.array(image, np.uint8)


def _check_mask_format(path: str, picture: Image.Image, *, is_color: bool) -> DataError | None:
    """Return an error that explains why `decode_mask` rejects the file's format, or None if the format is valid."""
    if picture.format != "PNG":
        return DataError(f"{path} is a {picture.format} file. Save labels as PNG, which keeps their values exact.")
    bits = _read_bytes(path)[24]
    if is_color:
        return DataError(f"{path} has {bits} bits per value. Save it with 8 bits per value.") if bits > 8 else None
    if picture.mode not in ("L", "P"):
        is_rgb = picture.mode in ("RGB", "RGBA")
        advice = "If its colours are the labels, set data.label_kind=color." if is_rgb else "Save it as an 8-bit grey PNG."
        return DataError(f"{path} is not an 8-bit id image (mode {picture.mode}). {advice}")
    # Pillow also uses mode L for 2-bit and 4-bit images, and scales their values to 8 bits.
    is_short = picture.mode == "L" and bits < 8
    return DataError(f"{path} has {bits} bits per value. Save it as an 8-bit grey PNG.") if is_short else None


def _decode_image(data: tf.Tensor, channels: int, value_range: tuple[float, ...]) -> tf.Tensor:
    """Decode an image file like `decode.decode_image`, uint8 [h, w, channels]."""
    if channels != 3 or value_range:

        def decode(content: bytes | np.ndarray) -> np.ndarray:
            # TensorFlow passes bytes inside tf.data, but an array holding one bytes object in eager mode.
            return decode_image(content if isinstance(content, bytes) else content.item(), channels, value_range)

        return tf.ensure_shape(tf.numpy_function(decode, [data], tf.uint8), (None, None, channels))
    image = tf.cond(
        tf.io.is_jpeg(data),
        # The accurate DCT gives exactly the same pixels as other JPEG decoders.
        lambda: tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(data, channels=3, expand_animations=False),
    )
    image.set_shape((None, None, 3))
    return image


def _load_picture(path: str) -> Image.Image:
    data = _read_bytes(path)
    try:
        picture = Image.open(io.BytesIO(data))
        picture.load()
        # Pillow accepts some truncated files that TensorFlow rejects.
        tf.io.decode_image(data)
    except Exception as error:
        raise _make_read_error(path, error) from None
    return picture


def _read_bytes(path: str) -> bytes:
    try:
        return epath.Path(path).read_bytes()
    # TensorFlow reads files on object storage and raises its own error types.
    except (OSError, tf.errors.OpError) as error:
        raise _make_read_error(path, error) from None


def _make_read_error(path: str, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read ({reason(error)}). Replace the file or remove it from the list.")


def _hash_files(files: Sequence[tf.Tensor | bytes]) -> tf.Tensor:
    """Return a fingerprint for the contents of one or two files, uint8 [8].

    For one file, this is the FarmHash64 of its bytes. For two files, it is the FarmHash64 of their concatenated fingerprints.
    """
    return tf.fingerprint([files])[0]


def _get_path(root: str, names: Sequence[str], index: tf.Tensor) -> tf.Tensor:
    """Return the path of the file at list position `index` as a string tensor."""
    if tf.executing_eagerly():  # converting all names to a tensor for one sample would be slow
        return tf.constant(str(epath.Path(root) / names[int(index)]))
    return tf.strings.join([str(epath.Path(root)), tf.constant(names)[index]], "/")


def _get_paths(samples: Samples, i: int) -> list[str]:
    return [str(epath.Path(samples.root) / name) for name in (samples.images[i], *samples.labels[i : i + 1])]


def reason(error: Exception) -> str:
    """Return the first line of a TensorFlow or Pillow error message, without TensorFlow node names."""
    line = str(error).partition("\n")[0]
    line = re.sub(r"^cannot identify image file .*", "it is not an image", line)  # Pillow includes the Python object's repr
    return re.sub(r"^{{.*?}} | \[Op:.*", "", line)[:200] or type(error).__name__
