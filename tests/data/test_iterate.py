import re
import subprocess
import sys

import pytest
import tensorflow as tf

from deeplab_jax.data.image_files import ImageFiles
from deeplab_jax.data.pipeline import iterate
from deeplab_jax.data.samples import Samples
from deeplab_jax.errors import DataError

SAMPLES = Samples("", tuple(f"{i}.png" for i in range(6)), (), "labelIds", "", ImageFiles())


class FakeSource:
    """A source that yields three epochs of six samples in batches of two. Batches with a broken sample fail."""

    def __init__(self, broken, fails_again=True):
        self.broken = broken
        self.fails_again = fails_again
        self.built, self.checked, self.messages = [], [], []

    def build_dataset(self, number, skipped):
        self.built.append((number, skipped))
        broken = tf.constant([-1, *(i for i in self.broken if i not in skipped)], tf.int64)

        @tf.autograph.experimental.do_not_convert  # AutoGraph warns on Python 3.13
        def sample(i):
            tf.debugging.assert_none_equal(i % 6, broken)
            return {"index": i % 6}

        return tf.data.Dataset.range(2 * number, 18).map(sample, num_parallel_calls=2).batch(2).prefetch(2)

    def list_indices(self, number):
        return [2 * number % 6, (2 * number + 1) % 6]

    def check_sample(self, i):
        self.checked.append(i)
        return DataError(f"{i}.png is broken.") if i in self.broken and self.fails_again else None

    def batches(self, **options):
        batches = iterate(
            SAMPLES,
            self.build_dataset,
            self.list_indices,
            self.check_sample,
            on_skip=lambda e: self.messages.append(str(e)),
            **options,
        )
        return (batch["index"].tolist() for batch in batches)


EPOCH = [[0, 1], [2, 3], [4, 5]]


def test_no_sample_is_checked_unless_a_batch_fails():
    source = FakeSource(broken=[])
    assert list(source.batches(max_unreadable=3)) == EPOCH * 3
    assert (source.built, source.checked) == ([(0, ())], [])


def test_each_broken_sample_is_found_once_and_its_batch_is_read_again():
    source = FakeSource(broken=[2, 3, 5])
    assert list(source.batches(max_unreadable=3)) == EPOCH * 3
    assert source.built == [(0, ()), (1, (2, 3)), (2, (2, 3, 5))]
    assert source.checked == [2, 3, 4, 5]
    assert source.messages == ["2.png is broken.", "3.png is broken.", "5.png is broken."]


def test_a_batch_is_checked_when_it_is_due_and_not_when_it_is_prefetched():
    source = FakeSource(broken=[4])
    batches = source.batches(max_unreadable=1)
    assert [next(batches), next(batches)] == EPOCH[:2]
    assert source.checked == []
    assert next(batches) == EPOCH[2]
    assert source.messages == ["4.png is broken."]


def test_after_a_late_start_broken_samples_are_found_in_batch_order():
    source = FakeSource(broken=[0, 5])
    assert list(source.batches(start=2, max_unreadable=2)) == [EPOCH[2], *EPOCH, *EPOCH]
    assert source.built == [(2, ()), (2, (5,)), (3, (5, 0))]


def test_one_broken_sample_too_many_is_an_error_that_names_it():
    source = FakeSource(broken=[0, 2, 3])
    batches = source.batches(max_unreadable=2)
    assert next(batches) == [0, 1]
    message = r"^3\.png is broken\. This is one more unreadable sample than data\.max_unreadable \(=2\) allows\.$"
    with pytest.raises(DataError, match=message) as caught:
        next(batches)
    assert caught.value.__suppress_context__
    assert source.messages == ["0.png is broken.", "2.png is broken."]


def test_the_first_broken_sample_is_an_error_if_none_may_be_skipped():
    source = FakeSource(broken=[3, 4])
    batches = source.batches()
    assert next(batches) == [0, 1]
    with pytest.raises(DataError, match=r"^3\.png is broken\.$"):
        next(batches)
    assert (source.checked, source.messages) == ([2, 3], [])


@pytest.mark.parametrize("max_unreadable", [0, 5])
def test_a_batch_that_fails_for_a_moment_is_read_once_more(max_unreadable, caplog):
    source = FakeSource(broken=[3], fails_again=False)
    build = source.build_dataset

    def fail_once(number, skipped):
        dataset = build(number, skipped)
        source.broken = []
        return dataset

    source.build_dataset = fail_once
    assert list(source.batches(max_unreadable=max_unreadable)) == EPOCH * 3
    assert source.built == [(0, ()), (1, ())]
    (message,) = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(r"Reading 2\.png, 3\.png failed \([^{}\n]+\)\. Reading it once more\.", message)


@pytest.mark.parametrize("max_unreadable", [0, 5])
def test_a_batch_that_fails_twice_ends_the_run(max_unreadable):
    source = FakeSource(broken=[3], fails_again=False)
    batches = source.batches(max_unreadable=max_unreadable)
    assert next(batches) == [0, 1]
    message = r"^Reading 2\.png, 3\.png failed twice \([^{}\n]+\), although each file can be read\. Check the disk\.$"
    with pytest.raises(DataError, match=message):
        next(batches)
    assert source.built == [(0, ()), (1, ())]
    assert source.messages == []


def test_a_batch_that_still_fails_after_skipping_ends_the_run():
    source = FakeSource(broken=[2, 3])
    build = source.build_dataset
    source.build_dataset = lambda number, skipped: build(number, tuple(i for i in skipped if i != 3))
    with pytest.raises(DataError, match="failed twice"):
        list(source.batches(max_unreadable=5))
    assert len(source.built) == 3


def test_other_errors_are_passed_on():
    source = FakeSource(broken=[])
    source.build_dataset = lambda number, skipped: 1 / 0
    with pytest.raises(ZeroDivisionError):
        next(source.batches(max_unreadable=5))


def test_a_sample_that_is_repeated_in_a_batch_counts_once():
    source = FakeSource(broken=[1])
    source.list_indices = lambda number: [1, 1]
    assert list(source.batches(max_unreadable=1)) == EPOCH * 3
    assert (source.checked, source.messages) == ([1], ["1.png is broken."])


def test_skipped_samples_are_logged_by_default(caplog):
    source = FakeSource(broken=[1])
    next(iterate(SAMPLES, source.build_dataset, source.list_indices, source.check_sample, max_unreadable=1))
    assert [record.getMessage() for record in caplog.records] == ["Skipped a sample: 1.png is broken."]


@pytest.mark.slow
def test_a_program_can_exit_while_its_pipeline_is_reading():
    code = """
import time, numpy as np, tensorflow as tf
from deeplab_jax.data.pipeline import iterate
slow = lambda x: (time.sleep(0.01), x)[1]
dataset = tf.data.Dataset.range(10**6).map(lambda i: {"i": tf.numpy_function(slow, [i], tf.int64)}, num_parallel_calls=4)
batches = iterate(None, lambda *_: dataset.prefetch(2), None, None)
next(batches)
"""
    # If the iterator were not closed at exit, the pipeline threads and the interpreter would deadlock.
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
