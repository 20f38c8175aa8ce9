import subprocess
import sys

import pytest
import tensorflow as tf

from deeplab_jax.data.image_files import ImageFiles
from deeplab_jax.data.pipeline import iterate
from deeplab_jax.data.samples import Samples
from deeplab_jax.errors import DataError

SAMPLES = Samples("", tuple(f"{i}.png" for i in range(6)), (), "labelIds", "", ImageFiles())


class Numbers:
    """Batches of two positions out of three passes over the list, which fail where a position is broken."""

    def __init__(self, broken, fails_again=True):
        self.broken = broken
        self.fails_again = fails_again
        self.built, self.checked, self.told = [], [], []

    def dataset(self, number, skipped):
        self.built.append((number, skipped))
        left = tf.constant([-1, *(i for i in self.broken if i not in skipped)], tf.int64)

        def sample(i):
            tf.debugging.assert_none_equal(i % 6, left)
            return {"index": i % 6}

        return tf.data.Dataset.range(2 * number, 18).map(sample, num_parallel_calls=2).batch(2).prefetch(2)

    def rows(self, number):
        return [2 * number % 6, (2 * number + 1) % 6]

    def check(self, i):
        self.checked.append(i)
        return DataError(f"{i}.png is broken") if i in self.broken and self.fails_again else None

    def batches(self, **options):
        batches = iterate(SAMPLES, self.dataset, self.rows, self.check, on_skip=lambda e: self.told.append(str(e)), **options)
        return (batch["index"].tolist() for batch in batches)


PASS = [[0, 1], [2, 3], [4, 5]]


def test_nothing_is_checked_while_nothing_is_wrong():
    numbers = Numbers(broken=[])
    assert list(numbers.batches(max_unreadable=3)) == PASS * 3
    assert (numbers.built, numbers.checked) == ([(0, ())], [])


def test_broken_samples_are_found_once_each_and_the_dataset_goes_on_from_their_batch():
    numbers = Numbers(broken=[2, 3, 5])
    assert list(numbers.batches(max_unreadable=3)) == PASS * 3
    assert numbers.built == [(0, ()), (1, (2, 3)), (2, (2, 3, 5))]
    assert numbers.checked == [2, 3, 4, 5]
    assert numbers.told == ["2.png is broken", "3.png is broken", "5.png is broken"]


def test_a_batch_is_checked_when_it_is_its_turn_not_when_it_is_prefetched():
    numbers = Numbers(broken=[4])
    batches = numbers.batches(max_unreadable=1)
    assert [next(batches), next(batches)] == PASS[:2]
    assert numbers.checked == []
    assert next(batches) == PASS[2]
    assert numbers.told == ["4.png is broken"]


def test_a_late_start_meets_the_samples_in_the_order_of_its_batches():
    numbers = Numbers(broken=[0, 5])
    assert list(numbers.batches(start=2, max_unreadable=2)) == [PASS[2], *PASS, *PASS]
    assert numbers.built == [(2, ()), (2, (5,)), (3, (5, 0))]


def test_one_more_than_allowed_is_an_error_that_names_it():
    numbers = Numbers(broken=[0, 2, 3])
    batches = numbers.batches(max_unreadable=2)
    assert next(batches) == [0, 1]
    message = r"^3\.png is broken; it is one more than data\.max_unreadable \(=2\) allows$"
    with pytest.raises(DataError, match=message) as caught:
        next(batches)
    assert caught.value.__suppress_context__
    assert numbers.told == ["0.png is broken", "2.png is broken"]


def test_where_none_is_allowed_the_first_is_the_error():
    numbers = Numbers(broken=[3, 4])
    batches = numbers.batches()
    assert next(batches) == [0, 1]
    with pytest.raises(DataError, match=r"^3\.png is broken$"):
        next(batches)
    assert (numbers.checked, numbers.told) == ([2, 3], [])


@pytest.mark.parametrize("max_unreadable", [0, 5])
def test_an_error_that_does_not_come_back_is_no_broken_sample(max_unreadable):
    numbers = Numbers(broken=[3], fails_again=False)
    batches = numbers.batches(max_unreadable=max_unreadable)
    assert next(batches) == [0, 1]
    with pytest.raises(DataError, match=r"^reading 2\.png, 3\.png failed once \([^{}\n]+\) and then worked: check the disk$"):
        next(batches)
    assert numbers.built == [(0, ())]
    assert numbers.told == []


def test_a_batch_that_fails_without_its_broken_samples_ends_the_run():
    numbers = Numbers(broken=[2, 3])
    build = numbers.dataset
    numbers.dataset = lambda number, skipped: build(number, tuple(i for i in skipped if i != 3))
    with pytest.raises(DataError, match="failed once"):
        list(numbers.batches(max_unreadable=5))
    assert len(numbers.built) == 2


def test_other_errors_pass():
    numbers = Numbers(broken=[])
    numbers.dataset = lambda number, skipped: 1 / 0
    with pytest.raises(ZeroDivisionError):
        next(numbers.batches(max_unreadable=5))


def test_a_sample_that_a_batch_repeats_counts_once():
    numbers = Numbers(broken=[1])
    numbers.rows = lambda number: [1, 1]
    assert list(numbers.batches(max_unreadable=1)) == PASS * 3
    assert (numbers.checked, numbers.told) == ([1], ["1.png is broken"])


def test_python_s_log_names_the_skipped_unless_told_otherwise(caplog):
    numbers = Numbers(broken=[1])
    next(iterate(SAMPLES, numbers.dataset, numbers.rows, numbers.check, max_unreadable=1))
    assert [record.getMessage() for record in caplog.records] == ["skipped: 1.png is broken"]


def test_a_program_ends_while_its_pipeline_reads():
    code = """
import time, numpy as np, tensorflow as tf
from deeplab_jax.data.pipeline import iterate
slow = lambda x: (time.sleep(0.01), x)[1]
dataset = tf.data.Dataset.range(10**6).map(lambda i: {"i": tf.numpy_function(slow, [i], tf.int64)}, num_parallel_calls=4)
batches = iterate(None, lambda *_: dataset.prefetch(2), None, None)
next(batches)
"""
    # Without an end to it, threads of the pipeline and the interpreter would wait for each other.
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
