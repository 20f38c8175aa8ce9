import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplab_jax.config import DataConfig
from deeplab_jax.data.find import find_split
from deeplab_jax.data.image_files import ImageFiles
from deeplab_jax.data.order import arrange_rows, make_order, shuffle_index
from deeplab_jax.data.pipeline import train_batches
from deeplab_jax.data.samples import Samples
from deeplab_jax.errors import ConfigError
from deeplab_jax.labels import CITYSCAPES

COUNTS = st.lists(st.integers(1, 12), min_size=2, max_size=3)


def join(sizes):
    names = tuple(f"{split}/{i}.png" for split, size in enumerate(sizes) for i in range(size))
    return Samples("root", names, names, "labelIds", "here", ImageFiles(), part_sizes=tuple(sizes))


def order(sizes, counts, steps, seed=3):
    """Return the list positions in the first steps, [steps, batch]."""
    data = DataConfig(train_split="+".join("abc"[: len(sizes)]), mix=tuple(counts), batch_size=sum(counts))
    choose = make_order(join(sizes), data, seed)
    numbers = tf.range(steps * sum(counts), dtype=tf.int64)
    return tf.map_fn(choose, numbers).numpy().reshape(steps, -1)


def test_the_arrangement_for_equal_counts_is_the_thue_morse_sequence():
    assert arrange_rows((4, 4)) == [0, 1, 1, 0, 1, 0, 0, 1]


@pytest.mark.parametrize("counts", [(4, 4, 4), (8, 8, 8), (1, 1, 2), (6, 3, 3), (8, 4, 12), (3, 3, 3, 3)])
def test_no_device_or_micro_batch_has_more_than_one_sample_too_many(counts):
    rows = np.array(arrange_rows(counts))
    for parts in (n for n in range(1, len(rows) + 1) if len(rows) % n == 0):
        for each in (rows.reshape(parts, -1), rows.reshape(-1, parts).T):
            for split, count in enumerate(counts):
                assert (each == split).sum(1).max() <= math.ceil(count / parts) + 1
            # Of at least four samples, not all are from the same split.
            assert each.shape[1] < 4 or (each.min(1) < each.max(1)).all()


@settings(deadline=None)
@given(COUNTS)
def test_every_device_and_micro_batch_has_its_share_of_each_split(counts):
    rows = np.array(arrange_rows(counts))
    assert np.bincount(rows, minlength=len(counts)).tolist() == counts
    for parts in (n for n in range(1, len(rows) + 1) if len(rows) % n == 0):
        for each in (rows.reshape(parts, -1), rows.reshape(-1, parts).T):  # devices, then micro-batches
            for split, count in enumerate(counts):
                # A share that is not whole is rounded up or down. One more sample is tolerated for two splits, and two more for
                # three, because the rows are chosen one by one (see `arrange_rows`).
                assert np.abs((each == split).sum(1) - count / parts).max() < len(counts)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)  # each one traces a TensorFlow function
@given(COUNTS.flatmap(lambda counts: st.tuples(st.just(counts), st.lists(st.integers(1, 20), min_size=3, max_size=3))))
def test_every_batch_has_the_exact_share_and_every_epoch_each_sample_once(case):
    counts, sizes = case[0], case[1][: len(case[0])]
    positions = order(sizes, counts, steps=7)
    starts = np.cumsum([0, *sizes])
    for split, (count, size) in enumerate(zip(counts, sizes, strict=True)):
        taken = [[p for p in row if starts[split] <= p < starts[split + 1]] for row in positions]
        assert {len(row) for row in taken} == {count}
        consumed = np.concatenate(taken)
        for epoch in consumed[: len(consumed) // size * size].reshape(-1, size):
            assert sorted(epoch) == list(range(starts[split], starts[split + 1]))


def test_splits_of_the_same_size_are_shuffled_differently():
    first, second = (order([50, 50], [1, 1], steps=50).T % 50)[:, np.arange(50)]
    assert (first != second).mean() > 0.8


def test_without_a_ratio_the_order_is_that_of_earlier_versions():
    expected = [[3, 0, 1, 4, 5, 8, 2, 6, 9, 7], [0, 4, 8, 5, 7, 1, 6, 3, 2, 9]]
    choose = make_order(join([4, 6]), DataConfig(train_split="a+b", batch_size=5), seed=5)
    assert [[int(choose(tf.constant(10 * epoch + i, tf.int64))) for i in range(10)] for epoch in (1, 2)] == expected
    assert int(shuffle_index(tf.constant(10, tf.int64), 10, 5)) == 3


def test_a_mixed_batch_is_the_same_on_any_number_of_processes_and_after_a_restart(street_scenes):
    data = DataConfig(root=str(street_scenes), train_split="train+val", mix=(3, 1), batch_size=4, crop_size=(16, 16))
    samples = find_split(data, data.train_split)
    assert samples.part_sizes == (6, 3)

    def batches(start=0, **hosts):
        return list(train_batches(samples, CITYSCAPES, data, (1, 2, 3), seed=5, start_step=start, steps=4, **hosts))

    run = batches()
    assert all((batch["index"] >= 6).sum() == 1 for batch in run)
    halves = [batches(2, process_index=i, process_count=2) for i in (0, 1)]
    for batch, *parts in zip(run[2:], *halves, strict=True):
        for name, values in batch.items():
            np.testing.assert_array_equal(values, np.concatenate([part[name] for part in parts]))


def test_a_ratio_for_other_splits_is_refused():
    with pytest.raises(ConfigError, match=r"`data.mix` \(=\(1, 1\)\) has 2 shares, but here gives 1 joined splits"):
        make_order(join([4]), DataConfig(mix=(1, 1)), 0)


def test_only_the_first_split_is_held_out(tmp_path):
    from PIL import Image

    for split, count in (("train", 10), ("pseudo", 20)):
        for folder in ("input", "target"):
            (tmp_path / folder / split).mkdir(parents=True)
            for i in range(count):
                Image.new("L", (2, 2)).save(tmp_path / folder / split / f"{i}.png")
    alone = DataConfig(root=str(tmp_path), val_share=0.2)
    mixed = DataConfig(root=str(tmp_path), val_share=0.2, train_split="train+pseudo", mix=(1, 1))
    held, rest = find_split(mixed, "val"), find_split(mixed, "train+pseudo")
    assert held.images == find_split(alone, "val").images
    assert (held.part_sizes, rest.part_sizes) == ((2, 0), (8, 20))
    assert rest.images[:8] == find_split(alone, "train").images
