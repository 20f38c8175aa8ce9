"""tf.data pipelines that yield NumPy batches; a training sample is a function of (seed, its number in the run) alone.

A batch: {"image": uint8 [n, h, w, 3], "label": uint8 [n, h, w] train ids (255 = ignore), "valid": bool [n] (False: a padding
row, or a skipped one), "index": int64 [n] position in the list, "fingerprint": uint8 [n, 8] of what the sample's files hold}.
A split without labels yields no "label".

The fingerprint identifies what was read, for the run's receipt: another byte in the image's or the label's file is another
fingerprint, and `Store.fingerprint` finds it again. A padding row has that of the image which it repeats.

A skipped row stands for a training sample that cannot be read: its image is the fill colour, its label 255 all over, its
fingerprint zeros.

With `data.photometric`, training batches hold "photometric": float32 [n, 5] for `photometric.distort` on the device.
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
from deeplab_jax.data.augmentation import Row, augment, blank_row, sample_key
from deeplab_jax.data.image_files import reason
from deeplab_jax.data.samples import Samples, diagnose, value_table
from deeplab_jax.errors import DataError
from deeplab_jax.labels import LabelSet
from deeplab_jax.runtime.machine import keep_freed_memory, usable_cores

Batch = dict[str, np.ndarray]
AxisOrder = Literal["NHWC", "NCHW"]


def log_skipped(error: DataError) -> None:
    """Name the sample in Python's log."""
    logging.getLogger(__name__).warning("skipped: %s", error)


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
    """Yield the batches of steps `start_step` to `steps` - 1: this process's rows of each global batch.

    Row r of step s is sample number s * batch_size + r of the run; each pass over the list is shuffled with a key of its
    own. Starting late costs nothing, since no state is carried from sample to sample.

    Up to `data.max_unreadable` samples that cannot be read become skipped rows wherever they occur; this process counts its
    own, from its start on. They are found when a batch fails, which is then read without them: a batch still depends on
    nothing but its step, the seed and the files.

    Args:
      samples: a split with labels, whose values `labels` gives a meaning.
      labels, data, seed: of the config.
      fill: RGB (0-255) of pixels outside the image.
      start_step, steps: first step, and the end of the run; steps before the first are not computed.
      process_index, process_count: which host this is, of how many.
      layout: axis order of the images; "NCHW" for another framework.
      on_skip: called once for each skipped sample, before the first batch that lacks it.

    Raises:
      DataError: while iterating, naming the file that cannot be used.
    """
    local = data.batch_size // process_count
    table = value_table(samples.kind, labels)

    def number(j: tf.Tensor) -> tf.Tensor:
        """Return the number in the run of this process's j-th sample."""
        return j // local * data.batch_size + process_index * local + j % local

    def dataset(step: int, skipped: tuple[int, ...]) -> tf.data.Dataset:
        def sample(j: tf.Tensor) -> Row:
            k = number(j)
            index = shuffled_index(k, len(samples), seed)

            def read() -> Row:
                sample = samples.store.open(samples, table, index)
                row = augment(sample, sample_key(seed, k), data=data, fill=fill)
                return row | {"valid": tf.constant(True), "fingerprint": sample.fingerprint}

            def skip() -> Row:
                return blank_row(data, fill) | {"valid": tf.constant(False), "fingerprint": tf.zeros(8, tf.uint8)}

            is_skipped = tf.reduce_any(index == tf.constant(skipped, tf.int64))
            return (tf.cond(is_skipped, skip, read) if skipped else read()) | {"index": index}

        return _parallel(tf.data.Dataset.range(step * local, steps * local), sample, data.threads, local)

    def rows(step: int) -> list[int]:
        mine = range(step * local, (step + 1) * local)
        return [int(shuffled_index(number(tf.constant(j, tf.int64)), len(samples), seed)) for j in mine]

    batches = iterate(
        samples,
        dataset,
        rows,
        lambda i: diagnose(samples, table, i),
        start=start_step,
        max_unreadable=data.max_unreadable,
        on_skip=on_skip,
    )
    return _in_layout(batches, layout)


def shuffled_index(k: tf.Tensor, num_samples: int, seed: int) -> tf.Tensor:
    """Return the position in the list of the run's sample number `k` (int64); every pass is another permutation."""
    epoch = k // num_samples
    key = tf.stack([tf.cast(seed, tf.int64), epoch])
    return tf.random.experimental.index_shuffle(k % num_samples, key, num_samples - 1)


@functools.cache
def plan_evaluation(samples: Samples, batch_size: int) -> list[list[int]]:
    """Return positions in the list, batch by batch: every sample once, images of one size together so that nothing is resized.

    Kept for the process: a training evaluates many times, and opening every file's header takes minutes on object storage.

    Raises:
      DataError: an image cannot be opened.
    """
    by_size: dict[tuple[int, int], list[int]] = {}
    for i in range(len(samples)):
        by_size.setdefault(samples.store.size(samples, i), []).append(i)
    return [same[i : i + batch_size] for same in by_size.values() for i in range(0, len(same), batch_size)]


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
    """Yield whole images in batches of one size; a short batch is filled up with rows whose "valid" is False.

    Args:
      samples: a split, with or without labels.
      labels: what the values in the label files mean.
      batch_size: rows of a batch over all processes.
      threads: host threads; 0 lets tf.data choose.
      process_index, process_count: which host this is, of how many.
      layout: axis order of the images; "NCHW" for another framework.

    Raises:
      DataError: while iterating, naming the file that cannot be used.
    """
    dataset, positions = _evaluation(samples, labels, batch_size, threads, process_index, process_count)
    table = value_table(samples.kind, labels)
    # Nothing is skipped here, so the dataset is asked for once, from its first batch on.
    batches = iterate(samples, lambda *_: dataset, positions.__getitem__, lambda i: diagnose(samples, table, i))
    return _in_layout(batches, layout)


@functools.cache
def _evaluation(
    samples: Samples, labels: LabelSet, batch_size: int, threads: int, process_index: int, process_count: int
) -> tuple[tf.data.Dataset, list[list[int]]]:
    """Return the batches of `eval_batches`, and the position in the list of each of their rows.

    Kept for the process, which evaluates many times: TensorFlow never lets go of the tables that a dataset's functions hold.
    """
    local = batch_size // process_count
    mine = slice(process_index * local, (process_index + 1) * local)
    plan = plan_evaluation(samples, batch_size)
    valid = np.array([i < len(batch) for batch in plan for i in range(batch_size)[mine]])
    # A padding row repeats an image of its batch: it needs that size, and is masked.
    padded = [(batch + batch[:1] * (batch_size - len(batch)))[mine] for batch in plan]
    table = value_table(samples.kind, labels)

    def read(index: tf.Tensor, is_valid: tf.Tensor) -> Row:
        sample = samples.store.open(samples, table, index)
        return sample.read_whole() | {"fingerprint": sample.fingerprint, "valid": is_valid, "index": index}

    indices = np.array(padded, np.int64).reshape(-1)
    return _parallel(tf.data.Dataset.from_tensor_slices((indices, valid)), read, threads, local), padded


def _parallel(dataset: tf.data.Dataset, read: Callable[..., Row], threads: int, batch_size: int) -> tf.data.Dataset:
    keep_freed_memory()
    # Two batches wait at most: more would only hold memory, since the consumer keeps batches on the device as well.
    return map_in_parallel(dataset, read, threads).batch(batch_size, drop_remainder=True).prefetch(2)


def map_in_parallel(dataset: tf.data.Dataset, read: Callable[..., Row], threads: int) -> tf.data.Dataset:
    """Map a function without Python branches over a dataset, in order, in `threads` threads; 0 for one a core."""
    options = tf.data.Options()
    options.deterministic = True
    # The tuner may be asleep when an iteration ends, and the end waits for it: as long as the longest wait for a batch to be
    # taken, such as a compilation, and up to a minute.
    options.autotune.enabled = False
    if threads:
        options.threading.private_threadpool_size = threads
    read = tf.autograph.experimental.do_not_convert(read)
    return dataset.map(read, num_parallel_calls=threads or usable_cores()).with_options(options)


def _in_layout(batches: Iterator[Batch], layout: AxisOrder) -> Iterator[Batch]:
    for batch in batches:
        yield batch if layout == "NHWC" else batch | {"image": np.ascontiguousarray(batch["image"].transpose(0, 3, 1, 2))}


class _Batches:
    """A dataset's batches, which end with the program.

    Datasets call Python from threads of their own. Those that do so while the interpreter goes down wait for ever, and it for
    them: what is left of an iteration must end before.
    """

    def __init__(self, dataset: tf.data.Dataset) -> None:
        self._iterator = dataset.as_numpy_iterator()
        _OPEN.add(self)

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._iterator)

    def close(self) -> None:
        """Wait for what is being read."""
        self._iterator = None


_OPEN: weakref.WeakSet[_Batches] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for batches in list(_OPEN):
        batches.close()


def iterate(
    samples: Samples,
    dataset: Callable[[int, tuple[int, ...]], tf.data.Dataset],
    rows: Callable[[int], Iterable[int]],
    check: Callable[[int], DataError | None],
    *,
    start: int = 0,
    max_unreadable: int = 0,
    on_skip: Callable[[DataError], None] = log_skipped,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches from number `start` on. A TensorFlow error becomes that of the sample which causes it.

    Args:
      samples: the list.
      dataset: of the batches from a given number on, in which the samples at the given positions are not read.
      rows: positions in the list of a batch's samples.
      check: what is wrong with the sample at a position; None if nothing is.
      start: number of the first batch.
      max_unreadable: samples that may be skipped before one more is an error.
      on_skip: called once for each skipped sample.

    Raises:
      DataError: while iterating, naming the file that cannot be used.
    """
    number = start
    skipped: tuple[int, ...] = ()
    batches = _Batches(dataset(number, skipped))
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            known = skipped
            skipped = _skip(dict.fromkeys(rows(number)), known, check, max_unreadable, on_skip)
            # Every new dataset leaves out one sample more, or this loop would not end.
            if skipped == known:
                names = ", ".join(samples.images[i] for i in rows(number))
                message = f"reading {names} failed once ({reason(error)}) and then worked: check the disk"
                raise DataError(message) from None
            batches = _Batches(dataset(number, skipped))
        else:
            yield batch
            number += 1


def _skip(
    rows: Iterable[int],
    known: tuple[int, ...],
    check: Callable[[int], DataError | None],
    max_unreadable: int,
    on_skip: Callable[[DataError], None],
) -> tuple[int, ...]:
    """Return `known`, and those of `rows` that cannot be read.

    TensorFlow's own message names no file; asking again, one by one, costs nothing until something is wrong.
    """
    skipped = known
    for i in rows:
        error = None if i in known else check(i)
        if error is None:
            continue
        if not max_unreadable:
            raise error from None
        if len(skipped) == max_unreadable:
            raise DataError(f"{error}; it is one more than data.max_unreadable (={max_unreadable}) allows") from None
        on_skip(error)
        skipped += (i,)
    return skipped
