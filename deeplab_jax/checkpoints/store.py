"""Checkpoints on disk: `<workdir>/checkpoints/<step>`, each complete in itself. Nothing else knows orbax.

A step holds "model" (the parameters to use, batch_stats) and "training" (step, opt_state, and the raw parameters where those
to use are their average) as arrays, so that evaluation reads the first alone; the config, label set and package version as
JSON; and, once it is complete, the sums of its files. The two latest steps and the best by mIoU are kept.
"""

import contextlib
import importlib.metadata
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from deeplab_jax.checkpoints.checksums import is_sealed, write_seal
from deeplab_jax.checkpoints.damage import DamagedError, agreed, require_expected, require_unchanged, set_aside, storage_errors
from deeplab_jax.checkpoints.folders import FOLDER, absolute, metrics_of, require_empty, resolve, steps_in
from deeplab_jax.config import Config, from_dict, to_dict
from deeplab_jax.config.compare import compare, require_same_averaging
from deeplab_jax.errors import CheckpointError
from deeplab_jax.train.state import TrainState, from_parts, to_parts

_policies = ocp.training.preservation_policies


class Checkpoints:
    """The checkpoints of one run, for resuming and writing; use as a context manager, which waits for the last save.

    The processes of a run share the folder, and call the same methods in the same order.

    Args:
      workdir: the run's folder; it is made if missing.
      config: stored with every step.
    """

    def __init__(self, workdir: str, config: Config) -> None:
        self._config = config
        self._folder = absolute(workdir) / FOLDER
        with _writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        self._latest = max(steps_in(self._folder), default=None)
        # The first save opens it: orbax lists no step at all where it cannot list one.
        self._manager: ocp.training.Checkpointer | None = None
        self._sealer = ThreadPoolExecutor(max_workers=1)
        self._sealing: Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        with _writing(self._folder), contextlib.ExitStack() as stack:
            stack.callback(self._sealer.shutdown)
            if self._manager:
                stack.callback(self._manager.close)
            self._finish()

    def steps(self) -> list[int]:
        """The steps that this process sees, whole or not."""
        return steps_in(self._folder)

    def latest_step(self) -> int | None:
        """The newest step, whole or not; `restore` finds that out."""
        return self._latest

    def save(self, state: TrainState, step: int, metrics: dict[str, float] | None) -> None:
        """Starts saving; returns when the arrays may change. A step that is there already is left as it is.

        Args:
          state: what to save.
          step: its number, which is that of the state.
          metrics: of an evaluation at this step ("miou" decides the best), or None.

        Raises:
          CheckpointError: this step, or the one before it, cannot be written.
        """
        if self._latest is not None and self._latest >= step:
            return
        with _writing(self._folder):
            self._finish()
            self._manager = self._manager or _open(self._folder)
            saving = self._manager.save_checkpointables_async(
                step, to_parts(state), metrics=metrics, custom_metadata=_metadata(self._config), force=True
            )
        self._sealing = self._sealer.submit(_seal_when_complete, saving, self._folder / str(step))
        self._latest = step

    def restore(
        self,
        abstract: TrainState,
        expected: Callable[[int], str | None] = lambda step: None,
        warn: Callable[[str], None] = print,
    ) -> TrainState:
        """The newest state that is whole; its `step` tells which. Steps that are not are moved to `<workdir>/damaged`.

        Where none is whole, none is moved: the same command would begin a new run, unasked.

        Args:
          abstract: shapes with shardings, which the state gets.
          expected: from a step to the `state_digest` of what was saved, or None where that is not known.
          warn: is given a line for each step that is left out.

        Raises:
          CheckpointError: there is no checkpoint, or none is whole, or the newest whole one is no state of this run: its
            network or classes are others, it averages parameters or not, or it holds no training.
        """
        whole: TrainState | None = None
        damaged: list[int] = []
        for step in reversed(steps_in(self._folder)):
            folder = self._folder / str(step)
            try:
                if whole is None:
                    whole = self._whole_state(folder, abstract, expected(step))
                else:
                    _require_listed(folder)
            except DamagedError as error:
                warn(f"{folder} is left out, since it is damaged: {error}")
                damaged.append(step)
        if whole is None:
            found = f"no whole checkpoint (damaged: {', '.join(map(str, damaged))})" if damaged else "no checkpoint"
            raise CheckpointError(f"{self._folder} holds {found}: use another workdir, or move that folder away to begin anew")
        self._go_on_from(int(whole.step), damaged)
        return whole

    def load(self, step: int, abstract: TrainState) -> TrainState:
        """The state of one step, whatever its seal says.

        Args:
          step: its number.
          abstract: shapes with shardings, which the state gets.

        Raises:
          CheckpointError: the step cannot be read, or is no state of this run; see `restore`.
        """
        folder = self._folder / str(step)
        with _reading(folder):
            self._require_resumable(folder, abstract)
            return from_parts(ocp.load_checkpointables(folder, to_parts(abstract)))

    def differences(self, step: int) -> list[str]:
        """Fields in which the run's config differs from that of `step`, as `field: then -> now`.

        Raises:
          CheckpointError: the step cannot be read, or is no state of this run; see `restore`.
        """
        folder = self._folder / str(step)
        return self._differences(stored_config(str(folder)), folder)

    def _differences(self, stored: Config, folder: epath.Path) -> list[str]:
        require_same_averaging(stored, self._config, str(folder))
        return compare(stored, self._config, str(folder))

    def _whole_state(self, folder: epath.Path, abstract: TrainState, expected: str | None) -> TrainState:
        """Raises DamagedError on all processes alike."""
        # The seal comes first: orbax may take changed arrays for good ones, and says thousands of lines about the others.
        agreed(lambda: require_unchanged(folder))
        # Arrays of another network would not fit, which is no damage.
        agreed(lambda: self._require_resumable(folder, abstract))
        state = agreed(lambda: from_parts(ocp.load_checkpointables(folder, to_parts(abstract))))
        agreed(lambda: require_expected(state, int(folder.name), expected))
        return state

    def _require_resumable(self, folder: epath.Path, abstract: TrainState) -> None:
        saved = _listed(folder)
        self._differences(_config(saved), folder)
        if "training" not in saved.metadata:
            workdir = folder.parent.parent
            raise CheckpointError(
                f"{workdir} holds weights without a training: name another --workdir, and start from these with "
                f"--config.model.pretrained={workdir}"
            )
        training, wanted = saved.metadata["training"], to_parts(abstract)["training"]
        if training is not None and training.keys() != wanted.keys():  # None where orbax cannot tell
            raise CheckpointError(
                f"{folder} holds {', '.join(sorted(training))} of a training, and this version {', '.join(sorted(wanted))}: go "
                "on with the version that wrote it, or use another workdir"
            )

    def _go_on_from(self, step: int, damaged: list[int]) -> None:
        """Makes `step` the newest, and seals it if the process that saved it came to no seal."""
        try:
            agreed(lambda: set_aside([self._folder / str(each) for each in damaged]))
        except DamagedError as error:
            raise CheckpointError(f"damaged steps of {self._folder} cannot be moved away ({error}): do so by hand") from error
        if not is_sealed(self._folder / str(step)) and jax.process_index() == 0:
            self._sealing = self._sealer.submit(write_seal, self._folder / str(step))
        self._latest = step

    def _finish(self) -> None:
        """Waits until the step that was saved last is complete and sealed."""
        sealing, self._sealing = self._sealing, None
        if sealing:
            sealing.result()


def differences(checkpoint: str, config: Config) -> list[str]:
    """Fields in which `config` differs from the checkpoint's, as `field: then -> now`; see `resolve`.

    Raises:
      CheckpointError: the network or the classes differ, so that the arrays would not fit or not mean the same.
    """
    return compare(stored_config(checkpoint), config, checkpoint)


def stored_config(checkpoint: str) -> Config:
    """The config of what `resolve` finds.

    Raises:
      CheckpointError: nothing is found, or it cannot be read.
    """
    path = resolve(checkpoint)
    with _reading(path):
        return _config(ocp.checkpointables_metadata(path))


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
    with _reading(path):
        saved = ocp.checkpointables_metadata(path).metadata["model"]
        abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), saved)
        return ocp.load_checkpointables(path, {"model": abstract})["model"]


def save_model(folder: str, config: Config, variables: dict[str, Any]) -> None:
    """Writes weights without a training state as step 0 of `folder`, which then is what `resolve` wants.

    Raises:
      CheckpointError: the folder holds checkpoints already, or cannot be written.
    """
    require_empty(folder)
    steps = absolute(folder) / FOLDER
    with storage_errors(f"`out` (={folder!r}) cannot be written", "name another folder"):
        with _open(steps) as manager:
            manager.save_checkpointables(0, {"model": variables}, custom_metadata=_metadata(config))
        write_seal(steps / "0")


def _metadata(config: Config) -> dict[str, Any]:
    return {"config": to_dict(config), "version": importlib.metadata.version("deeplab-jax")}


def _config(saved: ocp.CheckpointMetadata) -> Config:
    stored = (saved.custom_metadata or {}).get("config")
    if stored is None:
        raise DamagedError("its config is missing or not legible")
    return from_dict(stored)


def _open(folder: epath.Path) -> ocp.training.Checkpointer:
    """For writing; what a killed save left is removed."""
    keep = [
        _policies.LatestN(2),
        _policies.BestN(get_metric_fn=lambda metrics: metrics["miou"], n=1, keep_checkpoints_without_metrics=False),
    ]
    policy = _policies.AnyPreservationPolicy(keep)
    return ocp.training.Checkpointer(folder, preservation_policy=policy, cleanup_tmp_directories=True)


def _listed(step: epath.Path) -> ocp.CheckpointMetadata:
    """What a step says it holds; raises whatever would keep orbax from opening the folder that it is in."""
    metrics_of(step)
    return ocp.checkpointables_metadata(step)


def _require_listed(step: epath.Path) -> None:
    agreed(lambda: _listed(step))


def _seal_when_complete(saving: ocp.AsyncResponse[bool], step: epath.Path) -> None:
    saving.result()
    if jax.process_index() == 0:
        write_seal(step)


def _writing(folder: epath.Path) -> contextlib.AbstractContextManager[None]:
    return storage_errors(f"{folder} cannot be written", "mend that, and the same command goes on from the step before")


def _reading(step: epath.Path) -> contextlib.AbstractContextManager[None]:
    return storage_errors(f"{step} cannot be read", "it is damaged or incomplete; use another step")
