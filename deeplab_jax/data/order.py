"""Choose which training sample is in which row of which batch."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import tensorflow as tf

from deeplab_jax.config import DataConfig, count_by_split
from deeplab_jax.data.samples import Samples
from deeplab_jax.errors import ConfigError


def make_order(samples: Samples, data: DataConfig, seed: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return a function that takes a run's sample number (int64) and returns the sample's position in the list.

    Row r in the global batch for step s has the sample number s * batch_size + r.

    Without `data.mix`, the list is shuffled for each epoch. With `data.mix`, each joined split is shuffled by itself and has
    epochs of its own, and a row always takes its sample from the same split (see `arrange_rows`).

    Raises:
      ConfigError: `data.mix` does not have one share for each of the joined splits.
    """
    if not data.mix:
        return lambda k: shuffle_index(k, len(samples), seed)
    counts, sizes = count_by_split(data), samples.part_sizes
    if len(sizes) != len(counts):
        raise ConfigError(
            f"`data.mix` (={data.mix!r}) has {len(counts)} shares, but {samples.source} gives {len(sizes)} joined splits. "
            "Give one share for each split."
        )
    rows = arrange_rows(counts)
    ranks = [rows[:r].count(split) for r, split in enumerate(rows)]
    starts = list(itertools.accumulate(sizes, initial=0))[:-1]

    def choose(k: tf.Tensor) -> tf.Tensor:
        step, row = k // len(rows), k % len(rows)
        split = _look_up(rows, row)
        number = step * _look_up(counts, split) + _look_up(ranks, row)
        return _look_up(starts, split) + shuffle_index(number, _look_up(sizes, split), seed, split, len(sizes))

    return choose


def _look_up(values: Sequence[int], index: tf.Tensor) -> tf.Tensor:
    return tf.constant(values, tf.int64)[index]


def shuffle_index(
    k: tf.Tensor, num_samples: int | tf.Tensor, seed: int, split: int | tf.Tensor = 0, num_splits: int = 1
) -> tf.Tensor:
    """Return the position of a split's sample number `k` (int64). Each epoch is a different permutation of the split.

    Args:
      k: The number of the sample among all that the run takes from this split.
      num_samples: The number of samples in the split.
      seed: The run's seed.
      split: The index of the split, because splits of the same size must not have the same permutations.
      num_splits: The number of splits.
    """
    epoch = k // num_samples
    # TensorFlow uses only the lower 32 bits of each number.
    key = tf.stack([tf.cast(seed, tf.int64), epoch * num_splits + split])
    return tf.random.experimental.index_shuffle(k % num_samples, key, num_samples - 1)


def arrange_rows(counts: Sequence[int]) -> list[int]:
    """Return the split of each row of a batch, such as [0, 1, 1, 0] for the counts (2, 2).

    Devices hold consecutive rows, and micro-batch i of n holds the rows r with r % n = i. Whatever the numbers of devices and
    micro-batches, each of them should have about its share of every split. Rows are therefore filled one by one, each from the
    split that least raises the sum of (samples - share)^4 over all devices and micro-batches to which the row can belong, where
    the share refers to the rows filled so far. Squares would allow one of these to be far from its share. For equal counts of
    two splits, this is the Thue-Morse sequence.

    For two splits with counts up to 12, no device or micro-batch has more than one sample of a split above its share, rounded
    up. With three splits, it can be two samples, for 21 of the 1,728 combinations of counts, such as (4, 6, 10).

    Args:
      counts: The number of rows of each split.
    """
    size = sum(counts)
    divisors = [n for n in range(1, size + 1) if size % n == 0]
    rows: list[int] = []
    used: Counter[tuple[str, int, int, int]] = Counter()  # rows by (kind of part, number of parts, part, split)
    for row in range(size):
        parts = [("device", n, row * n // size) for n in divisors] + [("micro-batch", n, row % n) for n in divisors]
        filled = {part: 1 + sum(used[*part, split] for split in range(len(counts))) for part in parts}
        raised = {}
        for split, count in enumerate(counts):
            if rows.count(split) < count:
                excess = [size * used[*part, split] - count * filled[part] for part in parts]  # in units of 1 / size
                raised[split] = sum((each + size) ** 4 - each**4 for each in excess)
        chosen = min(raised, key=lambda split: raised[split])
        rows.append(chosen)
        used.update((*part, chosen) for part in parts)
    return rows
