"""Find a run's checkpoint folders, `<workdir>/checkpoints/<step>`, and write and check their checksums.

The checksums are SHA-256 digests of a step's files. To check them by hand, run `cd STEP && sha256sum -c SHA256SUMS`. A step's
scores are known only later, so they are in a file with its own digest.
"""

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, NoReturn

from etils import epath

from deeplab_jax.buckets import CHECKPOINT_SCHEMES, COMMIT_MARKER, is_url
from deeplab_jax.errors import CheckpointError, ConfigError, one_line
from deeplab_jax.files import write_atomically

CHECKPOINTS, DAMAGED = "checkpoints", "damaged"  # folders in a workdir
CHECKSUMS = "SHA256SUMS"
SCORES = "scores.json"
OLD_SCORES = "metrics"  # the folder for the scores of steps from version 0.1
METADATA = "_CHECKPOINT_METADATA"  # the file with a step's config
_ROW = re.compile(r"([0-9a-f]{64})  (.+)\n")
_CHUNK = 1 << 22


class DamagedError(Exception):
    """Raised for a checkpoint that cannot be used. The message gives the reason."""


def make_absolute(path: str) -> epath.Path:
    """Make a path absolute, as orbax requires. URLs such as gs://bucket/run are returned unchanged.

    Raises:
      CheckpointError: The URL's scheme or one of its characters is not supported.
    """
    if not is_url(path):
        return epath.Path(path).expanduser().absolute()
    if path.partition("://")[0] not in CHECKPOINT_SCHEMES:
        raise CheckpointError(
            f"`{path}` cannot hold checkpoints, which orbax stores only on disk and in gs://. Use one of these."
        )
    if match := re.search("[#?]", path):
        raise CheckpointError(
            f"`{path}` cannot hold checkpoints, because the library that stores the arrays in a bucket ends a folder's name at "
            f"{match[0]}. Choose a name without it."
        )
    return epath.Path(path)


def list_steps(folder: epath.Path) -> list[int]:
    """Return the steps of the complete checkpoints in `folder`, in ascending order.

    Raises:
      CheckpointError: A step in a run's `checkpoints` folder is a link to nothing.
    """
    paths = [path for path in folder.iterdir() if re.fullmatch("0|[1-9][0-9]*", path.name)]
    if folder.name == CHECKPOINTS:
        for path in paths:
            require_link_target(path)
    names = [path.name for path in paths if path.is_dir()]
    # Orbax renames a step's folder when the step is complete. Buckets cannot rename folders, so orbax adds a marker file there
    # instead.
    return sorted(int(name) for name in names if not is_url(folder) or (folder / name / COMMIT_MARKER).exists())


def require_link_target(path: epath.Path) -> None:
    """Check that a path of a run is not a link to nothing, because a disk that is not mounted looks like a missing checkpoint.

    Raises:
      CheckpointError: The path is such a link.
    """
    if os.path.islink(path) and not os.path.exists(path):
        raise CheckpointError(
            f"{path} is a link to {os.readlink(path)}, which does not exist. Create or mount that folder, or remove the link."
        )


class Rank(NamedTuple):
    """How good a step is.

    Attributes:
      metric: The metric that was compared.
      value: A number that is larger for better steps, or None if the metric has no value.
    """

    metric: str
    value: float | None


def write_scores(step: epath.Path, scores: Mapping[str, Any], rank: Rank) -> None:
    """Write the scores of a complete step, from `evaluation.scores.summary`, and its rank.

    Raises:
      ConfigError: The file cannot be written.
    """
    content = {"scores": scores, "rank": rank._asdict()}
    with write_atomically(step / SCORES) as file:
        file.write((json.dumps(content | {"sha256": _digest(content)}) + "\n").encode())


def read_scores(step: epath.Path) -> dict[str, Any] | None:
    """Return a step's scores, or None if it was not evaluated.

    Raises:
      CheckpointError: The scores cannot be read.
      DamagedError: The scores have changed since they were written.
    """
    content = _read_scores_and_rank(step)
    return content and content["scores"]


def read_rank(step: epath.Path) -> Rank | None:
    """Return a step's rank, or None if it was not evaluated. Steps without one are ranked by their mIoU.

    Raises:
      CheckpointError: The scores cannot be read.
      DamagedError: The scores have changed since they were written.
    """
    content = _read_scores_and_rank(step)
    if content is None:
        return None
    return Rank(**content["rank"]) if "rank" in content else Rank("miou", content["scores"].get("miou"))


def _read_scores_and_rank(step: epath.Path) -> dict[str, Any] | None:
    text = read_if_exists(step / SCORES)
    if text is None:
        scores = read_old_scores(step)
        return scores and {"scores": scores}
    try:
        content: dict[str, Any] = json.loads(text)
        digest = content.pop("sha256")
        # Versions without ranks computed the digest of the scores alone.
        if digest == _digest(content if "rank" in content else content["scores"]):
            return content
    except (ValueError, KeyError, TypeError):
        pass
    raise DamagedError(f"its {SCORES} has changed since it was written")


def read_if_exists(path: epath.Path) -> bytes | None:
    """Return the content of a run's file, or None if it does not exist.

    `path.exists()` also returns False for a file that may not be read, or on a network disk that does not answer.

    Raises:
      CheckpointError: The file cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({one_line(error)}). Make it readable.") from error


def read_old_scores(step: epath.Path) -> dict[str, Any] | None:
    """Return the scores of a step from version 0.1, or None if it has none.

    Raises:
      DamagedError: The file has changed since it was written.
    """
    require_unchanged(step, [OLD_SCORES])
    text = read_if_exists(step / OLD_SCORES / "metrics")
    try:
        return None if text is None else dict(json.loads(text))
    except (ValueError, TypeError) as error:  # a step without checksums
        raise DamagedError(f"its {OLD_SCORES} are damaged: {one_line(error)}") from None


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_step(folder: epath.Path) -> bool:
    """Return whether a folder is a complete checkpoint, wherever it is and whatever its name."""
    return (folder / METADATA).exists() and (folder / "model").is_dir()


def find_steps(path: epath.Path) -> list[epath.Path]:
    """Return the checkpoints of a run, a `checkpoints` folder or a folder with copied steps, in ascending order.

    A step folder is returned itself. The list is empty for all other paths.

    Raises:
      CheckpointError: A step or the `checkpoints` folder is a link to nothing.
    """
    if is_step(path):
        return [path]
    require_link_target(path / CHECKPOINTS)
    for folder in (path / CHECKPOINTS, path):
        if folder.is_dir() and (steps := list_steps(folder)):
            # The folders in `checkpoints` are checkpoints even if a file is missing, which must be reported as damage.
            return [folder / str(n) for n in steps if folder.name == CHECKPOINTS or is_step(folder / str(n))]
    return []


def require_plain_path(folder: str, argument: str) -> None:
    """Check that checkpoints can be written to `folder`.

    Raises:
      ConfigError: Its absolute path contains a character because of which the arrays would be lost.
    """
    path = make_absolute(folder)
    # Orbax looks for the arrays that it has to merge with a glob pattern that starts with the path. TensorStore writes a/b
    # instead of a\b, which is the usual separator on Windows.
    if match := re.search(r"[*?[]" if os.name == "nt" else r"[*?[\\]", str(path)):
        raise ConfigError(
            f"`{argument}` (={str(path)!r}) cannot hold checkpoints, because the libraries that write them lose the "
            f"arrays if a path contains {match[0]}. Choose a path without it."
        )


def require_empty(folder: str) -> None:
    """Raise an error if `folder` contains a complete checkpoint, or if none can be written to it."""
    require_plain_path(folder, "out")
    steps = make_absolute(folder) / CHECKPOINTS
    if steps.exists() and list_steps(steps):
        raise CheckpointError(
            f"`out` (={folder!r}) already contains checkpoints. Choose a different folder, or remove this one."
        )


def move_to_damaged(steps: Iterable[epath.Path]) -> None:
    """Move step folders to `<workdir>/damaged` without replacing any folder that is already there."""
    for step in steps:
        folder = step.parent.parent / DAMAGED
        folder.mkdir(exist_ok=True)
        taken = {path.name for path in folder.iterdir()}
        names = (step.name if n == 1 else f"{step.name}.{n}" for n in range(1, len(taken) + 2))
        step.rename(folder / next(name for name in names if name not in taken))


def write_checksums(step: epath.Path) -> None:
    """Write the checksums for all of a step's files. The files must not change during the call.

    Raises:
      ConfigError: The checksums cannot be written.
    """
    digests = _hash(step, sorted(_list_files(step)))
    with write_atomically(step / CHECKSUMS) as file:
        file.write(_format(digests).encode())


def has_checksums(step: epath.Path) -> bool:
    """Return whether a step has a checksum file, valid or not.

    The file is missing if the saving process died before writing it.
    """
    return (step / CHECKSUMS).exists()


def find_changed_files(step: epath.Path, parts: Collection[str] | None = None) -> list[str] | None:
    """Return the files that were changed, removed or added since the checksums were written.

    Args:
      step: The step folder.
      parts: The names of the files and folders in `step` to check, or None for all of them.

    Returns:
      Sorted relative paths, or None if the step has no checksums.
    """
    if not has_checksums(step):
        return None
    digests, present = _read_checksums(step), set(_list_files(step))
    names = {name for name in digests.keys() | present if parts is None or name.split("/")[0] in (*parts, CHECKSUMS)}
    computed = _hash(step, names & present)
    changed = {name for name in names if computed.get(name) != digests.get(name)}
    return sorted(changed | {SCORES} if parts is None and _has_damaged_scores(step) else changed)


def require_unchanged(step: epath.Path, parts: Collection[str]) -> None:
    """Raise DamagedError if `parts` of a step do not match its checksums. See `find_changed_files`."""
    if files := find_changed_files(step, parts):
        raise DamagedError(f"{len(files)} of its files do not match {CHECKSUMS}, for example {files[0]}")


def _has_damaged_scores(step: epath.Path) -> bool:
    if not (step / SCORES).exists():
        return False
    try:
        read_scores(step)
    except DamagedError:
        return True
    return False


def find_best(steps: Iterable[epath.Path]) -> epath.Path | None:
    """Return the best step folder, or the earlier one of two equal steps. Return None if no step was evaluated.

    `train.patience` treats equal steps in the same way.
    Steps that were ranked by another metric than the last one do not count.

    Raises:
      CheckpointError: A step's scores are damaged, so the best step is unknown.
    """
    ranks: dict[epath.Path, Rank] = {}
    for step in steps:
        try:
            rank = read_rank(step)
        except (DamagedError, OSError) as error:
            raise CheckpointError(
                f"Cannot read {step} ({one_line(error)}). It is damaged or incomplete, so the best step cannot be determined. "
                "Give a specific step instead."
            ) from error
        ranks |= {step: rank} if rank else {}
    metric = ranks[max(ranks, key=_step_number)].metric if ranks else ""
    values = {step: rank.value for step, rank in ranks.items() if rank.metric == metric and rank.value is not None}
    return max(values, key=lambda step: (values[step], -_step_number(step)), default=None)


def _step_number(step: epath.Path) -> int:
    return int(step.name) if step.name.isdigit() else 0  # a step that was copied alone can have any name


def _format(digests: dict[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items())


def _read_checksums(step: epath.Path) -> dict[str, str]:
    """Return a dict mapping file paths to digests.

    If the checksum file has an invalid line, the dict also maps the checksum file itself to an impossible digest, so that
    the file counts as changed.
    """
    text = (step / CHECKSUMS).read_bytes().decode(errors="replace")
    digests = {name: digest for digest, name in _ROW.findall(text)}
    return digests if text and text == _format(digests) else digests | {CHECKSUMS: ""}


def _list_files(folder: epath.Path) -> Iterator[str]:
    """Yield relative paths for all files under `folder`, except the checksums, the scores and their temporary copies."""
    # `pathlib.Path` has no walk in Python 3.11. By default, `walk` leaves out folders that cannot be read.
    for parent, _, names in epath.Path(folder).walk(on_error=_raise):
        inner = parent.relative_to(epath.Path(folder)).as_posix()
        if inner != ".":
            yield from (f"{inner}/{name}" for name in names)
        else:
            temporary = (f".{CHECKSUMS}.", f".{SCORES}.")
            yield from (name for name in names if name not in (CHECKSUMS, SCORES) and not name.startswith(temporary))


def _raise(error: OSError) -> NoReturn:
    raise error


def _hash(folder: epath.Path, names: Collection[str]) -> dict[str, str]:
    with ThreadPoolExecutor() as pool:  # hashlib releases the GIL
        return dict(zip(names, pool.map(lambda name: _digest_file(folder / name), names), strict=True))


def _digest_file(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
