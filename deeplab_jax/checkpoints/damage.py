"""Damaged steps: told from errors of another kind, found out alike on all processes, and set aside."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
from etils import epath

from deeplab_jax.checkpoints.checksums import SUMS, damaged_files
from deeplab_jax.errors import CheckpointError, DeeplabError, one_line
from deeplab_jax.runtime.hosts import everywhere, gone
from deeplab_jax.train.state import TrainState, state_digest

FOLDER = "damaged"
T = TypeVar("T")


class DamagedError(Exception):
    """A step that cannot be used; the message is the reason."""


def agreed(check: Callable[[], T]) -> T:
    """What `check` returns, if it returns on every process; all of them must ask.

    Raises:
      DamagedError: it raised on one of them.
      DeeplabError: it raised that, which is no damage and alike on all; or another process is gone.
    """
    fault = ""
    try:
        result = check()
    except DeeplabError:
        raise
    # Orbax raises whatever its storage layers do: ValueError, KeyError, OSError and others, over many lines.
    except Exception as error:
        first = _first(error)
        if lost := gone(first):
            raise lost from error
        if isinstance(first, MemoryError | jax.errors.JaxRuntimeError):
            raise  # of the devices and not of the step, which must not be set aside for it
        fault = _reason(error)
    if not everywhere(not fault):
        raise DamagedError(fault or "another process cannot read it")
    return result


@contextlib.contextmanager
def storage_errors(what: str, advice: str) -> Iterator[None]:
    """Turns errors of the block that are not ours into a CheckpointError `what (reason): advice`.

    Raises:
      HostError: instead, if they come of another process's end.
    """
    try:
        yield
    except DeeplabError:
        raise
    except Exception as error:  # as above
        raise gone(_first(error)) or CheckpointError(f"{what} ({_reason(error)}): {advice}") from error


def _reason(error: BaseException) -> str:
    """What is behind an error, in a line."""
    first = _first(error)
    return ("no " if isinstance(first, KeyError) else "") + one_line(first)


def _first(error: BaseException) -> BaseException:
    # Orbax's own says no more than that a handler failed.
    while error.__cause__:
        error = error.__cause__
    return error


def require_unchanged(step: epath.Path) -> None:
    """Raises DamagedError if files are not what their sums say; one process looks."""
    files = damaged_files(step) if jax.process_index() == 0 else []
    if files:
        raise DamagedError(f"{len(files)} of its files do not match {SUMS}, as {files[0]}")


def require_expected(state: TrainState, step: int, digest: str | None) -> None:
    """Raises DamagedError if a state is not that of `step`, or has another digest, where one is known."""
    if int(state.step) != step:
        raise DamagedError(f"it holds the state after step {int(state.step)}")
    if digest is not None and state_digest(state) != digest:
        raise DamagedError("its state has another digest than the one that was saved")


def set_aside(steps: list[epath.Path]) -> None:
    """Moves steps out of a run's checkpoints, to `<workdir>/damaged`, beside what is there already; one process does."""
    for step in steps if jax.process_index() == 0 else []:
        folder = step.parent.parent / FOLDER
        folder.mkdir(exist_ok=True)
        taken = {path.name for path in folder.iterdir()}
        names = (step.name if n == 1 else f"{step.name}.{n}" for n in range(1, len(taken) + 2))
        step.rename(folder / next(name for name in names if name not in taken))
