"""tf.data pipelines that yield NumPy batches; a training sample is a function of (seed, its number in the run) alone.

A batch: {"image": uint8 [n, h, w, 3], "label": uint8 [n, h, w] train ids (255 = ignore), "valid": bool [n] (False: a padding
row, or a skipped one), "index": int64 [n] position in the list, "fingerprint": uint8 [n, 8] of what the sample's files hold}.
A split without labels yields no "label".

The fingerprint tells what was read, for the run's receipt: another byte in the image's or the label's file is another
fingerprint, and `sources.fingerprint` finds it again. A padding row has that of the image which it repeats.

A skipped row stands for a training sample that cannot be read: its image is the fill colour, its label 255 all over, its
fingerprint zeros.

With `data.photometric`, training batches hold "photometric": float32 [n, 5] for `photometric.distort` on the device.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import tensorflow as tf

from deeplab_jax.config import DataConfig
from deeplab_jax.data import augment
from deeplab_jax.data.crops import sample_key
from deeplab_jax.data.iterate import iterate, log_skipped
from deeplab_jax.data.lists import Samples, value_table
from deeplab_jax.data.sources import Opened, all_of, store_of, unreadable
from deeplab_jax.errors import DataError
from deeplab_jax.labels import LabelSet
from deeplab_jax.runtime.machine import keep_freed_memory, usable_cores

Batch = dict[str, np.ndarray]
Row = dict[str, tf.Tensor]
Layout = Literal["NHWC", "NCHW"]


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
    on_skip: Callable[[DataError], None] = log_skipped,
) -> Iterator[Batch]:
    """Batches of steps `start_step` to `steps` - 1: this process's rows of each global batch.

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
      layout: of the images; "NCHW" for another framework.
      on_skip: told once of each skipped sample, before the first batch that lacks it.

    Raises:
      DataError: while iterating, naming the file that cannot be used.
    """
    local = data.batch_size // process_count
    table = value_table(samples.kind, labels)
    store = store_of(samples)

    def number(j: tf.Tensor) -> tf.Tensor:
        """Of the run's sample that is the j-th of this process."""
        return j // local * data.batch_size + process_index * local + j % local

    def dataset(step: int, skipped: tuple[int, ...]) -> tf.data.Dataset:
        def sample(j: tf.Tensor) -> Row:
            k = number(j)
            index = shuffled_index(k, len(samples), seed)

            def read() -> Row:
                return _augmented(store.opened(samples, table, index), sample_key(seed, k), data, fill)

            is_skipped = tf.reduce_any(index == tf.constant(skipped, tf.int64))
            row = tf.cond(is_skipped, lambda: _skipped_row(data, fill), read) if skipped else read()
            return {**row, "index": index}

        return _parallel(tf.data.Dataset.range(step * local, steps * local), sample, data.threads, local)

    def rows(step: int) -> list[int]:
        mine = range(step * local, (step + 1) * local)
        return [int(shuffled_index(number(tf.constant(j, tf.int64)), len(samples), seed)) for j in mine]

    batches = iterate(
        samples,
        dataset,
        rows,
        lambda i: unreadable(samples, table, i),
        start=start_step,
        max_unreadable=data.max_unreadable,
        on_skip=on_skip,
    )
    return _in_layout(batches, layout)


def _augmented(sample: Opened, key: tf.Tensor, data: DataConfig, fill: tuple[float, ...]) -> Row:
    assert sample.label is not None  # a training split has labels
    image, label = augment.augment_opened(sample.size, sample.image, sample.label, key, data=data, fill=fill)
    factors = {"photometric": augment.photometric_factors(key)} if data.photometric else {}
    return {"image": image, "label": label, "valid": tf.constant(True), "fingerprint": sample.fingerprint, **factors}


def _skipped_row(data: DataConfig, fill: tuple[float, ...]) -> Row:
    image, label = augment.blank(data.crop_size, fill)
    factors = {"photometric": augment.neutral_factors()} if data.photometric else {}
    return {"image": image, "label": label, "valid": tf.constant(False), "fingerprint": tf.zeros(8, tf.uint8), **factors}


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
    for i in range(len(samples)):
        by_size.setdefault(store_of(samples).size(samples, i), []).append(i)
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
    dataset, positions = _evaluation(samples, labels, batch_size, threads, process_index, process_count)
    table = value_table(samples.kind, labels)
    # Nothing is skipped here, so the dataset is asked for once, from its first batch on.
    batches = iterate(samples, lambda *_: dataset, positions.__getitem__, lambda i: unreadable(samples, table, i))
    return _in_layout(batches, layout)


@functools.cache
def _evaluation(
    samples: Samples, labels: LabelSet, batch_size: int, threads: int, process_index: int, process_count: int
) -> tuple[tf.data.Dataset, list[list[int]]]:
    """The batches of `eval_batches`, and the position in the list of each of their rows.

    Kept for the process, which evaluates many times: TensorFlow never lets go of the tables that a dataset's functions hold.
    """
    local = batch_size // process_count
    mine = slice(process_index * local, (process_index + 1) * local)
    plan = plan_evaluation(samples, batch_size)
    valid = np.array([i < len(batch) for batch in plan for i in range(batch_size)[mine]])
    # A padding row repeats an image of its batch: it needs that size, and is masked.
    padded = [(batch + batch[:1] * (batch_size - len(batch)))[mine] for batch in plan]
    table = value_table(samples.kind, labels)

    def sample(index: tf.Tensor, is_valid: tf.Tensor) -> Row:
        opened = store_of(samples).opened(samples, table, index)
        return {**all_of(opened), "fingerprint": opened.fingerprint, "valid": is_valid, "index": index}

    indices = np.array(padded, np.int64).reshape(-1)
    return _parallel(tf.data.Dataset.from_tensor_slices((indices, valid)), sample, threads, local), padded


def _parallel(dataset: tf.data.Dataset, sample: Callable[..., Row], threads: int, batch_size: int) -> tf.data.Dataset:
    keep_freed_memory()
    options = tf.data.Options()
    options.deterministic = True
    # The tuner may be asleep when an iteration ends, and the end waits for it: as long as the longest wait for a batch to be
    # taken, such as a compilation, and up to a minute.
    options.autotune.enabled = False
    if threads:
        options.threading.private_threadpool_size = threads
    sample = tf.autograph.experimental.do_not_convert(sample)  # no Python branch depends on a tensor
    dataset = dataset.map(sample, num_parallel_calls=threads or usable_cores())
    # Two batches wait at most: more would only hold memory, since the consumer keeps batches on the device as well.
    return dataset.batch(batch_size, drop_remainder=True).prefetch(2).with_options(options)


def _in_layout(batches: Iterator[Batch], layout: Layout) -> Iterator[Batch]:
    return ({**batch, "image": to_nchw(batch["image"])} for batch in batches) if layout == "NCHW" else batches


def to_nchw(images: np.ndarray) -> np.ndarray:
    """[n, h, w, c] -> [n, c, h, w], for frameworks that want it."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
