"""Build tf.data pipelines that yield NumPy batches.

A training sample depends only on the seed, on its number in the run, and on the files. A batch of n samples has these entries:

- "image": the images, uint8 [n, h, w, 3].
- "label": the train ids, uint8 [n, h, w], where 255 is ignored. A split without labels has no such entry.
- "valid": bool [n]. False for padding rows and for skipped rows.
- "index": the position of each sample in the list, int64 [n].
- "fingerprint": a hash of the contents of each sample's files, uint8 [n, 8].
- "photometric": the factors for `photometric.distort` on the device, float32 [n, 5]. Only in training batches, and only if
  `data.photometric` is set.

The fingerprints record which data a run has read. They change if any byte of the image file or the label file changes, and
`Store.fingerprint` computes them again from the files. A padding row has the fingerprint of the image that it repeats.

A skipped row replaces a training sample that cannot be read. Its image has the fill colour, its label is 255 everywhere, and
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
from deeplab_jax.data.samples import Samples, diagnose, value_table
from deeplab_jax.errors import DataError
from deeplab_jax.labels import LabelSet
from deeplab_jax.runtime.machine import keep_freed_memory, usable_cores

Batch = dict[str, np.ndarray]
AxisOrder = Literal["NHWC", "NCHW"]


def log_skipped(error: DataError) -> None:
    """Log a warning that a sample was skipped and why, with Python's logging module."""
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
    """Yield the training batches of steps `start_step` to `steps` - 1, with the rows that belong to this process.

    Row r of the global batch of step s is sample number s * batch_size + r of the run. Each epoch is shuffled with a different
    key. No state is carried from one sample to the next, so starting at a later step takes no extra time.

    Up to `data.max_unreadable` samples that cannot be read are replaced by skipped rows, wherever they occur. Each process
    counts only the samples that it has skipped itself since it started. Such samples are found when a batch fails, and the
    batch is then read again without them. The contents of a batch therefore depend only on its step, the seed and the files.

    Args:
      samples: A split with labels.
      labels: The label set, which maps the label values to train ids.
      data: The data section of the config.
      fill: The RGB colour (0 to 255) of pixels outside the image.
      seed: The seed of the run.
      start_step: The first step. Earlier steps are not computed.
      steps: The number of steps of the full run.
      process_index: The index of this process.
      process_count: The number of processes.
      layout: The axis order of the images. "NCHW" is for other frameworks.
      on_skip: A function that is called once for each skipped sample, before the first batch without the sample.

    Raises:
      DataError: A file cannot be used. The error is raised during iteration and names the file.
    """
    local = data.batch_size // process_count
    table = value_table(samples.kind, labels)

    def sample_number(j: tf.Tensor) -> tf.Tensor:
        """Return the number in the run of the j-th sample of this process."""
        return j // local * data.batch_size + process_index * local + j % local

    def build_dataset(step: int, skipped: tuple[int, ...]) -> tf.data.Dataset:
        def make_row(j: tf.Tensor) -> Row:
            k = sample_number(j)
            index = shuffle_index(k, len(samples), seed)

            def read() -> Row:
                sample = samples.store.open(samples, table, index)
                row = augment(sample, make_sample_key(seed, k), data=data, fill=fill)
                return row | {"valid": tf.constant(True), "fingerprint": sample.fingerprint}

            def skip() -> Row:
                return make_blank_row(data, fill) | {"valid": tf.constant(False), "fingerprint": tf.zeros(8, tf.uint8)}

            is_skipped = tf.reduce_any(index == tf.constant(skipped, tf.int64))
            return (tf.cond(is_skipped, skip, read) if skipped else read()) | {"index": index}

        return _read_batches(tf.data.Dataset.range(step * local, steps * local), make_row, data.threads, local)

    def list_indices(step: int) -> list[int]:
        local_numbers = range(step * local, (step + 1) * local)
        return [int(shuffle_index(sample_number(tf.constant(j, tf.int64)), len(samples), seed)) for j in local_numbers]

    batches = iterate(
        samples,
        build_dataset,
        list_indices,
        lambda i: diagnose(samples, table, i),
        start=start_step,
        max_unreadable=data.max_unreadable,
        on_skip=on_skip,
    )
    return _convert_layout(batches, layout)


def shuffle_index(k: tf.Tensor, num_samples: int, seed: int) -> tf.Tensor:
    """Return the position in the list of sample number `k` (int64) of a run. Each epoch is a different permutation."""
    epoch = k // num_samples
    key = tf.stack([tf.cast(seed, tf.int64), epoch])
    return tf.random.experimental.index_shuffle(k % num_samples, key, num_samples - 1)


@functools.cache
def plan_evaluation(samples: Samples, batch_size: int) -> list[list[int]]:
    """Return the evaluation batches, each as a list of positions in the sample list.

    Every sample is in one batch. A batch holds images of the same size, so that no image has to be resized.

    The result is cached for the life of the process, because a training run evaluates many times. Opening all files to read
    their sizes takes minutes on object storage.

    Raises:
      DataError: An image cannot be opened.
    """
    by_size: dict[tuple[int, int], list[int]] = {}
    for i in range(len(samples)):
        by_size.setdefault(samples.store.size(samples, i), []).append(i)
    return [indices[i : i + batch_size] for indices in by_size.values() for i in range(0, len(indices), batch_size)]


def eval_batches(
    samples: Samples,
    labels: LabelSet,
    batch_size: int,
    *,
    threads: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    layout: AxisOrder = "NHWC",
) -> Iterator[Batch]:
    """Yield the full images of a split, in batches of images of the same size, with the rows that belong to this process.

    An incomplete batch is padded with rows whose "valid" is False.

    Args:
      samples: A split, with or without labels.
      labels: The label set, which maps the label values to train ids.
      batch_size: The number of rows per batch, over all processes.
      threads: The number of host threads. 0 uses one thread per usable CPU core.
      process_index: The index of this process.
      process_count: The number of processes.
      layout: The axis order of the images. "NCHW" is for other frameworks.

    Raises:
      DataError: A file cannot be used. The error is raised during iteration and names the file.
    """
    dataset, positions = _build_evaluation(samples, labels, batch_size, threads, process_index, process_count)
    table = value_table(samples.kind, labels)
    # No sample may be skipped here, so `iterate` requests the dataset only once, from batch 0 on.
    batches = iterate(samples, lambda *_: dataset, positions.__getitem__, lambda i: diagnose(samples, table, i))
    return _convert_layout(batches, layout)


@functools.cache
def _build_evaluation(
    samples: Samples, labels: LabelSet, batch_size: int, threads: int, process_index: int, process_count: int
) -> tuple[tf.data.Dataset, list[list[int]]]:
    """Return the dataset of `eval_batches`, and for each batch the positions of its rows in the sample list.

    The result is cached for the life of the process, because TensorFlow never frees the tables that the functions of a dataset
    hold, and a training run evaluates many times.
    """
    local = batch_size // process_count
    local_rows = slice(process_index * local, (process_index + 1) * local)
    plan = plan_evaluation(samples, batch_size)
    valid = np.array([i < len(batch) for batch in plan for i in range(batch_size)[local_rows]])
    # A padding row must have the image size of its batch, so it repeats the first image. It is masked by "valid".
    padded = [(batch + batch[:1] * (batch_size - len(batch)))[local_rows] for batch in plan]
    table = value_table(samples.kind, labels)

    def read(index: tf.Tensor, is_valid: tf.Tensor) -> Row:
        sample = samples.store.open(samples, table, index)
        return sample.read_all() | {"fingerprint": sample.fingerprint, "valid": is_valid, "index": index}

    indices = np.array(padded, np.int64).reshape(-1)
    return _read_batches(tf.data.Dataset.from_tensor_slices((indices, valid)), read, threads, local), padded


def _read_batches(dataset: tf.data.Dataset, read: Callable[..., Row], threads: int, batch_size: int) -> tf.data.Dataset:
    keep_freed_memory()
    # Prefetch only two batches. The consumer also keeps batches on the device, so more would only take memory.
    return map_in_parallel(dataset, read, threads).batch(batch_size, drop_remainder=True).prefetch(2)


def map_in_parallel(dataset: tf.data.Dataset, read: Callable[..., Row], threads: int) -> tf.data.Dataset:
    """Map a function over a dataset in several threads, and keep the order of the elements.

    Args:
      dataset: The dataset.
      read: A function without Python branches that depend on tensors, because AutoGraph does not convert it.
      threads: The number of threads. 0 uses one thread per usable CPU core.
    """
    options = tf.data.Options()
    options.deterministic = True
    # Autotuning delays the end of an iteration, which waits for the tuner thread to wake up. The thread sleeps for as long as
    # the consumer once took to request a batch (a compilation, for example), up to a minute.
    options.autotune.enabled = False
    if threads:
        options.threading.private_threadpool_size = threads
    read = tf.autograph.experimental.do_not_convert(read)
    return dataset.map(read, num_parallel_calls=threads or usable_cores()).with_options(options)


def _convert_layout(batches: Iterator[Batch], layout: AxisOrder) -> Iterator[Batch]:
    for batch in batches:
        yield batch if layout == "NHWC" else batch | {"image": np.ascontiguousarray(batch["image"].transpose(0, 3, 1, 2))}


class _BatchIterator:
    """An iterator over the batches of a dataset, which is closed when the program exits.

    Datasets call Python functions from TensorFlow threads. If such a call happens while the interpreter shuts down, the
    interpreter and the thread wait for each other forever. All iterators must therefore be closed first.
    """

    def __init__(self, dataset: tf.data.Dataset) -> None:
        self._iterator = dataset.as_numpy_iterator()
        _OPEN_ITERATORS.add(self)

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._iterator)

    def close(self) -> None:
        """Wait for pending reads, and delete the iterator."""
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
    """Yield the batches of a dataset from number `start` on, and skip or report the samples that cannot be read.

    When a batch fails with a TensorFlow error, its samples are checked one by one. If the bad samples may be skipped, the
    dataset is built again without them, starting at this batch. Otherwise the error for a bad sample is raised.

    Args:
      samples: The split that is read.
      build_dataset: A function that maps (number, positions) to a dataset. The dataset starts at the batch with this number
        and does not read the samples at these positions.
      list_indices: A function that maps the number of a batch to the positions of its samples in the list.
      check_sample: A function that maps the position of a sample to an error that explains why the sample cannot be used, or to
        None if it can be used.
      start: The number of the first batch.
      max_unreadable: The largest number of samples that may be skipped.
      on_skip: A function that is called once for each skipped sample.

    Raises:
      DataError: A sample cannot be used. The error is raised during iteration and names the file.
    """
    number = start
    skipped: tuple[int, ...] = ()
    batches = _BatchIterator(build_dataset(number, skipped))
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            previous = skipped
            skipped = _skip_unreadable(dict.fromkeys(list_indices(number)), previous, check_sample, max_unreadable, on_skip)
            # Each new dataset must skip at least one more sample, or this loop would not end.
            if skipped == previous:
                names = ", ".join(samples.images[i] for i in list_indices(number))
                message = f"Reading {names} failed once ({reason(error)}) but worked when repeated. Check the disk."
                raise DataError(message) from None
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
    """Return the skipped positions `previous`, followed by those of `indices` whose samples cannot be read.

    The TensorFlow error does not name a file, so the samples of a failed batch are read again one by one.
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
