"""The folders of a run's checkpoints, `<workdir>/checkpoints/<step>`: which there are, and which one is meant."""

import json
import re
from typing import Any

from etils import epath

from deeplab_jax.errors import CheckpointError, one_line

FOLDER = "checkpoints"


def absolute(path: str) -> epath.Path:
    """The path as orbax wants it."""
    # `absolute` would take gs:// for a folder.
    return epath.Path(path) if "://" in str(path) else epath.Path(path).absolute()


def steps_in(folder: epath.Path) -> list[int]:
    """Numbers of the complete checkpoints in `folder`, in order."""
    names = [path.name for path in folder.iterdir() if re.fullmatch("0|[1-9][0-9]*", path.name) and path.is_dir()]
    # Orbax gives a step its name when it is complete, where folders can be renamed; elsewhere it marks it.
    is_local = "://" not in str(folder)
    return sorted(int(name) for name in names if is_local or (folder / name / "commit_success.txt").exists())


def metrics_of(step: epath.Path) -> dict[str, float]:
    """What `Checkpoints.save` was given, as orbax keeps it; raises what reading it raises."""
    path = step / "metrics" / "metrics"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def resolve(checkpoint: str) -> epath.Path:
    """The folder of one step, given that folder, a run's folder (its latest step), or `<run>/best` or `<run>/latest`.

    Raises:
      CheckpointError: there is no such checkpoint.
    """
    path = absolute(checkpoint)
    if path.name.isdigit() and path.parent.name == FOLDER and path.is_dir():
        return path
    if path.parent.name == FOLDER and path.parent.is_dir():
        there = ", ".join(map(str, steps_in(path.parent)))
        raise CheckpointError(f"`checkpoint` (={checkpoint!r}) does not exist: that run has the steps {there or 'none'}")
    is_alias = path.name in ("best", "latest") and not (path / FOLDER).is_dir()
    workdir, which = (path.parent, path.name) if is_alias else (path, "latest")
    folder = workdir / FOLDER
    if not folder.is_dir():
        raise CheckpointError(
            f"`checkpoint` (={checkpoint!r}) is no run: give a --workdir of train.py, or a step in its {FOLDER}/"
        )
    steps = steps_in(folder)
    if not steps:
        raise CheckpointError(f"`checkpoint` (={checkpoint!r}) holds no complete checkpoint: train first")
    return folder / str(_best(folder, steps) if which == "best" else steps[-1])


def require_empty(folder: str) -> None:
    """Raises CheckpointError if there is a complete checkpoint in `folder`."""
    steps = absolute(folder) / FOLDER
    if steps.exists() and steps_in(steps):
        raise CheckpointError(f"`out` (={folder!r}) holds checkpoints already: name another folder, or remove it")


def _best(folder: epath.Path, steps: list[int]) -> int:
    scores: dict[int, Any] = {}
    for step in steps:
        try:
            scores[step] = metrics_of(folder / str(step)).get("miou")
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{folder / str(step)} cannot be read ({one_line(error)}): it is damaged or incomplete; name the step to use"
            ) from error
    scored = [step for step in steps if scores[step] is not None]
    if not scored:
        workdir = folder.parent
        raise CheckpointError(
            f"`checkpoint` (='{workdir / 'best'}'): no step of the run was evaluated; give {workdir} for the latest"
        )
    return max(scored, key=lambda step: (scores[step], step))
