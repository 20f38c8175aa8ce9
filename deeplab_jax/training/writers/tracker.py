"""The base class of writers for experiment trackers, and how they remember a run's id."""

import importlib.util
import json
import os
from collections.abc import Callable
from typing import ClassVar

from etils import epath

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
        raise NotImplementedError


def require_package(name: str, package: str) -> None:
    """Raise ConfigError if the package of the writer `name` is not installed."""
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"`train.writers` has {name!r}, whose package is missing. Run pip install 'deeplab_jax[{name}]'.")


def read_id(run: RunStart, name: str) -> str | None:
    """Return the id of the tracked run that this run continues, or None if it needs a new one.

    A run from step 0 is a new one, like its log and its receipt.
    """
    path = id_file(run, name)
    if run.step == 0 or not path.exists():
        return None
    try:
        return str(json.loads(path.read_text())["id"])
    except (ValueError, KeyError, TypeError):
        return None


def keep_id(run: RunStart, name: str, tracked: str, say: Callable[[str], None]) -> None:
    """Store the id of the tracked run for the next start."""
    try:
        with write_atomically(id_file(run, name)) as file:
            file.write((json.dumps({"id": tracked}) + "\n").encode())
    except ConfigError as error:
        say(f"warning: {name}: when this run is resumed, it will be a new tracked run. {one_line(error)}")


def id_file(run: RunStart, name: str) -> epath.Path:
    """Return the file with the id of a tracked run."""
    return run.folder / _FOLDER / f"{name}.json"


def upload_folder(run: RunStart, name: str) -> epath.Path:
    """Return the folder for links to the checkpoints that a tracker has not uploaded yet."""
    return run.folder / _FOLDER / f"{name}-uploads"


def run_name(run: RunStart) -> str:
    """Return the run folder's name."""
    return os.path.basename(os.path.abspath(run.workdir)) if "://" not in run.workdir else run.folder.name
