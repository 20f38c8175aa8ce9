"""Find the checkpoint that a path refers to. If it is something else, describe it and name the command that takes it."""

import contextlib
import difflib
import os
import zipfile
from collections.abc import Iterator

from etils import epath

from deeplab_jax.buckets import CHECKPOINT_SCHEMES, require_scheme
from deeplab_jax.checkpoints.folders import (
    CHECKPOINTS,
    find_best,
    find_steps,
    is_step,
    list_steps,
    make_absolute,
)
from deeplab_jax.errors import CheckpointError, summarize

ALIASES = ("best", "latest")
EXPORTED_PROGRAM = "program.bin"  # the part of an exported StableHLO file that holds the network
CHECKPOINT = "a run folder, or a folder written by `deeplab-jax weights import`"
EXPORTED = "a file written by `deeplab-jax export --format stablehlo`"
RECIPE = "a recipe"
# The names that Hugging Face's libraries give to weights. An index lists several files. The first that exists is used.
WEIGHTS_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_REMOTE = ("hf:", "http:", "https:")
_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl", ".pickle", ".pdparams", ".npz", ".h5", ".msgpack")
_IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".npy", ".mp4", ".avi", ".mkv", ".mov", ".webm")
# Names that data sets have at their root or one level below.
_DATA = {"leftImg8bit", "gtFine", "gtCoarse", "JPEGImages", "SegmentationClass", "ImageSets", "701_StillsRaw_full"}
_DATA |= {"input", "target", "list", "images", "labels", "masks", "annotations", "train", "val", "training", "validation"}
_DATA |= {"labels.json", "records.json"}
_TAKES_WEIGHTS = "for `deeplab-jax weights import {path} --out DIR` and for --config.model.pretrained={path}"
_KINDS = {
    "weights": f"is a weights file, {_TAKES_WEIGHTS}",
    "weights folder": f"is a folder with weights, {_TAKES_WEIGHTS}",
    "hub": f"names weights on the Hugging Face hub, {_TAKES_WEIGHTS}",
    "stablehlo": "is an exported network, for `deeplab_jax.load_exported`",
    "onnx": "is an ONNX file, for an ONNX runtime",
    "archive": "is an archive, which must be unpacked first",
    "recipe": "is a Python file. Recipes are for --config",
    "picture": "is an image or a video, for `deeplab-jax predict`",
    "url": "is a web address. Download the file first",
    "file": "is a file, but not a weights file or an exported network",
    "step": "is a checkpoint, for --checkpoint, `deeplab_jax.load`, `deeplab-jax report` and --config.model.pretrained",
    "unfinished": "is a run without a complete checkpoint. Train it until its first save",
    "data": "is a data set, for --config.data.root",
    "empty": "is an empty folder",
    "folder": "is a folder without checkpoints",
}


def resolve(checkpoint: str | os.PathLike[str], argument: str = "checkpoint") -> epath.Path:
    """Return the step folder that `checkpoint` refers to.

    Args:
      checkpoint: A run folder (its latest step is used), `<run>/best`, `<run>/latest`, `<run>/checkpoints`, or a step folder,
        which may have been copied elsewhere and renamed.
      argument: The name of the argument, for error messages.

    Raises:
      ConfigError: The path is a URL that cannot hold checkpoints, or one in which a slash is missing.
      CheckpointError: The checkpoint does not exist, or the path is something else. The message says what it is and which
        command takes it.
    """
    if not isinstance(checkpoint, str | os.PathLike) or not str(checkpoint):
        raise CheckpointError(f"`{argument}` (={checkpoint!r}) is not a path. Give a run folder, such as runs/quickstart.")
    given = os.fspath(checkpoint)
    if given.startswith(_REMOTE):
        raise CheckpointError(f"`{argument}` (={given!r}) {describe_path(given)}")
    require_scheme(given, argument, CHECKPOINT_SCHEMES)
    path = make_absolute(given)
    with _report_no_access(f"`{argument}` (={given!r})"):
        if path.name.isdigit() and path.parent.name == CHECKPOINTS and path.is_dir():
            return path
        if steps := find_steps(path):
            return steps[-1]
        if path.name in ALIASES and not path.exists() and (steps := find_steps(path.parent)):
            return steps[-1] if path.name == "latest" else _require_best(steps, argument)
        raise CheckpointError(f"`{argument}` (={given!r}) {describe_path(given)}")


@contextlib.contextmanager
def _report_no_access(what: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise CheckpointError(
            f"{what} cannot be read ({error.strerror}: {error.filename}). Ask its owner for access."
        ) from None


def describe_path(given: str | os.PathLike[str], wanted: str = CHECKPOINT) -> str:
    """Return the rest of a sentence about a path: what it is, which command takes it, and what to give instead.

    Args:
      given: Any path or name that a user might give as a checkpoint or weights file.
      wanted: What the caller takes.
    """
    name = os.fspath(given)
    if name.startswith(_REMOTE):
        return f"{_KINDS['hub' if name.startswith('hf:') else 'url'].format(path=name)}. Give {wanted}."
    path = make_absolute(name)
    if path.name in ALIASES and not path.exists() and find_steps(path.parent):
        return f"{_KINDS['step']}. Give {wanted}."
    if not path.exists():
        return _explain_no_access(path) or f"does not exist.{_suggest(path, wanted)}"
    if path.is_dir() and (details := _describe_content(path)):
        return details
    kind = _classify_folder(path) if path.is_dir() else classify_file(path)
    return f"{_KINDS[kind].format(path=name)}. Give {wanted}."


def _explain_no_access(path: epath.Path) -> str:
    """Return the rest of a sentence if a path only seems to be missing, because its folder may not be read, or ""."""
    try:
        path.stat()
    except PermissionError as error:
        return f"cannot be read ({error.strerror}). Ask its owner for access."
    except OSError:
        pass
    return ""


def find_weights(folder: epath.Path) -> epath.Path | None:
    """Return the weights file or the index in a folder as Hugging Face's libraries write it, or None for anything else.

    A run, and a folder written by `deeplab-jax weights import`, is something else, whatever other files it has.
    """
    with _report_no_access(str(folder)):
        if not folder.is_dir() or find_steps(folder):
            return None
        return next((folder / name for name in WEIGHTS_FILES if (folder / name).is_file()), None)


def classify_file(path: epath.Path) -> str:
    """Return what an existing file is, judged by its content if possible, and by its suffix otherwise.

    Returns:
      "weights", "stablehlo", "onnx", "archive", "recipe", "picture" or "file".
    """
    suffix = path.suffix.lower()
    by_suffix = {".onnx": "onnx", ".py": "recipe"} | dict.fromkeys(_IMAGES, "picture") | dict.fromkeys(_WEIGHTS, "weights")
    with contextlib.suppress(OSError), path.open("rb") as file:
        start = file.read(9)
        file.seek(0)
        if start.startswith(b"PK"):
            with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(file) as parts:
                names = parts.namelist()
                if EXPORTED_PROGRAM in names:
                    return "stablehlo"
                is_pytorch = any(name.endswith(("/data.pkl", ".npy")) for name in names)
                return "weights" if is_pytorch else by_suffix.get(suffix, "archive")
        if start[:1] == b"\x80" or is_safetensors(start):  # a pickle starts with its protocol
            return "weights"
        if start.startswith((b"\x1f\x8b", b"7z\xbc\xaf", b"BZh", b"\xfd7zXZ")):
            return by_suffix.get(suffix, "archive")
    return by_suffix.get(suffix, "file")


def is_safetensors(start: bytes) -> bool:
    """Return whether a file that starts with these 9 or more bytes is a safetensors file: the size of a header, and JSON."""
    return start[4:9] == b"\0\0\0\0{"


def require_run(run: str) -> None:
    """Check that a path is a run folder.

    Raises:
      CheckpointError: The path is a part of a run, or something else.
    """
    if run.startswith(_REMOTE):
        raise CheckpointError(f"`run` (={run!r}) {describe_path(run)}")
    if parent := find_run(run):
        raise CheckpointError(f"`run` (={run!r}) is a part of the run {parent}. Give {parent}.")
    if not (make_absolute(run) / CHECKPOINTS).is_dir():
        raise CheckpointError(f"`run` (={run!r}) {describe_path(run, 'the --workdir of a train.py run')}")


def find_run(path: str) -> epath.Path | None:
    """Return the run that a step, its `checkpoints` folder, `best` or `latest` belongs to, or None for other paths."""
    absolute = make_absolute(path)
    if absolute.name in ALIASES and not absolute.exists() and (absolute.parent / CHECKPOINTS).is_dir():
        return absolute.parent
    for folder in (absolute, *absolute.parents):
        if folder.name == CHECKPOINTS and folder.is_dir() and list_steps(folder):
            return folder.parent
    return None


def _require_best(steps: list[epath.Path], argument: str) -> epath.Path:
    best = find_best(steps)
    if best is None:
        folder = steps[-1].parent
        workdir = folder.parent if folder.name == CHECKPOINTS else folder
        raise CheckpointError(
            f"`{argument}` (='{workdir / 'best'}') does not exist, because no step of the run has a score. Use {workdir} for "
            f"the latest step."
        )
    return best


def _describe_content(folder: epath.Path) -> str:
    """Return what to give instead of a folder that belongs to a checkpoint, or that contains runs or weights files, or ""."""
    if is_step(folder.parent):
        return f"is a part of the checkpoint {folder.parent}. Give that folder."
    names = _list_names(folder)
    if find_steps(folder) or find_weights(folder) or _DATA & set(names):
        return ""
    if runs := [name for name in names if (folder / name / CHECKPOINTS).is_dir() and find_steps(folder / name)]:
        return f"is not a run, but contains runs. Give one of them: {summarize(folder / name for name in runs)}."
    if weights := [name for name in names if name.endswith(_WEIGHTS)]:
        advice = "Import one with `deeplab-jax weights import FILE --out DIR`, and give DIR"
        return f"contains weights files, but no checkpoint. {advice}: {summarize(folder / name for name in weights)}."
    return ""


def _classify_folder(folder: epath.Path) -> str:
    names = _list_names(folder)
    if find_steps(folder):
        return "step"
    if find_weights(folder):
        return "weights folder"
    if folder.name == CHECKPOINTS or {CHECKPOINTS, "run.json"} & set(names):
        return "unfinished"
    if _DATA & set(names) or any(name.lower().endswith(_IMAGES) for name in names):
        return "data"
    return "folder" if names else "empty"


def _suggest(path: epath.Path, wanted: str) -> str:
    """Return a sentence with the existing path that looks most like a missing one, or with the last folder that exists.

    A path that is something else than what is `wanted` is not suggested.
    """
    missing = path
    while not missing.parent.exists() and missing.parent != missing:
        missing = missing.parent
    parent, rest = missing.parent, path.parts[len(missing.parts) :]
    if missing.name.isdigit() and (steps := find_steps(parent)):
        return f" The checkpoints in {parent} are {summarize(step.name for step in steps)}."
    names = _list_names(parent)
    names += list(ALIASES) if CHECKPOINTS in names else []
    by_key = {name.lower(): name for name in names}
    for key in difflib.get_close_matches(missing.name.lower(), by_key, n=3):
        near = (parent / by_key[key]).joinpath(*rest)
        if near.name in ALIASES or (near.exists() and _is_plausible(near, path, wanted)):
            return f" Did you mean {near}?"
    return f" The folder {parent} contains {summarize(names)}." if names else f" The folder {parent} is empty."


def _is_plausible(near: epath.Path, missing: epath.Path, wanted: str) -> bool:
    """Return whether an existing path could be what the user meant, or leads to it."""
    kind = _classify_folder(near) if near.is_dir() else classify_file(near)
    if wanted in (RECIPE, EXPORTED):
        return kind == {RECIPE: "recipe", EXPORTED: "stablehlo"}[wanted]
    if kind == "weights":
        return missing.suffix.lower() in _WEIGHTS
    return kind in ("step", "unfinished", "weights folder") or (kind == "folder" and bool(_describe_content(near)))


def _list_names(folder: epath.Path) -> list[str]:
    with contextlib.suppress(OSError):  # an unreadable folder
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return []
