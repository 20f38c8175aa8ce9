import threading
import time

import pytest

from deeplab_jax.errors import DataError
from deeplab_jax.runtime.parallel import AHEAD, run_in_parallel


def test_items_are_processed_by_the_given_number_of_threads():
    barrier = threading.Barrier(3)

    def work(_):
        barrier.wait(30)  # returns only once three threads are waiting
        return threading.get_ident()

    assert len(set(run_in_parallel(work, range(30), 3))) == 3
    assert list(run_in_parallel(str, range(5), 0)) == list("01234")


def test_few_results_wait_to_be_requested():
    done = []
    results = run_in_parallel(done.append, range(1000), 2)
    next(results)
    time.sleep(0.2)
    assert len(done) <= 2 * AHEAD + 1


def test_pending_work_is_cancelled_after_the_first_error():
    started = []

    def work(i):
        started.append(i)
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        list(run_in_parallel(work, range(100_000), 1))
    assert len(started) < 100_000
