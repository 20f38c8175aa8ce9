"""tf.data pipelines that yield NumPy batches; a training sample is a function of (seed, its number in the run) alone.

A batch: {"image": uint8 [n, h, w, 3], "label": uint8 [n, h, w] train ids (255 = ignore), "valid": bool [n] (False: a padding
row), "index": int64 [n] position in the list}. A split without labels yields no "label".
"""

import functools
import io
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from etils import epath
from PIL import Image

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

from deeplab_jax.config import DataConfig
from deeplab_jax.data import augment
from deeplab_jax.data.lists import Samples, value_table
from deeplab_jax.errors import DataError
from deeplab_jax.labels import UNKNOWN, LabelSet

# Accelerators belong to JAX: a TensorFlow built for GPUs would take their memory.
tf.config.set_visible_devices([], "GPU")

Batch = dict[str, np.ndarray]
Layout = Literal["NHWC", "NCHW"]
Loader = Callable[[tf.Tensor], tuple[tf.Tensor, ...]]


def train_batches(
    samples: Samples,
    labels: LabelSet,
    data: DataConfig,
    fill: tuple[float, ...],
    *,
    seed: int,
    start_step: int,
    steps: int,
    process_index: int = 0,
    process_count: int = 1,
    layout: Layout = "NHWC",
) -> Iterator[Batch]:
    """Batches of steps `start_step` to `steps` - 1: this process's rows of each global batch.

    Row r of step s is sample number s * batch_size + r of the run; each pass over the list is shuffled with a key of its
    own. Starting late costs nothing, since no state is carried from sample to sample.

    Args:
      samples: a split with labels.
      labels: what the values in the label files mean.
      data: batch size, augmentation and threads.
      fill: RGB (0-255) of pixels outside the image.
      seed: of the order and the augmentation.
      start_step: first step; steps before it are not computed.
      steps: end of the run.
      process_index, process_count: which host this is, of how many.
      layout: of the images; "NCHW" for another framework.

    Raises:
      DataError: while iterating, naming the file that cannot be used.
    """
    local = data.batch_size // process_count
    table = value_table(samples.kind, labels)
    load = _loader(samples, table)

    def number(j: tf.Tensor) -> tf.Tensor:
        """Of the run's sample that is the j-th of this process."""
        return j // local * data.batch_size + process_index * local + j % local

    def sample(j: tf.Tensor) -> dict[str, tf.Tensor]:
        k = number(j)
        index = shuffled_index(k, len(samples), seed)
        image, label = load(index)
        image, label = augment.scale_crop_flip(
            image, label, augment.uniforms(seed, k), crop_size=data.crop_size, scale=data.scale, flip=data.flip, fill=fill
        )
        return {"image": image, "label": label, "valid": tf.constant(True), "index": index}

    dataset = tf.data.Dataset.range(start_step * local, steps * local)
    dataset = _parallel(dataset, sample, data.threads, local)

    def rows(batch: int) -> list[int]:
        first = (start_step + batch) * local
        return [int(shuffled_index(number(tf.constant(j, tf.int64)), len(samples), seed)) for j in range(first, first + local)]

    return _iterate(dataset, lambda batch: _explain(samples, table, load, rows(batch)), layout)


def shuffled_index(k: tf.Tensor, num_samples: int, seed: int) -> tf.Tensor:
    """Position in the list of the run's sample number `k` (int64): every pass over the list is a permutation of its own."""
    epoch = k // num_samples
    key = tf.stack([tf.cast(seed, tf.int64), epoch])
    return tf.random.experimental.index_shuffle(k % num_samples, key, num_samples - 1)


@functools.cache
def plan_evaluation(samples: Samples, batch_size: int) -> list[list[int]]:
    """Positions in the list, batch by batch: every sample once, images of one size together so that nothing is resized.

    Kept for the process: a training evaluates many times, and opening every file's header takes minutes on object storage.

    Raises:
      DataError: an image cannot be opened.
    """
    by_size: dict[tuple[int, int], list[int]] = {}
    for i, name in enumerate(samples.images):
        by_size.setdefault(_image_size(epath.Path(samples.root) / name), []).append(i)
    return [same[i : i + batch_size] for same in by_size.values() for i in range(0, len(same), batch_size)]


def eval_batches(
    samples: Samples,
    labels: LabelSet,
    batch_size: int,
    *,
    threads: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    layout: Layout = "NHWC",
) -> Iterator[Batch]:
    """Whole images in batches of one size; a short batch is filled up with rows whose "valid" is False.

    Args:
      samples: a split, with or without labels.
      labels: what the values in the label files mean.
      batch_size: rows of a batch over all processes.
      threads: host threads; 0 lets tf.data choose.
      process_index, process_count: which host this is, of how many.
      layout: of the images; "NCHW" for another framework.

    Raises:
      DataError: while iterating, naming the file that cannot be used.
    """
    local = batch_size // process_count
    mine = slice(process_index * local, (process_index + 1) * local)
    plan = plan_evaluation(samples, batch_size)
    valid = np.array([i < len(batch) for batch in plan for i in range(batch_size)[mine]])
    # A padding row repeats an image of its batch: it needs that size, and is masked.
    padded = [(batch + batch[:1] * (batch_size - len(batch)))[mine] for batch in plan]
    table = value_table(samples.kind, labels)
    load = _loader(samples, table)

    def sample(index: tf.Tensor, is_valid: tf.Tensor) -> dict[str, tf.Tensor]:
        image, *label = load(index)
        row = {"image": image, "valid": is_valid, "index": index}
        return {**row, "label": label[0]} if label else row

    indices = np.array(padded, np.int64).reshape(-1)
    dataset = tf.data.Dataset.from_tensor_slices((indices, valid))
    dataset = _parallel(dataset, sample, threads, local)
    return _iterate(dataset, lambda batch: _explain(samples, table, load, padded[batch]), layout)


def _parallel(
    dataset: tf.data.Dataset, sample: Callable[..., dict[str, tf.Tensor]], threads: int, batch_size: int
) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    if threads:
        options.threading.private_threadpool_size = threads
    sample = tf.autograph.experimental.do_not_convert(sample)  # no Python branch depends on a tensor
    dataset = dataset.map(sample, num_parallel_calls=threads or tf.data.AUTOTUNE)
    # Two batches wait at most: more would only hold memory, since the consumer keeps batches on the device as well.
    return dataset.batch(batch_size, drop_remainder=True).prefetch(2).with_options(options)


def _iterate(dataset: tf.data.Dataset, explain: Callable[[int], DataError], layout: Layout) -> Iterator[Batch]:
    """The dataset's batches; a TensorFlow error becomes what `explain` finds in the batch of that number."""
    batches = dataset.as_numpy_iterator()
    number = 0
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except tf.errors.OpError:
            raise explain(number) from None
        yield {**batch, "image": to_nchw(batch["image"])} if layout == "NCHW" else batch
        number += 1


def to_nchw(images: np.ndarray) -> np.ndarray:
    """[n, h, w, c] -> [n, c, h, w], for frameworks that want it."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _loader(samples: Samples, table: np.ndarray) -> Loader:
    """A function from a position in the list to (image uint8 [h, w, 3], label uint8 [h, w] train ids), or to (image,)."""
    root = str(epath.Path(samples.root))
    images = tf.constant(list(samples.images))
    labels = tf.constant(list(samples.labels)) if samples.labels else None
    lookup = tf.constant(table)

    def load(index: tf.Tensor) -> tuple[tf.Tensor, ...]:
        image = _decode_image(tf.io.read_file(tf.strings.join([root, images[index]], "/")))
        if labels is None:
            return (image,)
        values = _decode_label(tf.io.read_file(tf.strings.join([root, labels[index]], "/")), samples.kind == "color")
        tf.debugging.assert_equal(tf.shape(image)[:2], tf.shape(values), "image and label differ in size")
        label = tf.gather(lookup, values)
        tf.debugging.assert_greater(tf.reduce_min(label), tf.constant(UNKNOWN, tf.int16), "a label value is in no table")
        return image, tf.cast(label, tf.uint8)

    return load


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


def _image_size(path: epath.Path) -> tuple[int, int]:
    """(height, width) from the file's header."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            return image.height, image.width
    except OSError as error:
        raise DataError(f"{path} cannot be read as an image ({_one_line(error)}): replace it or take it off the list") from None


def _explain(samples: Samples, table: np.ndarray, load: Loader, indices: Sequence[int]) -> DataError:
    """What is wrong with the first unusable sample of `indices`, read again one by one.

    TensorFlow's own message names no file; asking again costs nothing until something is wrong.
    """
    for i in indices:
        try:
            load(tf.constant(i, tf.int64))
        except tf.errors.OpError as error:
            names = " or ".join(_paths(samples, i))
            unreadable = DataError(f"{names} cannot be read ({_one_line(error)[:200]}): replace it or take it off the list")
            return _explain_sample(samples, table, i) or unreadable
    return DataError(f"reading {', '.join(samples.images[i] for i in indices)} failed once and then worked: check the disk")


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
        except (OSError, tf.errors.InvalidArgumentError) as error:
            return DataError(f"{path} cannot be read ({_one_line(error)}): replace it or take it off the list")
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


def _paths(samples: Samples, i: int) -> list[str]:
    return [str(epath.Path(samples.root) / name) for name in (samples.images[i], *samples.labels[i : i + 1])]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split("}} ")[-1].split()) or type(error).__name__
