"""Checkpoints on disk: `<workdir>/checkpoints/<step>`, each complete in itself. Nothing else knows orbax.

A step holds trees of arrays by name: "model" (the parameters to use, batch_stats) and "training" (whatever else a run needs to
go on), so that evaluation reads the first alone; the config, label set and package version as JSON; and, once it is complete,
the checksums of its files, which are compared before anything is read. The two latest steps and the best by mIoU are kept.
"""

import contextlib
import functools
import importlib.metadata
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from deeplab_jax.checkpoints.compare import compare
from deeplab_jax.checkpoints.folders import (
    CHECKPOINTS,
    METRICS,
    DamagedError,
    absolute,
    has_checksums,
    move_to_damaged,
    read_metrics,
    require_empty,
    require_unchanged,
    resolve,
    steps_in,
    write_checksums,
)
from deeplab_jax.config import Config, from_dict, to_dict
from deeplab_jax.errors import CheckpointError, DeeplabError, one_line
from deeplab_jax.runtime.hosts import as_host_error, everywhere

MODEL, TRAINING = "model", "training"
Trees = dict[str, Any]  # {MODEL: ..., TRAINING: ...}
T = TypeVar("T")

_METADATA = "_CHECKPOINT_METADATA"
_policies = ocp.training.preservation_policies


class Checkpoints:
    """The checkpoints of one run, for resuming and writing; use as a context manager, which waits for the last save.

    The processes of a run share the folder, and call the same methods in the same order.

    Args:
      workdir: the run's folder; it is made if missing.
      config: stored with every step.
    """

    def __init__(self, workdir: str, config: Config) -> None:
        self._config, self._metadata = config, _make_metadata(config)
        self._folder = absolute(workdir) / CHECKPOINTS
        with _report_write_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        self._latest = max(steps_in(self._folder), default=None)
        # The first save opens it: orbax lists no step at all where it cannot list one.
        self._manager: ocp.training.Checkpointer | None = None
        self._background = ThreadPoolExecutor(max_workers=1)
        self._unfinished: Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        with _report_write_errors(self._folder), contextlib.ExitStack() as stack:
            stack.callback(self._background.shutdown)
            if self._manager:
                stack.callback(self._manager.close)
            self._finish()

    def steps(self) -> list[int]:
        """Return the steps that this process sees, damaged or not."""
        return steps_in(self._folder)

    def latest_step(self) -> int | None:
        """Return the newest step, damaged or not; `restore` finds that out."""
        return self._latest

    def save(self, trees: Trees, step: int, metrics: dict[str, float] | None) -> None:
        """Start saving; return when the arrays may change. A step that is there already is left as it is.

        Args:
          trees: what to save.
          step: its number.
          metrics: of an evaluation at this step ("miou" decides the best), or None.

        Raises:
          CheckpointError: this step, or the one before it, cannot be written.
        """
        if self._latest is not None and self._latest >= step:
            return
        with _report_write_errors(self._folder):
            self._finish()
            self._manager = self._manager or _open(self._folder)
            saving = self._manager.save_checkpointables_async(
                step, trees, metrics=metrics, custom_metadata=self._metadata, force=True
            )
        self._unfinished = self._background.submit(_write_checksums_when_complete, saving, self._folder / str(step))
        self._latest = step

    def restore(
        self,
        abstract: Trees,
        check: Callable[[int, Trees], None] = lambda step, trees: None,
        warn: Callable[[str], None] = print,
    ) -> tuple[int, Trees]:
        """Return the newest step that is not damaged, and its trees. Damaged ones are moved to `<workdir>/damaged`.

        Where all are damaged, none is moved: the same command would begin a new run, unasked.

        Args:
          abstract: shapes with shardings, which the trees get.
          check: is given a step and its trees, and raises DamagedError if they are not what was saved.
          warn: is given a line for each step that is left out.

        Raises:
          CheckpointError: there is no checkpoint, or all are damaged, or the newest good one is none of this run: its network,
            classes or arrays are others, or it holds no training.
        """
        restored: tuple[int, Trees] | None = None
        damaged: list[int] = []
        for step in reversed(steps_in(self._folder)):
            folder = self._folder / str(step)
            try:
                if restored is None:
                    restored = step, self._restore_step(step, abstract, check)
                else:
                    check_on_all_processes(functools.partial(_read_metadata, folder))
            except DamagedError as error:
                warn(f"{folder} is left out, since it is damaged: {error}")
                damaged.append(step)
        if restored is None:
            what = f"no whole checkpoint (damaged: {', '.join(map(str, damaged))})" if damaged else "no checkpoint"
            raise CheckpointError(f"{self._folder} holds {what}: use another workdir, or move that folder away to begin anew")
        self._continue_from(restored[0], damaged)
        return restored

    def load(self, step: int, abstract: Trees) -> tuple[Config, Trees]:
        """Return the config and the trees of one step, whatever its checksums say.

        Args:
          step: its number.
          abstract: shapes with shardings, which the trees get.

        Raises:
          CheckpointError: the step cannot be read, or is none of this run; see `restore`.
        """
        folder = self._folder / str(step)
        with _report_read_errors(folder):
            self._require_resumable(folder, abstract)
            return _read_config(folder), ocp.load_checkpointables(folder, abstract)

    def differences(self, step: int) -> list[str]:
        """Return the fields in which the run's config differs from that of `step`; see the function of this name."""
        return differences(str(self._folder / str(step)), self._config)

    def _restore_step(self, step: int, abstract: Trees, check: Callable[[int, Trees], None]) -> Trees:
        """Raises DamagedError on all processes alike."""
        folder = self._folder / str(step)
        # Checksums come first: orbax may take changed arrays for good ones, and says thousands of lines about the others.
        # One process reads all files; the others find no fault.
        parts = (_METADATA, "commit_success.txt", METRICS, *abstract) if jax.process_index() == 0 else ()
        check_on_all_processes(lambda: require_unchanged(folder, parts))
        # Arrays of another network or optimizer would not fit, which is no damage.
        check_on_all_processes(lambda: self._require_resumable(folder, abstract))
        trees = check_on_all_processes(lambda: ocp.load_checkpointables(folder, abstract))
        check_on_all_processes(lambda: check(step, trees))
        return trees

    def _require_resumable(self, folder: epath.Path, abstract: Trees) -> None:
        saved, workdir = _read_metadata(folder), folder.parent.parent
        changes = compare(_read_config(folder), self._config, str(folder))
        new_run = f"name another --workdir, and start from these weights with --config.model.pretrained={workdir}"
        if TRAINING not in saved:
            raise CheckpointError(f"{workdir} holds weights without a training: {new_run}")
        if names := _find_other_arrays(saved, abstract):
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
            optim = [change for change in changes if change.startswith("optim.")]
            raise CheckpointError(
                f"{folder} does not hold the arrays of this run's state ({'; '.join([*optim, shown])}): use the optimizer and "
                f"the version that wrote it, or {new_run}"
            )

    def _continue_from(self, step: int, damaged: list[int]) -> None:
        """Makes `step` the newest, and writes its checksums if the process that saved it died before it did."""
        is_first = jax.process_index() == 0
        folders = [self._folder / str(each) for each in damaged] if is_first else []
        try:
            check_on_all_processes(lambda: move_to_damaged(folders))
        except DamagedError as error:
            raise CheckpointError(f"damaged steps of {self._folder} cannot be moved away ({error}): do so by hand") from error
        if is_first and not has_checksums(self._folder / str(step)):
            self._unfinished = self._background.submit(write_checksums, self._folder / str(step))
        self._latest = step

    def _finish(self) -> None:
        """Waits until the step that was saved last is complete and has its checksums."""
        unfinished, self._unfinished = self._unfinished, None
        if unfinished:
            unfinished.result()


def differences(checkpoint: str, config: Config) -> list[str]:
    """Return the fields in which `config` differs from the checkpoint's, as `field: then -> now`; see `resolve`.

    Raises:
      CheckpointError: the network or the classes differ, so that the arrays would not fit or not mean the same.
    """
    return compare(stored_config(checkpoint), config, checkpoint)


def stored_config(checkpoint: str) -> Config:
    """Return the config of what `resolve` finds.

    Raises:
      CheckpointError: nothing is found, or it cannot be read.
    """
    step = resolve(checkpoint)
    with _report_read_errors(step):
        require_unchanged(step, [_METADATA])
        return _read_config(step)


def restore_model(checkpoint: str, like: Config | None = None) -> dict[str, Any]:
    """Return {"params", "batch_stats"} of a whole network as NumPy arrays, of what `resolve` finds.

    Args:
      checkpoint: see `resolve`.
      like: the config to use it with; None for its own.

    Raises:
      CheckpointError: nothing is found, it cannot be read, it is of another network or label set than `like`, or it lacks a
        classifier.
    """
    step = str(resolve(checkpoint))
    if like is not None:
        differences(step, like)
    variables = restore_variables(step)
    if "classifier" not in variables["params"]:
        raise CheckpointError(
            f"`checkpoint` (={checkpoint!r}) holds no classifier: train from it with --config.model.pretrained={checkpoint}"
        )
    return variables


def restore_variables(checkpoint: str) -> dict[str, Any]:
    """Return {"params", "batch_stats"} as NumPy arrays, as much as there is of a network.

    Raises:
      CheckpointError: nothing is found, or it cannot be read.
    """
    step = resolve(checkpoint)
    with _report_read_errors(step):
        require_unchanged(step, [_METADATA, MODEL])
        saved = ocp.metadata(step, checkpointable_name=MODEL).metadata
        abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), saved)
        return ocp.load_checkpointables(step, {MODEL: abstract})[MODEL]


def save_model(folder: str, config: Config, variables: dict[str, Any]) -> None:
    """Write weights without a training as step 0 of `folder`, which then is what `resolve` wants.

    Raises:
      CheckpointError: the folder holds checkpoints already, or cannot be written.
    """
    require_empty(folder)
    steps = absolute(folder) / CHECKPOINTS
    with _report_errors(f"`out` (={folder!r}) cannot be written", "name another folder"):
        with _open(steps) as manager:
            manager.save_checkpointables(0, {MODEL: variables}, custom_metadata=_make_metadata(config))
        write_checksums(steps / "0")


def check_on_all_processes(check: Callable[[], T]) -> T:
    """Return what `check` returns, if it returns on every process; all of them must call this.

    Raises:
      DamagedError: it raised on one of them.
      DeeplabError: it raised that, which is no damage and alike on all; or another process ended.
    """
    fault = ""
    try:
        result = check()
    except DeeplabError:
        raise
    # Orbax raises whatever its storage layers do: ValueError, KeyError, OSError and others, over many lines.
    except Exception as error:
        cause = _find_cause(error)
        if lost := as_host_error(cause):
            raise lost from error
        if isinstance(cause, MemoryError | jax.errors.JaxRuntimeError):
            raise  # of the devices and not of the step, which must not be moved away for it
        fault = _describe_cause(error)
    if not everywhere(not fault):
        raise DamagedError(fault or "another process cannot read it")
    return result


@contextlib.contextmanager
def _report_errors(what: str, advice: str) -> Iterator[None]:
    """Turns errors of the block that are not ours into a CheckpointError `what (reason): advice`.

    Raises:
      HostError: instead, if they come of another process's end.
    """
    try:
        yield
    except DeeplabError:
        raise
    except Exception as error:  # as above
        raise as_host_error(_find_cause(error)) or CheckpointError(f"{what} ({_describe_cause(error)}): {advice}") from error


def _report_write_errors(folder: epath.Path) -> contextlib.AbstractContextManager[None]:
    return _report_errors(f"{folder} cannot be written", "fix this, and the same command resumes from the step before")


def _report_read_errors(step: epath.Path) -> contextlib.AbstractContextManager[None]:
    return _report_errors(f"{step} cannot be read", "it is damaged or incomplete; use another step")


def _describe_cause(error: BaseException) -> str:
    cause = _find_cause(error)
    return ("no " if isinstance(cause, KeyError) else "") + one_line(cause)


def _find_cause(error: BaseException) -> BaseException:
    # Orbax's own says no more than that a handler failed.
    while error.__cause__:
        error = error.__cause__
    return error


def _make_metadata(config: Config) -> dict[str, Any]:
    return {"config": to_dict(config), "version": importlib.metadata.version("deeplab-jax")}


def _read_config(step: epath.Path) -> Config:
    try:
        stored = json.loads((step / _METADATA).read_text())["custom_metadata"]["config"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise DamagedError("its config is missing or not legible") from None
    return from_dict(stored)


def _read_metadata(step: epath.Path) -> Trees:
    """Return what a step says it holds; raise whatever would keep orbax from opening the folder that it is in."""
    read_metrics(step)
    return dict(ocp.checkpointables_metadata(step).metadata)


def _find_other_arrays(saved: Trees, abstract: Trees) -> list[str]:
    """Return the paths of arrays, or of what holds none, that differ in presence, shape or type."""
    legible = [name for name in abstract if saved[name] is not None]  # loading reports what orbax cannot read
    then, now = (_describe_arrays({name: trees[name] for name in legible}) for trees in (saved, abstract))
    return sorted(path for path in then.keys() | now.keys() if then.get(path) != now.get(path))


def _describe_arrays(trees: Trees) -> dict[str, str]:
    # Orbax stores names where there are no arrays, and wants the same ones back.
    leaves = jax.tree_util.tree_leaves_with_path(trees, is_leaf=lambda node: node is None or node in ((), [], {}))
    by_path = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    return {path: f"{leaf.dtype}{leaf.shape}" if hasattr(leaf, "shape") else "empty" for path, leaf in by_path.items()}


def _open(folder: epath.Path) -> ocp.training.Checkpointer:
    """Opens it for writing; what a killed save left is removed."""
    keep = [
        _policies.LatestN(2),
        _policies.BestN(get_metric_fn=lambda metrics: metrics["miou"], n=1, keep_checkpoints_without_metrics=False),
    ]
    policy = _policies.AnyPreservationPolicy(keep)
    return ocp.training.Checkpointer(folder, preservation_policy=policy, cleanup_tmp_directories=True)


def _write_checksums_when_complete(saving: Any, step: epath.Path) -> None:
    saving.result()
    if jax.process_index() == 0:
        write_checksums(step)
