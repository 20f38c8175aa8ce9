"""The base class of writers for experiment trackers, and how they remember a run's id."""

import contextlib
import importlib.util
import json
import os
from collections.abc import Callable
from typing import Any, ClassVar

from etils import epath

from deeplab_jax.buckets import is_url
from deeplab_jax.errors import ConfigError, one_line
from deeplab_jax.files import write_atomically
from deeplab_jax.training.writers.writer import RunStart, RunWriter

PROJECT = "deeplab_jax"  # the project or experiment, unless an environment variable of the service names another
_FOLDER = "trackers"  # the folder in a run folder with a file for each tracker


class Tracker(RunWriter):
    """Base class for writers that use an experiment tracker's library.

    Each one lives in a process of its own (`process.py`), where it may wait for a network and print.

    Attributes:
      package: The package to import.

    Args:
      run: The start of the run.
      say: Function that prints a line in the run's log.
    """

    package: ClassVar[str]
    takes_checkpoints = True

    def __init__(self, run: RunStart, say: Callable[[str], None]) -> None:
        super().__init__(run)


def require_package(name: str, package: str) -> None:
    """Raise ConfigError if the package of the writer `name` is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:  # a folder called wandb, which W&B itself creates, is not the package
        raise ConfigError(f"`train.writers` has {name!r}, whose package is missing. Run `pip install 'deeplab-jax[{name}]'`.")


def read_id(run: RunStart, name: str) -> str | None:
    """Return the id of the tracked run that this run continues, or None if it needs a new one.

    A run from step 0 is a new one, like its log and its receipt.
    """
    return _read(run, name).get("id") if run.step > 0 else None


def keep_id(run: RunStart, name: str, tracked: str, say: Callable[[str], None]) -> None:
    """Store the id of the tracked run for the next start."""
    try:
        _write(run, name, (_read(run, name) if run.step > 0 else {}) | {"id": tracked})
    except ConfigError as error:
        say(f"warning: when this run is resumed, it will be a new tracked run. {one_line(error)}")


def read_last_step(run: RunStart, name: str, kind: str) -> int:
    """Return the last step whose row of this kind, "train" or "eval", or "checkpoint" the tracked run has, or 0."""
    return int(_read(run, name).get(kind, 0)) if run.step > 0 else 0


def keep_last_step(run: RunStart, name: str, kind: str, step: int) -> None:
    """Store the step of the last row or checkpoint, so that a resumed run does not write it again."""
    with contextlib.suppress(ConfigError):
        _write(run, name, _read(run, name) | {kind: step})


def _read(run: RunStart, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads(id_file(run, name).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _write(run: RunStart, name: str, state: dict[str, Any]) -> None:
    with write_atomically(id_file(run, name)) as file:
        file.write((json.dumps(state) + "\n").encode())


def id_file(run: RunStart, name: str) -> epath.Path:
    """Return the file with the id of a tracked run and its last steps."""
    return run.folder / _FOLDER / f"{name}.json"


def upload_folder(run: RunStart, name: str) -> epath.Path:
    """Return the folder for links to the checkpoints that a tracker has not uploaded yet."""
    return run.folder / _FOLDER / f"{name}-uploads"


def run_name(run: RunStart) -> str:
    """Return the run folder's name."""
    return os.path.basename(os.path.abspath(run.workdir)) if not is_url(run.workdir) else run.folder.name
