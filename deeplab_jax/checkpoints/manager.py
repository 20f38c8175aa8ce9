"""Open orbax's manager of a checkpoints folder, with the steps to keep and with errors that end a save at once.

Orbax has one current operation per process. While a save runs, the start of another save or load, of this run or of one in
another thread, would let the first one write files to a folder that does not exist yet. So they take turns.
"""

import dataclasses
import functools
import itertools
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath
from orbax.checkpoint import multihost
from orbax.checkpoint import v1 as ocp

from deeplab_jax.checkpoints.folders import find_best
from deeplab_jax.errors import CheckpointError

_policies = ocp.training.preservation_policies
_turn = threading.Lock()


def open_manager(folder: epath.Path, keep_last: int, keep_every: int) -> ocp.training.Checkpointer:
    """Open the checkpoints folder for writing, and remove leftovers from interrupted saves.

    Args:
      folder: The checkpoints folder.
      keep_last: How many of the latest steps to keep. The best one is kept as well, and so are links to steps.
      keep_every: The number of steps between those that are kept forever, or 0 to keep no others.
    """
    hide_messages()
    kept = [_policies.LatestN(keep_last), _KeepBest(folder), _KeepLinked(folder)]
    kept += [_KeepEvery(keep_every)] if keep_every else []
    policy = _policies.AnyPreservationPolicy(kept)
    # Otherwise, each device would write a slice of each array, and the first save would compile a program for each shape.
    whole_arrays = ocp.options.ArrayOptions.Saving(use_replica_parallel=False)
    with ocp.Context(async_options=_AsyncOptions(), array_options=ocp.options.ArrayOptions(saving=whole_arrays)):
        return ocp.training.Checkpointer(folder, preservation_policy=policy, cleanup_tmp_directories=True)


def start_save(
    manager: ocp.training.Checkpointer, step: int, trees: Mapping[str, Any], metadata: Mapping[str, Any]
) -> Callable[[], None]:
    """Start saving a step, once no other save or load runs in this process.

    Returns:
      A function that waits until the step is complete, and raises the errors of the save. It must be called once.
    """
    _turn.acquire()
    try:
        saving = manager.save_checkpointables_async(step, trees, custom_metadata=metadata, force=True)
    except BaseException:
        _turn.release()
        raise

    def wait() -> None:
        try:
            saving.result()
        finally:
            _turn.release()

    return wait


def load_trees(step: epath.Path, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Load a step's trees with the given shapes, dtypes and shardings, once no save or other load runs in this process."""
    with _turn:
        return ocp.load_checkpointables(step, abstract)


class _AsyncOptions(ocp.options.AsyncOptions):
    """Options that make a process report at once that its part of a save has failed."""

    def v0(self) -> Any:
        return dataclasses.replace(super().v0(), barrier_sync_fn=_wait_unless_failing)


def _wait_unless_failing(**barrier: Any) -> None:
    # After an error, orbax would first wait for the other processes, which wait for files of this process.
    if sys.exc_info()[1] is None:
        multihost.get_barrier_sync_fn()(**barrier)


class _KeepEvery:
    """Keeps the first step at or after each multiple of `every`."""

    def __init__(self, every: int) -> None:
        self._every = every

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        counts = [checkpoint.step // self._every for checkpoint in checkpoints]
        return [count > previous for previous, count in itertools.pairwise([0, *counts])]


class _KeepBest:
    """Keeps the best step, and every step if a score is damaged, because the best one is unknown then."""

    def __init__(self, folder: epath.Path) -> None:
        self._folder = folder

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        steps = [self._folder / str(checkpoint.step) for checkpoint in checkpoints]
        try:
            best = find_best(steps)
        except CheckpointError:
            return [True] * len(steps)
        return [step == best for step in steps]


class _KeepLinked:
    """Keeps the steps that the user has moved elsewhere and left a link to, which orbax could not remove."""

    def __init__(self, folder: epath.Path) -> None:
        self._folder = folder

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        return [os.path.islink(self._folder / str(checkpoint.step)) for checkpoint in checkpoints]


@functools.cache
def hide_messages() -> None:
    """Hide the tracebacks that orbax and TensorStore print about a failed write, which we report in one line.

    Both do so in threads that can outlive the save. Orbax's warnings about a step that a killed run has removed in part are
    hidden too. The next save removes the rest.
    """
    logging.getLogger("absl").addFilter(lambda record: "/orbax/" not in record.pathname.replace("\\", "/"))
    show = sys.unraisablehook

    def show_others(report: "sys.UnraisableHookArgs") -> None:
        # TensorStore's threads report that nobody waits for their other writes any more.
        if str(report.exc_value) != "Event loop is closed":
            show(report)

    sys.unraisablehook = show_others
