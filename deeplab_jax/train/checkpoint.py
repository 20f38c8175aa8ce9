"""Checkpoints on disk: `<workdir>/checkpoints/<step>`, each complete in itself. Nothing else knows orbax.

A step holds "model" (params, batch_stats) and "training" (step, opt_state) as arrays, so that evaluation reads the first
alone, and the config, label set and package version as JSON. The two latest steps and the best by mIoU are kept.
"""

import importlib.metadata
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from deeplab_jax.config import Config, from_dict, to_dict
from deeplab_jax.errors import CheckpointError, DeeplabError, one_line
from deeplab_jax.train.state import TrainState

FOLDER = "checkpoints"
# Switches that leave the arrays and their meaning as they are.
REBINDABLE = ("model.dtype", "model.output_stride", "model.dropout", "model.aux_dropout", "model.pretrained", "model.remat")
T = TypeVar("T")
_policies = ocp.training.preservation_policies


class Checkpoints:
    """The checkpoints of one run, for writing; use as a context manager, which waits for the last save.

    Args:
      workdir: the run's folder; it is made if missing.
      config: stored with every step.
    """

    def __init__(self, workdir: str, config: Config) -> None:
        self._metadata = _metadata(config)
        self._manager = _open(_absolute(workdir) / FOLDER)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest.step if self._manager.latest else None

    def save(self, state: TrainState, step: int, metrics: dict[str, float] | None) -> None:
        """Starts saving; returns when the arrays may change. A step that is there already is left as it is.

        Args:
          state: what to save.
          step: its number.
          metrics: of an evaluation at this step ("miou" decides the best), or None.
        """
        if self._manager.latest is not None and self._manager.latest.step >= step:
            return
        self._manager.save_checkpointables_async(
            step, _parts(state), metrics=metrics, custom_metadata=self._metadata, force=True
        )

    def restore(self, abstract: TrainState) -> TrainState:
        """The newest state, laid out like `abstract` (shapes with shardings).

        Raises:
          CheckpointError: there is none, or it cannot be read.
        """
        if self._manager.latest is None:
            raise CheckpointError(f"{self._manager.directory} holds no checkpoint")
        step, folder = self._manager.latest.step, self._manager.directory
        saved = _read(lambda: self._manager.checkpointables_metadata(step).metadata, folder / str(step))
        if "training" not in saved:
            raise CheckpointError(
                f"{folder.parent} holds weights without a training: name another --workdir, and start from these with "
                f"--config.model.pretrained={folder.parent}"
            )
        parts = _load(self._manager, step, _parts(abstract))
        return TrainState(**parts["model"], **parts["training"])


def differences(checkpoint: str, config: Config) -> list[str]:
    """Fields in which `config` differs from the checkpoint's, as `field: then -> now`; see `resolve`.

    Raises:
      CheckpointError: the network or the classes differ, so that the arrays would not fit or not mean the same.
    """
    rows = [row for row in _paired_leaves(to_dict(stored_config(checkpoint)), to_dict(config)) if row[1] != row[2]]
    for field, then, now in rows:
        if field == "labels.names":
            raise CheckpointError(
                f"`labels` (={config.labels.name!r}, {len(now)} classes) is not what {checkpoint} was trained on ({len(then)} "
                f"classes, {then[0]!r} to {then[-1]!r}): use its config, or another checkpoint or workdir"
            )
    for field, then, now in rows:
        if field.startswith("model.") and field not in REBINDABLE:
            raise CheckpointError(
                f"`{field}` (={now!r}) is {then!r} in {checkpoint}: set it back, or use another checkpoint or workdir"
            )
    return [f"{field}: {then!r} -> {now!r}" for field, then, now in rows]


def stored_config(checkpoint: str) -> Config:
    """The config of what `resolve` finds.

    Raises:
      CheckpointError: nothing is found, or it cannot be read.
    """
    path = resolve(checkpoint)
    with _open(path.parent) as manager:
        return _read(lambda: from_dict(manager.checkpointables_metadata(int(path.name)).custom_metadata["config"]), path)


def restore_model(checkpoint: str, like: Config) -> dict[str, Any]:
    """{"params", "batch_stats"} of a whole network as NumPy arrays, of what `resolve` finds.

    Raises:
      CheckpointError: nothing is found, it cannot be read, it is of another network or label set than `like`, or it lacks a
        classifier.
    """
    step = str(resolve(checkpoint))
    differences(step, like)
    variables = restore_variables(step)
    if "classifier" not in variables["params"]:
        raise CheckpointError(
            f"`checkpoint` (={checkpoint!r}) holds no classifier: train from it with --config.model.pretrained={checkpoint}"
        )
    return variables


def restore_variables(checkpoint: str) -> dict[str, Any]:
    """{"params", "batch_stats"} as NumPy arrays, as much as there is of a network.

    Raises:
      CheckpointError: nothing is found, or it cannot be read.
    """
    path = resolve(checkpoint)
    with _open(path.parent) as manager:
        saved = _read(lambda: manager.checkpointables_metadata(int(path.name)).metadata["model"], path)
        abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), saved)
        return _load(manager, int(path.name), {"model": abstract})["model"]


def save_model(folder: str, config: Config, variables: dict[str, Any]) -> None:
    """Writes weights without a training state as step 0 of `folder`, which then is what `resolve` wants.

    Raises:
      CheckpointError: the folder holds checkpoints already, or cannot be written.
    """
    require_empty(folder)
    try:
        with _open(_absolute(folder) / FOLDER) as manager:
            manager.save_checkpointables(0, {"model": variables}, custom_metadata=_metadata(config))
    # As when reading, the storage layers raise what they like.
    except Exception as error:
        raise CheckpointError(f"`out` (={folder!r}) cannot be written ({one_line(error)}): name another folder") from error


def require_empty(folder: str) -> None:
    """Raises CheckpointError if there is a complete checkpoint in `folder`."""
    if not (_absolute(folder) / FOLDER).exists():
        return
    with _open(_absolute(folder) / FOLDER) as manager:
        if manager.checkpoints:
            raise CheckpointError(f"`out` (={folder!r}) holds checkpoints already: name another folder, or remove it")


def resolve(checkpoint: str) -> epath.Path:
    """The folder of one step, given that folder, a run's folder (its latest step), or `<run>/best` or `<run>/latest`.

    Raises:
      CheckpointError: there is no such checkpoint.
    """
    path = _absolute(checkpoint)
    if path.name.isdigit() and path.parent.name == FOLDER and path.is_dir():
        return path
    if path.parent.name == FOLDER and path.parent.is_dir():
        steps = ", ".join(sorted((step.name for step in path.parent.iterdir() if step.name.isdigit()), key=int))
        raise CheckpointError(f"`checkpoint` (={checkpoint!r}) does not exist: that run has the steps {steps or 'none'}")
    is_alias = path.name in ("best", "latest") and not (path / FOLDER).is_dir()
    workdir, which = (path.parent, path.name) if is_alias else (path, "latest")
    folder = workdir / FOLDER
    if not folder.is_dir():
        raise CheckpointError(
            f"`checkpoint` (={checkpoint!r}) is no run: give a --workdir of train.py, or a step in its {FOLDER}/"
        )
    with _open(folder) as manager:
        steps = manager.checkpoints
    scored = [step for step in steps if step.metrics and "miou" in step.metrics]
    if which == "best" and scored:
        return folder / str(max(scored, key=lambda step: (step.metrics["miou"], step.step)).step)
    if not steps:
        raise CheckpointError(f"`checkpoint` (={checkpoint!r}) holds no complete checkpoint: train first")
    if which == "best":
        raise CheckpointError(
            f"`checkpoint` (={checkpoint!r}): no step of the run was evaluated; give {workdir} for the latest"
        )
    return folder / str(max(step.step for step in steps))


def _absolute(path: str) -> epath.Path:
    # Orbax wants absolute paths; `absolute` would take gs:// for a folder.
    return epath.Path(path) if "://" in str(path) else epath.Path(path).absolute()


def _metadata(config: Config) -> dict[str, Any]:
    return {"config": to_dict(config), "version": importlib.metadata.version("deeplab-jax")}


def _open(folder: epath.Path) -> ocp.training.Checkpointer:
    keep = [
        _policies.LatestN(2),
        _policies.BestN(get_metric_fn=lambda metrics: metrics["miou"], n=1, keep_checkpoints_without_metrics=False),
    ]
    return ocp.training.Checkpointer(folder, preservation_policy=_policies.AnyPreservationPolicy(keep))


def _parts(state: TrainState) -> dict[str, dict[str, Any]]:
    return {
        "model": {"params": state.params, "batch_stats": state.batch_stats},
        "training": {"step": state.step, "opt_state": state.opt_state},
    }


def _load(manager: ocp.training.Checkpointer, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
    return _read(lambda: manager.load_checkpointables(step, abstract), manager.directory / str(step))


def _read(load: Callable[[], T], path: epath.Path) -> T:
    try:
        return load()
    except DeeplabError:
        raise
    # Orbax raises whatever its storage layers do: ValueError, KeyError, OSError and others, over many lines.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} cannot be read ({reason[:200]}): it is damaged or incomplete; use another step"
        ) from error


def _paired_leaves(a: dict, b: dict, prefix: str = "") -> list[tuple[str, Any, Any]]:
    rows: list[tuple[str, Any, Any]] = []
    for key in a:
        both_nested = isinstance(a[key], dict) and isinstance(b.get(key), dict)
        rows += _paired_leaves(a[key], b[key], f"{prefix}{key}.") if both_nested else [(prefix + key, a[key], b.get(key))]
    return rows
