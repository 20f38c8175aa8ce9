"""Build tf.data pipelines that yield NumPy batches.

A training sample depends only on the seed, its number in the run, and the files. A batch of n samples has these entries:

- "image": the images, uint8 [n, h, w, c].
- "label": the train ids, uint8 [n, h, w], where 255 is ignored. This entry is missing in a split without labels.
- "valid": whether each row is a real sample, bool [n]. False for padding rows and skipped rows.
- "index": each sample's position in the list, int64 [n].
- "size": each image's height and width, int32 [n, 2]. This entry exists only in evaluation batches with images of different
  sizes. The images are in the top left corners of their arrays. Below and to the right of them, images are 0 and labels are
  255.
- "fingerprint": a hash of each sample's file contents, uint8 [n, 8].
- "photometric": the factors for `photometric.distort` on the device, float32 [n, 5]. This entry exists only in training batches
  and only if `data.photometric` is set.

The fingerprints record which data a run has read. A fingerprint changes if any byte in the image or label file changes.
`Store.fingerprint` recomputes it from the files. A padding row repeats an image and has that image's fingerprint.

A skipped row replaces an unreadable training sample. Its image is filled with the fill colour, its label is 255 everywhere, and
its fingerprint is all zeros.
"""

import atexit
import functools
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import numpy as np
import tensorflow as tf

from deeplab_jax.config import DataConfig
from deeplab_jax.data.augmentation import Row, augment, make_blank_row, make_sample_key
from deeplab_jax.data.image_files import reason
from deeplab_jax.data.order import make_order
from deeplab_jax.data.samples import Samples, diagnose, make_value_table, raise_bucket_error
from deeplab_jax.errors import DataError
from deeplab_jax.labels import LabelSet
from deeplab_jax.runtime.machine import keep_freed_memory, usable_cores

Batch = dict[str, np.ndarray]
AxisOrder = Literal["NHWC", "NCHW"]


def log_skipped(error: DataError) -> None:
    """Log a warning that says which sample was skipped and why."""
    logging.getLogger(__name__).warning("Skipped a sample: %s", error)


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
    layout: AxisOrder = "NHWC",
    on_skip: Callable[[DataError], None] = log_skipped,
) -> Iterator[Batch]:
    """Yield this process's rows of the training batches for steps `start_step` to `steps` - 1.

    Row r in the global batch for step s is the run's sample number s * batch_size + r (see `make_order`). No state is carried
    from one sample to the next, so starting at a later step takes no extra time.

    Up to `data.max_unreadable` unreadable samples are replaced by skipped rows wherever they appear. Each process counts only
    the samples that it has skipped since it started. When a batch fails, its unreadable samples are identified, and the batch
    is read again without them. A batch therefore depends only on its step, the seed and the files.

    Args:
      samples: A split with labels.
      labels: The label set, which maps the label values to train ids.
      data: The config's data section.
      fill: The colour (0 to 255, one value for each channel) for pixels outside the image.
      seed: The run's seed.
      start_step: The first step. Earlier steps are not computed.
      steps: The total number of steps in the run.
      process_index: The index of this process.
      process_count: The number of processes.
      layout: The image axis order. "NCHW" is for other frameworks.
      on_skip: A callback that is called once for each skipped sample, before the first batch without that sample is yielded.

    Raises:
      DataError: A file cannot be used. The error is raised during iteration and names the file.
      ConfigError: `data.mix` does not fit the samples.
    """
    local = data.batch_size // process_count
    table = make_value_table(samples.kind, labels)
    choose_index = make_order(samples, data, seed)

    def sample_number(j: tf.Tensor) -> tf.Tensor:  # of this process's j-th sample, in the whole run
        return j // local * data.batch_size + process_index * local + j % local

    def build_dataset(step: int, skipped: tuple[int, ...]) -> tf.data.Dataset:
        def make_row(j: tf.Tensor) -> Row:
            k = sample_number(j)
            index = choose_index(k)
            read = functools.partial(_read_row, samples, table, index, make_sample_key(seed, k), data, fill)
            is_skipped = tf.reduce_any(index == tf.constant(skipped, tf.int64))
            return (tf.cond(is_skipped, lambda: _make_skipped_row(data, fill), read) if skipped else read()) | {"index": index}

        return read_batches(tf.data.Dataset.range(step * local, steps * local), make_row, data.threads, local)

    def list_indices(step: int) -> list[int]:
        return [int(choose_index(sample_number(tf.constant(step * local + row, tf.int64)))) for row in range(local)]

    batches = iterate(
        samples,
        build_dataset,
        list_indices,
        lambda i: diagnose(samples, table, i),
        start=start_step,
        max_unreadable=data.max_unreadable,
        on_skip=on_skip,
    )
    return convert_layout(batches, layout)


def _read_row(
    samples: Samples, table: tf.Tensor, index: tf.Tensor, key: tf.Tensor, data: DataConfig, fill: tuple[float, ...]
) -> Row:
    sample = samples.store.open(samples, table, index)
    row = augment(sample, key, data=data, fill=fill)
    return row | {"valid": tf.constant(True), "fingerprint": sample.fingerprint}


def _make_skipped_row(data: DataConfig, fill: tuple[float, ...]) -> Row:
    return make_blank_row(data, fill) | {"valid": tf.constant(False), "fingerprint": tf.zeros(8, tf.uint8)}


def read_batches(dataset: tf.data.Dataset, read: Callable[..., Row], threads: int, batch_size: int) -> tf.data.Dataset:
    """Return batches of `read(element)` for each element of a dataset, in order. See `map_in_parallel`."""
    # Prefetch only two batches. The consumer also keeps batches on the device, so more would only waste memory.
    return map_in_parallel(dataset, read, threads).batch(batch_size, drop_remainder=True).prefetch(2)


def map_in_parallel(dataset: tf.data.Dataset, read: Callable[..., Row], threads: int) -> tf.data.Dataset:
    """Map a function over a dataset in several threads, preserving the element order.

    Args:
      dataset: The input dataset.
      read: The function to apply. AutoGraph does not convert it, so its Python branches must not depend on tensors.
      threads: The number of threads. 0 uses one thread per usable CPU core.
    """
    keep_freed_memory()
    options = tf.data.Options()
    options.deterministic = True
    # With autotuning, an iteration cannot end until the tuner thread wakes up. After a slow step, such as a compilation, that
    # thread sleeps for as long as the step took, up to a minute.
    options.autotune.enabled = False
    if threads:
        options.threading.private_threadpool_size = threads
    read = tf.autograph.experimental.do_not_convert(read)
    return dataset.map(read, num_parallel_calls=threads or usable_cores()).with_options(options)


def convert_layout(batches: Iterator[Batch], layout: AxisOrder) -> Iterator[Batch]:
    """Yield NHWC batches with their images in the given layout."""
    for batch in batches:
        yield batch if layout == "NHWC" else batch | {"image": np.ascontiguousarray(batch["image"].transpose(0, 3, 1, 2))}


class _BatchIterator:
    """A dataset iterator that is closed when the program exits.

    Datasets call Python functions from TensorFlow threads. If they do so while the interpreter is shutting down, the
    interpreter and the thread deadlock, so all iterators must be closed first.
    """

    def __init__(self, dataset: tf.data.Dataset) -> None:
        self._iterator = dataset.as_numpy_iterator()
        _OPEN_ITERATORS.add(self)

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._iterator)

    def close(self) -> None:
        """Wait for pending reads and delete the iterator."""
        self._iterator = None


_OPEN_ITERATORS: weakref.WeakSet[_BatchIterator] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for batches in list(_OPEN_ITERATORS):
        batches.close()


def iterate(
    samples: Samples,
    build_dataset: Callable[[int, tuple[int, ...]], tf.data.Dataset],
    list_indices: Callable[[int], Iterable[int]],
    check_sample: Callable[[int], DataError | None],
    *,
    start: int = 0,
    max_unreadable: int = 0,
    on_skip: Callable[[DataError], None] = log_skipped,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield a dataset's batches, starting at batch `start`, and skip or report unreadable samples.

    When a batch fails with a TensorFlow error, its samples are checked one by one. If `max_unreadable` allows skipping the bad
    samples, the dataset is rebuilt without them, starting at the failed batch. Otherwise, the error for a bad sample is raised.
    If no sample is bad, as after a short failure of a network disk, the batch is read once more.

    Args:
      samples: The split to read.
      build_dataset: A function that takes (batch number, skipped positions) and returns a dataset that starts at this batch and
        does not read the samples at the skipped positions.
      list_indices: A function that returns the list positions of the samples in a batch, given the batch number.
      check_sample: A function that takes a sample's list position. It returns an error that explains why the sample cannot be
        used, or None if the sample is fine.
      start: The number of the first batch.
      max_unreadable: The maximum number of skipped samples.
      on_skip: A callback that is called once for each skipped sample.

    Raises:
      DataError: A sample cannot be used. The error is raised during iteration and names the file.
      BucketError: The bucket with the data cannot be used.
    """
    number = start
    repeated = -1  # the last batch that was read once more
    skipped: tuple[int, ...] = ()
    batches = _BatchIterator(build_dataset(number, skipped))
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            raise_bucket_error(error)
            previous = skipped
            skipped = _skip_unreadable(dict.fromkeys(list_indices(number)), previous, check_sample, max_unreadable, on_skip)
            # Each new dataset skips at least one more sample, or repeats a batch once. Otherwise, this loop might never end.
            if skipped == previous:
                names = ", ".join(samples.images[i] for i in list_indices(number))
                if repeated == number:
                    message = f"Reading {names} failed twice ({reason(error)}), although each file can be read. Check the disk."
                    raise DataError(message) from None
                repeated = number
                logging.getLogger(__name__).warning("Reading %s failed (%s). Reading it once more.", names, reason(error))
            batches = _BatchIterator(build_dataset(number, skipped))
        else:
            yield batch
            number += 1


def _skip_unreadable(
    indices: Iterable[int],
    previous: tuple[int, ...],
    check_sample: Callable[[int], DataError | None],
    max_unreadable: int,
    on_skip: Callable[[DataError], None],
) -> tuple[int, ...]:
    """Return the previously skipped positions, followed by the unreadable positions among `indices`.

    TensorFlow errors do not name the file, so the samples in a failed batch are read again one by one.
    """
    skipped = previous
    for i in indices:
        error = None if i in previous else check_sample(i)
        if error is None:
            continue
        if not max_unreadable:
            raise error from None
        if len(skipped) == max_unreadable:
            message = f"{error} This is one more unreadable sample than data.max_unreadable (={max_unreadable}) allows."
            raise DataError(message) from None
        on_skip(error)
        skipped += (i,)
    return skipped
