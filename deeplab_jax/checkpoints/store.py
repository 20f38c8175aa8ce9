"""Save and restore checkpoints in `<workdir>/checkpoints/<step>`. Only this module and `manager` use orbax.

Each step is self-contained. It holds two array trees: "model" has the BatchNorm statistics and the parameters for inference,
and "training" has everything else needed to resume the run, so evaluation reads only "model". The config, including its
label set, and the package version are stored as JSON. Once a step is complete, checksums for its files are added. They are
checked before the step is read. Its scores are added when it has been evaluated. The latest steps and the best one
are kept.
"""

import contextlib
import functools
import importlib.metadata
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from deeplab_jax.buckets import COMMIT_MARKER
from deeplab_jax.checkpoints.compare import compare_configs
from deeplab_jax.checkpoints.faults import check_on_all_processes, report_errors, report_read_errors, report_save_errors
from deeplab_jax.checkpoints.folders import (
    CHECKPOINTS,
    METADATA,
    OLD_SCORES,
    DamagedError,
    Rank,
    has_checksums,
    list_steps,
    make_absolute,
    move_to_damaged,
    read_old_scores,
    read_rank,
    read_scores,
    require_empty,
    require_link_target,
    require_unchanged,
    write_checksums,
    write_scores,
)
from deeplab_jax.checkpoints.manager import hide_messages, load_trees, open_manager, start_save
from deeplab_jax.checkpoints.paths import resolve
from deeplab_jax.config import Config, from_dict, to_dict
from deeplab_jax.errors import CheckpointError, summarize
from deeplab_jax.files import advise_on_write_error
from deeplab_jax.runtime.hosts import is_true_on_any
from deeplab_jax.runtime.shared_errors import failing_together, wait_together

MODEL, TRAINING = "model", "training"
Trees = dict[str, Any]  # {MODEL: ..., TRAINING: ...}
T = TypeVar("T")


class Checkpoints:
    """Saves and restores a run's checkpoints. Use it as a context manager, which waits for the last save on exit.

    All processes in a run share the folder, so they must call the same methods in the same order.

    Args:
      workdir: The run folder, created if it does not exist.
      config: The config to store with every step.
    """

    def __init__(self, workdir: str, config: Config) -> None:
        hide_messages()
        self._config, self._metadata = config, _make_metadata(config)
        self._folder = make_absolute(workdir) / CHECKPOINTS
        with report_save_errors(self._folder):
            require_link_target(self._folder)
            self._folder.mkdir(parents=True, exist_ok=True)
            self._latest = max(list_steps(self._folder), default=None)
        # Opened at the first save, because orbax can list the steps only after `restore` has moved damaged ones aside.
        self._manager: ocp.training.Checkpointer | None = None
        self._background = ThreadPoolExecutor(max_workers=1)
        self._unfinished: Future[None] | None = None
        self._is_abandoned = False  # whether a save waits for another process, whose part has failed

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with report_save_errors(self._folder), contextlib.ExitStack() as stack:
            stack.callback(self._close)
            if kind is None:
                self._finish()
            elif self._unfinished:  # the other processes might not get here, so do not ask for their errors
                self._unfinished.result()

    def _close(self) -> None:
        self._background.shutdown(wait=not self._is_abandoned)
        if self._manager and not self._is_abandoned:
            self._manager.close()

    def steps(self) -> list[int]:
        """Return all steps visible to this process, including damaged ones."""
        return list_steps(self._folder)

    def latest_step(self) -> int | None:
        """Return the newest step. It might be damaged, because only `restore` checks for damage."""
        return self._latest

    def save(self, trees: Trees, step: int) -> None:
        """Start saving a step in the background, and return once the caller is free to modify the arrays.

        Nothing is saved if this step or a later one already exists.

        Args:
          trees: The trees to save.
          step: The step number.

        Raises:
          CheckpointError: This step or the previous one cannot be written.
        """
        if self._latest is not None and self._latest >= step:
            return
        self._finish()
        with report_save_errors(self._folder):
            train = self._config.train
            self._manager = self._manager or open_manager(self._folder, train.keep_last, train.keep_every)
            wait = start_save(self._manager, step, trees, self._metadata)
        self._unfinished = self._background.submit(_write_checksums_when_complete, wait, self._folder / str(step))
        self._latest = step

    def add_scores(self, step: int, scores: Mapping[str, Any], rank: Rank) -> None:
        """Add a saved step's scores, and the rank by which `find_best` compares it.

        Raises:
          CheckpointError: The step or its scores cannot be written.
        """
        self._finish()
        with failing_together():
            if jax.process_index() == 0:
                write_scores(self._folder / str(step), scores, rank)

    def rank_again(self, rank: Callable[[Mapping[str, Any]], Rank]) -> None:
        """Rank the evaluated steps again, if `rank` returns another rank than before. Damaged scores are left alone.

        Raises:
          CheckpointError: The scores cannot be read or written.
        """
        with failing_together():
            numbers = list_steps(self._folder) if jax.process_index() == 0 else []
            for step in (self._folder / str(number) for number in numbers):
                with contextlib.suppress(DamagedError):
                    scores = read_scores(step)
                    if scores is not None and read_rank(step) != rank(scores):
                        write_scores(step, scores, rank(scores))

    def needs_scores(self, step: int, is_due: bool) -> bool:
        """Return whether a step's scores are damaged, or missing although they are due. All processes must call this method.

        Raises:
          CheckpointError: The scores cannot be read.
        """
        is_needed = False
        with failing_together():
            if jax.process_index() == 0:
                try:
                    is_needed = read_scores(self._folder / str(step)) is None and is_due
                except DamagedError:
                    is_needed = True
        return is_true_on_any(is_needed)

    def restore(
        self,
        abstract: Trees,
        check: Callable[[int, Trees], None] = lambda step, trees: None,
        warn: Callable[[str], None] = print,
    ) -> tuple[int, Trees]:
        """Restore the newest intact step and return (step, trees). Damaged steps are moved to `<workdir>/damaged`.

        If all steps are damaged, none are moved. Otherwise, rerunning the same command would silently start a new run.

        Args:
          abstract: The shapes, dtypes and shardings of the restored trees.
          check: Function that takes a step and its trees, and raises DamagedError if the trees differ from the saved ones.
          warn: Function that is called with a warning about each damaged step.

        Raises:
          CheckpointError: There are no checkpoints, all are damaged, or the newest intact one does not fit this run: its
            network, classes or arrays differ, or it holds only weights.
        """
        restored: tuple[int, Trees] | None = None
        damaged: list[int] = []
        for step in reversed(list_steps(self._folder)):
            folder = self._folder / str(step)
            try:
                if restored is None:
                    restored = step, self._restore_step(step, abstract, check)
                else:
                    check_on_all_processes(functools.partial(_read_metadata, folder))
            except DamagedError as error:
                warn(f"skipping the damaged checkpoint {folder}: {error}")
                damaged.append(step)
        if restored is None:
            what = f"no intact checkpoint (damaged: {', '.join(map(str, damaged))})" if damaged else "no checkpoint"
            raise CheckpointError(
                f"{self._folder} contains {what}. Use a different workdir, or move this folder away to start a new run."
            )
        self._continue_from(restored[0], damaged)
        return restored

    def load(self, step: int, abstract: Trees) -> tuple[Config, Trees]:
        """Return a step's config and trees without checking its checksums.

        Args:
          step: The step number.
          abstract: The shapes, dtypes and shardings of the restored trees.

        Raises:
          CheckpointError: The step cannot be read or does not fit this run; see `restore`.
        """
        folder = self._folder / str(step)
        with report_read_errors(folder):
            self._require_resumable(folder, abstract)
            return _read_config(folder), load_trees(folder, abstract)

    def find_config_changes(self, step: int) -> list[str]:
        """Return the fields in which the run's config differs from the config stored at `step`, as `field: old -> new`."""
        return find_config_changes(str(self._folder / str(step)), self._config)

    def _restore_step(self, step: int, abstract: Trees, check: Callable[[int, Trees], None]) -> Trees:
        """Return a step's trees, or raise DamagedError on all processes if the step is damaged."""
        folder = self._folder / str(step)
        # Check the checksums first, because orbax accepts some corrupted arrays and logs thousands of lines about others.
        # Only process 0 checks the files.
        parts = (METADATA, COMMIT_MARKER, OLD_SCORES, *abstract) if jax.process_index() == 0 else ()
        check_on_all_processes(lambda: require_unchanged(folder, parts))
        # Detect a different network or optimizer before loading. Its arrays would also fail to load, but that would
        # not mean that they are damaged.
        check_on_all_processes(lambda: self._require_resumable(folder, abstract))
        trees = check_on_all_processes(lambda: load_trees(folder, abstract))
        check_on_all_processes(lambda: check(step, trees))
        return trees

    def _require_resumable(self, folder: epath.Path, abstract: Trees) -> None:
        saved, workdir = _read_metadata(folder), folder.parent.parent
        changes = compare_configs(_read_config(folder), self._config, str(folder))
        new_run = f"start a new run from these weights with a different --workdir and --config.model.pretrained={workdir}"
        if TRAINING not in saved:
            raise CheckpointError(f"{workdir} contains only weights, so it cannot be resumed. Instead, {new_run}.")
        if names := _find_mismatches(saved, abstract):
            optim = [change for change in changes if change.startswith("optim.")]
            advice = "Undo these changes" if optim else "Use the package version that wrote them"
            raise CheckpointError(
                f"The arrays in {folder} do not match the state of this run ({'; '.join([*optim, summarize(names, 3)])}). "
                f"{advice}, or {new_run}."
            )

    def _continue_from(self, step: int, damaged: list[int]) -> None:
        """Make `step` the newest step by moving damaged steps aside.

        If the saving process died before writing checksums for `step`, they are written now.
        """
        is_first = jax.process_index() == 0
        folders = [self._folder / str(each) for each in damaged] if is_first else []
        fault = f"Cannot move the damaged steps out of {self._folder}"
        with failing_together(), report_errors(fault, lambda _: "Move them by hand"):
            move_to_damaged(folders)
        if is_first and not has_checksums(self._folder / str(step)):
            self._unfinished = self._background.submit(write_checksums, self._folder / str(step))
        self._latest = step

    def _finish(self) -> None:
        """Wait until the most recent save is complete and its checksums are written. All processes must call this method."""
        unfinished, self._unfinished = self._unfinished, None
        try:
            wait_together(unfinished)
        finally:
            self._is_abandoned = unfinished is not None and not unfinished.done()


def find_config_changes(checkpoint: str, config: Config) -> list[str]:
    """Return the fields in which `config` differs from a checkpoint's config, as `field: old -> new`.

    Args:
      checkpoint: The checkpoint; see `resolve`.
      config: The config to use it with.

    Raises:
      CheckpointError: The checkpoint cannot be read, or its network or classes differ, so its arrays do not fit or have a
        different meaning.
    """
    return compare_configs(stored_config(checkpoint), config, checkpoint)


def stored_config(checkpoint: str) -> Config:
    """Return the config stored in a checkpoint.

    Args:
      checkpoint: The checkpoint; see `resolve`.

    Raises:
      CheckpointError: The checkpoint does not exist or cannot be read.
    """
    step = resolve(checkpoint)
    with report_read_errors(step):
        require_unchanged(step, [METADATA])
        return _read_config(step)


def restore_model(checkpoint: str, like: Config | None = None, *, given: str | os.PathLike[str] = "") -> dict[str, Any]:
    """Return a complete network's "params" and "batch_stats" as NumPy arrays.

    Args:
      checkpoint: The checkpoint; see `resolve`.
      like: The config that the checkpoint must be compatible with, or None to accept any network.
      given: The user's own path, for error messages, if `checkpoint` is a step that was found from it.

    Raises:
      CheckpointError: The checkpoint does not exist or cannot be read, its network or label set differs from that in
        `like`, or it has no classifier.
    """
    step = str(resolve(checkpoint))
    if like is not None:
        find_config_changes(step, like)
    variables = restore_variables(step)
    if "classifier" not in variables["params"]:
        name = os.fspath(given) or checkpoint
        raise CheckpointError(f"`checkpoint` (={name!r}) has no classifier. Train one with --config.model.pretrained={name}.")
    return variables


def restore_variables(checkpoint: str) -> dict[str, Any]:
    """Return a checkpoint's "params" and "batch_stats" as NumPy arrays, even if it holds only part of a network.

    Raises:
      CheckpointError: The checkpoint does not exist or cannot be read.
    """
    step = resolve(checkpoint)
    with report_read_errors(step):
        require_unchanged(step, [METADATA, MODEL])
        saved = ocp.metadata(step, checkpointable_name=MODEL).metadata
        abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), saved)
        return load_trees(step, {MODEL: abstract})[MODEL]


def save_model(folder: str, config: Config, variables: dict[str, Any]) -> None:
    """Write weights to `folder` as step 0, without training state. `resolve` then accepts the folder as a checkpoint.

    Raises:
      CheckpointError: The folder already contains checkpoints, or cannot be written.
    """
    require_empty(folder)
    steps = make_absolute(folder) / CHECKPOINTS
    advise = functools.partial(advise_on_write_error, otherwise="Choose a different folder")
    with report_errors(f"`out` (={folder!r}) cannot be written", advise):
        with open_manager(steps, keep_last=1, keep_every=0) as manager:
            start_save(manager, 0, {MODEL: variables}, _make_metadata(config))()
        write_checksums(steps / "0")


def _make_metadata(config: Config) -> dict[str, Any]:
    return {"config": to_dict(config), "version": importlib.metadata.version("deeplab-jax")}


def _read_config(step: epath.Path) -> Config:
    try:
        stored = json.loads((step / METADATA).read_text())["custom_metadata"]["config"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise DamagedError("its config is missing or invalid") from None
    return from_dict(stored)


def _read_metadata(step: epath.Path) -> Trees:
    """Return the metadata for a step's trees.

    This reads every file that orbax needs to open the checkpoints folder, so it fails if any of them is damaged.
    """
    read_old_scores(step)
    return dict(ocp.checkpointables_metadata(step).metadata)


def _find_mismatches(saved: Trees, abstract: Trees) -> list[str]:
    """Return the paths at which the two trees differ.

    They differ where an array is missing or has a different shape or dtype, or where only one of them has an empty node.
    """
    readable = [name for name in abstract if saved[name] is not None]  # loading reports the others as damaged
    then, now = (_describe_arrays({name: trees[name] for name in readable}) for trees in (saved, abstract))
    return sorted(path for path in then.keys() | now.keys() if then.get(path) != now.get(path))


def _describe_arrays(trees: Trees) -> dict[str, str]:
    # Orbax also stores the names of empty nodes and expects the same ones in `abstract`.
    leaves = jax.tree_util.tree_leaves_with_path(trees, is_leaf=lambda node: node is None or node in ((), [], {}))
    by_path = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    return {path: f"{leaf.dtype}{leaf.shape}" if hasattr(leaf, "shape") else "empty" for path, leaf in by_path.items()}


def _write_checksums_when_complete(wait: Callable[[], None], step: epath.Path) -> None:
    with report_save_errors(step.parent):
        wait()
    if jax.process_index() == 0:
        write_checksums(step)
