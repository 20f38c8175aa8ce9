"""Read samples from image files, and explain why a file is unreadable."""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from etils import epath
from jaxtyping import Int32, UInt8
from PIL import Image

from deeplab_jax.buckets import is_url
from deeplab_jax.data.decode import (
    PNG_SIGNATURE,
    TRANSPOSED,
    FormatError,
    decode_image,
    decode_mask,
    read_orientation,
    read_size,
)
from deeplab_jax.data.omissions import find_omissions
from deeplab_jax.data.samples import DecodedSample, Samples, Store
from deeplab_jax.errors import BucketError, DataError

# Hide the GPUs from TensorFlow, which would otherwise take the GPU memory that JAX needs.
tf.config.set_visible_devices([], "GPU")


# TensorFlow cannot decode larger images. Pillow can.
MAX_TENSORFLOW_PIXELS = 2**26


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
        image_file = _read_file(samples.root, samples.images, index)
        image = _compile_image_decoder(self.channels, self.value_range)(image_file)
        if not samples.labels:
            return DecodedSample(image, None, _hash_files([image_file]))
        label_file = _read_file(samples.root, samples.labels, index)
        values = _compile_mask_decoder(samples.kind == "color")(label_file)
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
        except FormatError as error:
            raise DataError(f"{path} {error}") from None
        except BucketError:
            raise
        except Exception as error:  # Pillow and tifffile raise many error types
            message = f"{path} cannot be read as an image ({reason(error)}). Replace the file or remove it from the data set."
            raise DataError(message) from None

    def fingerprint(self, samples: Samples, i: int) -> bytes:
        """Return the 8-byte fingerprint of sample `i` without decoding its files.

        Raises:
          DataError: A file is missing or unreadable.
        """
        return _hash_files([_read_bytes(path) for path in _get_paths(samples, i)]).numpy().tobytes()

    def orientation(self, samples: Samples, i: int) -> int:
        """Return the EXIF orientation of sample `i`, or 1 if the file cannot be read."""
        try:
            with epath.Path(_get_paths(samples, i)[0]).open("rb") as file:
                return read_orientation(file)
        except OSError:
            return 1

    def omissions(self, samples: Samples, i: int) -> dict[str, str]:
        """Return the unused parts of sample `i`'s image file, or {} if it cannot be read. See `find_omissions`."""
        try:
            with epath.Path(_get_paths(samples, i)[0]).open("rb") as file:
                return find_omissions(file, self.channels, self.value_range)
        except OSError:
            return {}

    def label_path(self, samples: Samples, i: int) -> str:
        """Return the path of sample `i`'s label file."""
        return _get_paths(samples, i)[1]

    def explain(self, samples: Samples, i: int, error: Exception) -> DataError:
        """Return an error that names sample `i`'s bad file and says what is wrong with it.

        If nothing is wrong with the files themselves, the reason is taken from `error`.
        """
        paths = _get_paths(samples, i)
        try:
            arrays = [read_image(paths[0], self.channels, self.value_range)]
            arrays += [read_mask(path, is_color=samples.kind == "color") for path in paths[1:]]
        except DataError as problem:
            return problem
        sizes = [(array.shape[1], array.shape[0]) for array in arrays]
        if len(set(sizes)) == 1:
            return _make_read_error(" or ".join(paths), error)
        shown = " and ".join(f"{width}x{height}" for width, height in sizes)
        names = f"{paths[0]} and its label {samples.labels[i]}"
        orientation = self.orientation(samples, i)
        if orientation in TRANSPOSED and sizes[0] == sizes[1][::-1]:
            return DataError(
                f"{names} differ in size ({shown} pixels), because the photo is stored on its side (EXIF orientation "
                f"{orientation}) and the label is upright. Save the photo upright, for example with `mogrify -auto-orient`."
            )
        return DataError(f"{names} differ in size ({shown} pixels). Make both the same size, masks without interpolation.")


def read_image(path: str, channels: int = 3, value_range: tuple[float, ...] = ()) -> UInt8[np.ndarray, "h w channels"]:
    """Read an image file. See `decode.decode_image`.

    Raises:
      DataError: The file is unreadable or has the wrong format.
    """
    return _read_array(path, _compile_image_decoder(channels, value_range), _image_decoder(channels, value_range))


def read_mask(path: str, *, is_color: bool) -> UInt8[np.ndarray, "h w"] | Int32[np.ndarray, "h w"]:
    """Read a label file. See `decode.decode_mask`.

    Raises:
      DataError: The file is unreadable or has the wrong format.
    """
    return _read_array(path, _compile_mask_decoder(is_color), _mask_decoder(is_color))


def read_mode(path: str) -> str:
    """Return the Pillow mode of an image file, such as "RGB" or "P" for palette colours, or "" if Pillow cannot open it.

    Raises:
      DataError: The file is missing or cannot be accessed.
    """
    try:
        with epath.Path(path).open("rb") as file, Image.open(file) as picture:
            return picture.mode
    except Image.UnidentifiedImageError:
        return ""
    except OSError as error:
        raise _make_read_error(path, error) from None


def _image_decoder(channels: int, value_range: tuple[float, ...]) -> Callable[[bytes], np.ndarray]:
    return lambda data: decode_image(data, channels, value_range)


def _mask_decoder(is_color: bool) -> Callable[[bytes], np.ndarray]:
    return lambda data: decode_mask(data, is_color=is_color)


def _read_array(path: str, decode: Callable[[tf.Tensor], tf.Tensor], explain: Callable[[bytes], object]) -> np.ndarray:
    """Decode a file as training does. If that fails, `explain` decodes it again, with better error messages."""
    data = _read_bytes(path)
    try:
        return np.asarray(decode(tf.constant(data)))
    except Exception as error:  # TensorFlow, Pillow and tifffile raise many error types
        try:
            explain(data)
        except FormatError as problem:
            raise DataError(f"{path} {problem}") from None
        except Exception as problem:
            raise _make_read_error(path, problem) from None
        raise _make_read_error(path, error) from None


# Each is compiled once. Running their 20 operations one by one takes 3 milliseconds for each file.
@functools.cache
def _compile_image_decoder(channels: int, value_range: tuple[float, ...]) -> Callable[[tf.Tensor], tf.Tensor]:
    return _compile(lambda data: _decode_image(data, channels, value_range))


@functools.cache
def _compile_mask_decoder(is_color: bool) -> Callable[[tf.Tensor], tf.Tensor]:
    return _compile(lambda data: _decode_mask(data, is_color=is_color))


def _compile(decode: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor], tf.Tensor]:
    return tf.function(decode, input_signature=[tf.TensorSpec((), tf.string)], autograph=False)


def _decode_image(data: tf.Tensor, channels: int, value_range: tuple[float, ...]) -> tf.Tensor:
    """Decode an image file like `decode.decode_image`, uint8 [h, w, channels].

    TensorFlow decodes 8-bit JPEG and PNG files 1.5 times as fast as Pillow, with the same pixels.
    """

    def decode_slowly() -> tf.Tensor:
        return _call(_image_decoder(channels, value_range), data, tf.uint8)

    if channels not in (1, 3) or value_range:
        image = decode_slowly()
    else:
        has_color = (False, True) if channels == 3 else (False,)  # TensorFlow would convert colours to grey in its own way
        # The accurate DCT gives exactly the same pixels as other JPEG decoders.
        image = tf.case(
            [
                (_is_simple_png(data, has_color), lambda: tf.io.decode_png(data, channels=channels)),
                (
                    _is_simple_jpeg(data, has_color),
                    lambda: tf.io.decode_jpeg(data, channels=channels, dct_method="INTEGER_ACCURATE"),
                ),
            ],
            default=decode_slowly,
        )
    image.set_shape((None, None, channels))
    return image


def _decode_mask(data: tf.Tensor, *, is_color: bool) -> tf.Tensor:
    """Decode a label file like `decode.decode_mask`, both eagerly and inside tf.data."""

    def decode_quickly() -> tf.Tensor:
        if not is_color:
            return tf.io.decode_png(data, channels=1)[..., 0]
        rgb = tf.cast(tf.io.decode_png(data, channels=3), tf.int32)
        return rgb[..., 0] * 65536 + rgb[..., 1] * 256 + rgb[..., 2]

    def decode_slowly() -> tf.Tensor:
        return _call(_mask_decoder(is_color), data, tf.int32 if is_color else tf.uint8)

    values = tf.cond(_is_simple_png(data, (is_color,)), decode_quickly, decode_slowly)
    values.set_shape((None, None))
    return values


def _call(decode: Callable[[bytes], np.ndarray], data: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.numpy_function(lambda file: decode(_to_bytes(file)), [data], dtype, stateful=False)


def _to_bytes(value: bytes | np.ndarray) -> bytes:
    # TensorFlow passes bytes inside tf.data, but an array holding one bytes object in eager mode.
    return value if isinstance(value, bytes) else value.item()


def _is_simple_png(data: tf.Tensor, has_color: tuple[bool, ...]) -> tf.Tensor:
    """Return whether `data` is a grey or RGB PNG with 8 bits per value, without a palette or transparency.

    Args:
      data: The file's bytes.
      has_color: Which of the two it can be: (False,) for grey, (True,) for RGB or (False, True).
    """
    header = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 0, 26), tf.uint8), tf.int64)

    def has_right_format() -> tf.Tensor:
        width, height = (tf.reduce_sum(header[i : i + 4] * (1 << 24, 1 << 16, 1 << 8, 1)) for i in (16, 20))
        color_types = tf.constant([2 if each else 0 for each in has_color], tf.int64)
        is_small = width * height <= MAX_TENSORFLOW_PIXELS
        return tf.reduce_any(header[25] == color_types) & (header[24] == 8) & is_small

    return tf.cond(tf.strings.substr(data, 0, 8) == PNG_SIGNATURE, has_right_format, lambda: tf.constant(False))


def _is_simple_jpeg(data: tf.Tensor, has_color: tuple[bool, ...]) -> tf.Tensor:
    """Return whether `data` is a JPEG with one or three bands. See `_is_simple_png`."""
    bands = tf.constant([3 if each else 1 for each in has_color], tf.int32)

    def has_right_format() -> tf.Tensor:
        shape = tf.io.extract_jpeg_shape(data)
        return tf.reduce_any(shape[2] == bands) & (shape[0] * shape[1] <= MAX_TENSORFLOW_PIXELS)

    return tf.cond(tf.io.is_jpeg(data), has_right_format, lambda: tf.constant(False))


def _read_bytes(path: str) -> bytes:
    try:
        return epath.Path(path).read_bytes()
    except OSError as error:
        raise _make_read_error(path, error) from None


def _make_read_error(path: str, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read ({reason(error)}). Replace the file or remove it from the data set.")


def _hash_files(files: Sequence[tf.Tensor | bytes]) -> tf.Tensor:
    """Return a fingerprint for the contents of one or two files, uint8 [8].

    For one file, this is the FarmHash64 of its bytes. For two files, it is the FarmHash64 of their concatenated fingerprints.
    """
    return tf.fingerprint([files])[0]


def _read_file(root: str, names: Sequence[str], index: tf.Tensor) -> tf.Tensor:
    """Return the content of the file at list position `index` as a string tensor."""
    path = _get_path(root, names, index)
    if not is_url(root):
        return tf.io.read_file(path)
    return tf.numpy_function(lambda url: epath.Path(_to_bytes(url).decode()).read_bytes(), [path], tf.string, stateful=False)


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
