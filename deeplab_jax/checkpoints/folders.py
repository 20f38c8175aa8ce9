"""The folders of a run's checkpoints, `<workdir>/checkpoints/<step>`: which there are, which one is meant, and their checksums.

Checksums are the SHA-256 of a step's files in the format of coreutils: `cd STEP && sha256sum -c SHA256SUMS`.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from deeplab_jax.errors import CheckpointError, one_line
from deeplab_jax.files import replacing

CHECKPOINTS, DAMAGED = "checkpoints", "damaged"  # folders in a run's
CHECKSUMS = "SHA256SUMS"
METRICS = "metrics"
_ROW = re.compile(r"([0-9a-f]{64})  (.+)\n")
_CHUNK = 1 << 20


class DamagedError(Exception):
    """A step that cannot be used; the message is the reason."""


def absolute(path: str) -> epath.Path:
    """Return the path as orbax wants it."""
    # `absolute` would take gs:// for a folder.
    return epath.Path(path) if "://" in str(path) else epath.Path(path).absolute()


def steps_in(folder: epath.Path) -> list[int]:
    """Return the numbers of the complete checkpoints in `folder`, in order."""
    names = [path.name for path in folder.iterdir() if re.fullmatch("0|[1-9][0-9]*", path.name) and path.is_dir()]
    # Orbax gives a step its name when it is complete, where folders can be renamed; elsewhere it marks it.
    is_local = "://" not in str(folder)
    return sorted(int(name) for name in names if is_local or (folder / name / "commit_success.txt").exists())


def read_metrics(step: epath.Path) -> dict[str, float]:
    """Return what `Checkpoints.save` was given, as orbax keeps it.

    Raises:
      DamagedError: the file was changed since it was written. Reading it may raise other errors too.
    """
    path = step / METRICS / "metrics"
    require_unchanged(step, [METRICS])
    return dict(json.loads(path.read_text())) if path.exists() else {}


def resolve(checkpoint: str) -> epath.Path:
    """Return the folder of one step, given that folder, a run's folder (its latest step), or `<run>/best` or `<run>/latest`.

    Raises:
      CheckpointError: there is no such checkpoint.
    """
    path = absolute(checkpoint)
    if path.name.isdigit() and path.parent.name == CHECKPOINTS and path.is_dir():
        return path
    if path.parent.name == CHECKPOINTS and path.parent.is_dir():
        there = ", ".join(map(str, steps_in(path.parent)))
        raise CheckpointError(f"`checkpoint` (={checkpoint!r}) does not exist: that run has the steps {there or 'none'}")
    is_alias = path.name in ("best", "latest") and not (path / CHECKPOINTS).is_dir()
    workdir, which = (path.parent, path.name) if is_alias else (path, "latest")
    folder = workdir / CHECKPOINTS
    if not folder.is_dir():
        raise CheckpointError(
            f"`checkpoint` (={checkpoint!r}) is no run: give a --workdir of train.py, or a step in its {CHECKPOINTS}/"
        )
    steps = steps_in(folder)
    if not steps:
        raise CheckpointError(f"`checkpoint` (={checkpoint!r}) holds no complete checkpoint: train first")
    return folder / str(_find_best(folder, steps) if which == "best" else steps[-1])


def require_empty(folder: str) -> None:
    """Raise CheckpointError if there is a complete checkpoint in `folder`."""
    steps = absolute(folder) / CHECKPOINTS
    if steps.exists() and steps_in(steps):
        raise CheckpointError(f"`out` (={folder!r}) holds checkpoints already: name another folder, or remove it")


def move_to_damaged(steps: Iterable[epath.Path]) -> None:
    """Move steps out of their run's checkpoints, to `<workdir>/damaged`, beside what is there already."""
    for step in steps:
        folder = step.parent.parent / DAMAGED
        folder.mkdir(exist_ok=True)
        taken = {path.name for path in folder.iterdir()}
        names = (step.name if n == 1 else f"{step.name}.{n}" for n in range(1, len(taken) + 2))
        step.rename(folder / next(name for name in names if name not in taken))


def write_checksums(step: epath.Path) -> None:
    """Write the checksums of all files of a step, which nothing may change meanwhile.

    Raises:
      ConfigError: they cannot be written.
    """
    digests = _hash(step, sorted(_list_files(step)))
    with replacing(step / CHECKSUMS) as file:
        file.write(_format(digests).encode())


def has_checksums(step: epath.Path) -> bool:
    """Whether a step has checksums, right or wrong; without them, the process that saved it died too early."""
    return (step / CHECKSUMS).exists()


def find_changed_files(step: epath.Path, parts: Collection[str] | None = None) -> list[str] | None:
    """Return the files that were changed, are missing or were added since the checksums were written.

    Args:
      step: its folder.
      parts: names of files and folders in it, to which alone the search is limited; None for all there are.

    Returns:
      Relative paths in order; None if there are no checksums.
    """
    if not has_checksums(step):
        return None
    digests, present = _read_checksums(step), set(_list_files(step))
    names = {name for name in digests.keys() | present if parts is None or name.split("/")[0] in (*parts, CHECKSUMS)}
    computed = _hash(step, names & present)
    return sorted(name for name in names if computed.get(name) != digests.get(name))


def require_unchanged(step: epath.Path, parts: Collection[str]) -> None:
    """Raise DamagedError if `parts` of a step, as in `find_changed_files`, do not match its checksums."""
    if files := find_changed_files(step, parts):
        raise DamagedError(f"{len(files)} of its files do not match {CHECKSUMS}, as {files[0]}")


def _find_best(folder: epath.Path, steps: list[int]) -> int:
    scores: dict[int, float] = {}
    for step in steps:
        try:
            metrics = read_metrics(folder / str(step))
            scores |= {step: metrics["miou"]} if metrics.get("miou") is not None else {}
        except (DamagedError, OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{folder / str(step)} cannot be read ({one_line(error)}): it is damaged or incomplete; name the step to use"
            ) from error
    if not scores:
        workdir = folder.parent
        raise CheckpointError(
            f"`checkpoint` (='{workdir / 'best'}'): no step of the run was evaluated; give {workdir} for the latest"
        )
    return max(scores, key=lambda step: (scores[step], step))


def _format(digests: dict[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items())


def _read_checksums(step: epath.Path) -> dict[str, str]:
    """Return digests by path. Where a line is no checksum, the file itself is among the paths, with an impossible digest."""
    text = (step / CHECKSUMS).read_bytes().decode(errors="replace")
    digests = {name: digest for digest, name in _ROW.findall(text)}
    return digests if text and text == _format(digests) else digests | {CHECKSUMS: ""}


def _list_files(folder: epath.Path, prefix: str = "") -> Iterator[str]:
    """Yield relative paths of the files below `folder`, but for the checksums, whole or half-written."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from _list_files(path, f"{prefix}{path.name}/")
        elif prefix or not (path.name == CHECKSUMS or path.name.startswith(f".{CHECKSUMS}.")):
            yield prefix + path.name


def _hash(folder: epath.Path, names: Collection[str]) -> dict[str, str]:
    with ThreadPoolExecutor() as pool:  # hashing leaves Python's lock to others
        return dict(zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True))


def _digest(path: epath.Path) -> str:
    # `hashlib.file_digest` takes no file of TensorFlow's, which is what gs:// opens.
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
