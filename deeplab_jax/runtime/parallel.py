"""Call a function on many items in threads, a limited number of items ahead of what is needed."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from deeplab_jax.runtime.machine import keep_freed_memory, usable_cores

AHEAD = 8  # results for each thread, so that one slow file does not stop the other threads

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_in_parallel(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Call `work` on each item in a thread pool and yield the results in order.

    The threads run in parallel because image decoding releases the GIL. Each thread works on one item at a time, which limits
    the number of images in memory. At most `AHEAD` results for each thread wait to be requested.

    Args:
      work: The function to call on each item.
      items: The items to process.
      threads: The number of threads. 0 uses one thread per usable CPU core.
    """
    keep_freed_memory()
    threads = threads or usable_cores()
    pool = ThreadPoolExecutor(threads)
    try:
        yield from map_ahead(pool, work, items, AHEAD * threads)
    finally:
        pool.shutdown(cancel_futures=True)


def map_ahead(pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], count: int) -> Iterator[Result]:
    """Yield `work(item)` for each item, in order, while the pool computes up to `count` results ahead.

    `Executor.map` does the same from Python 3.14 on, with `buffersize`.
    """
    pending: collections.deque[Future[Result]] = collections.deque()
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) > count:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
