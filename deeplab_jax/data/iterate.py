"""From datasets to NumPy batches where files may be broken: which one it is, and how a training goes on without it."""

import atexit
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tensorflow as tf

from deeplab_jax.data.lists import Samples
from deeplab_jax.data.read import reason
from deeplab_jax.errors import DataError


class _Batches:
    """A dataset's batches, which end with the program.

    Datasets call Python from threads of their own. Those that do so while the interpreter goes down wait for ever, and it for
    them: what is left of an iteration must be gone before.
    """

    def __init__(self, dataset: tf.data.Dataset) -> None:
        self._iterator = dataset.as_numpy_iterator()
        _OPEN.add(self)

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._iterator)

    def close(self) -> None:
        """Waits for what is being read."""
        self._iterator = None


_OPEN: weakref.WeakSet[_Batches] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for batches in list(_OPEN):
        batches.close()


def log_skipped(error: DataError) -> None:
    """Names the sample in Python's log."""
    logging.getLogger(__name__).warning("skipped: %s", error)


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
    """Batches from number `start` on. A TensorFlow error becomes that of the sample which causes it.

    Args:
      samples: the list.
      dataset: of the batches from a given number on, in which the samples at the given positions are not read.
      rows: positions in the list of a batch's samples.
      check: what is wrong with the sample at a position; None if nothing is.
      start: number of the first batch.
      max_unreadable: samples that may be skipped before one more is an error.
      on_skip: told once of each skipped sample.

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
    """`known`, and those of `rows` that cannot be read.

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
