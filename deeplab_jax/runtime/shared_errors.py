"""Raise an error of one process on all processes of the run, so that none of them waits for one that has stopped."""

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import Future, wait

from deeplab_jax.errors import DeeplabError, HostError
from deeplab_jax.runtime.hosts import gather_bytes, is_true_on_all, is_true_on_any

_WAIT_SECONDS = 0.5  # how often `wait_together` asks for errors of the other processes


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """If the block raises a DeeplabError on at least one process, raise the first one's error on all processes.

    All processes must enter the block, even if only one has work to do. The block must not exchange values with the other
    processes, because a process that fails would miss the exchange.

    Raises:
      DeeplabError: The block raised this error on this process or another one.
    """
    error = None
    try:
        yield
    except HostError:
        raise  # nothing can be exchanged with a lost process
    except DeeplabError as reason:
        error = reason
    if is_true_on_any(error is not None):
        raise _find_first(error)


def wait_together(work: Future[None] | None) -> None:
    """Wait until every process's work is done. All processes must call this. A process without work passes None.

    If one process's work fails, the others stop waiting for theirs, because it might never end.

    Raises:
      DeeplabError: The work of at least one process raised this error.
    """
    is_done = False
    while not is_done:
        with failing_together():
            is_ready = work is None or bool(wait([work], timeout=_WAIT_SECONDS).done)
            if work and is_ready:
                work.result()
        is_done = is_true_on_all(is_ready)


def _find_first(error: DeeplabError | None) -> DeeplabError:
    """Return the error of the first process that has one."""
    own = json.dumps([type(error).__name__, *error.args]).encode() if error else b""
    first = next(filter(None, gather_bytes(own)))
    if error and first == own:
        return error
    name, *args = json.loads(first)
    return _find_kinds(DeeplabError).get(name, DeeplabError)(*args)


def _find_kinds(base: type[DeeplabError]) -> dict[str, type[DeeplabError]]:
    """Return a class and all classes derived from it, by name."""
    kinds = {base.__name__: base}
    for kind in base.__subclasses__():
        kinds |= _find_kinds(kind)
    return kinds
