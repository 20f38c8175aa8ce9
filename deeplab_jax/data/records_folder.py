"""The folder of prepared records: its manifest and shards, its free space, and the files that may be removed from it."""

import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from etils import epath

from deeplab_jax.data.folders import list_names
from deeplab_jax.data.records import FORMAT, MANIFEST, SHARD, SIDECAR
from deeplab_jax.errors import ConfigError
from deeplab_jax.files import advise_on_write_error, write_atomically
from deeplab_jax.runtime.machine import is_running

# Matches temporary file names, which contain the id of the writing process. A temporary file is an unfinished manifest, sidecar
# file or shard, or a finished shard that has not been renamed yet.
TEMPORARY = re.compile(
    rf"\.?(?:{re.escape(MANIFEST)}|(?P<name>(?P<split>.+)-\d{{5}})(?:\.json)?)\.(?P<pid>\d+)\.(?:bin|(?:bin\.\d+\.)?(?:[0-9a-f]{{8}}\.)?new)"
)


def require_records_folder(folder: epath.Path) -> None:
    """Create the folder if needed, and check that it contains nothing but prepared records, complete or not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        advice = advise_on_write_error(error, "Choose a different folder")
        raise ConfigError(f"`--out` (={str(folder)!r}) cannot be used ({error.strerror or error}). {advice}.") from None
    ours = [name for name in names if name.startswith(".") or name == MANIFEST or _split_of(name) or TEMPORARY.fullmatch(name)]
    foreign = [name for name in names if name not in ours]
    if foreign:
        raise ConfigError(
            f"`--out` (={str(folder)!r}) holds {foreign[0]}, which is not part of prepared records. "
            "Choose a new or empty folder."
        )


def require_space(folder: epath.Path, needed: int) -> None:
    """Raise a ConfigError if the folder's disk has less than `needed` bytes of free space."""
    free = shutil.disk_usage(os.fspath(folder)).free
    if needed > free:
        raise ConfigError(
            f"`--out` (={str(folder)!r}) has {free / 1e9:.3g} GB of free space, but the records need about "
            f"{needed / 1e9:.3g} GB. Free some space or choose a different folder."
        )


def list_shard_files(folder: epath.Path) -> dict[str, list[epath.Path]]:
    """Return all existing shards by planned name. The versions of a shard differ only in the checksum digits."""
    versions: dict[str, list[epath.Path]] = defaultdict(list)
    for name in list_names(folder):
        if SHARD.fullmatch(name):
            # The last 13 characters of a shard name are a hyphen, 8 checksum digits and ".bin".
            versions[name[:-13]].append(folder / name)
    return versions


def read_other_splits(folder: epath.Path, source: str, splits: Sequence[str]) -> dict[str, Any]:
    """Return the manifest entries for all splits that are not in `splits`.

    Raises:
      ConfigError: The other splits were prepared from a different source.
    """
    try:
        values = json.loads((folder / MANIFEST).read_text())
        others = {name: split for name, split in values["splits"].items() if name not in splits}
        previous_source, is_current_format = values["source"], values["format"] == FORMAT
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    if others and previous_source != source:
        raise ConfigError(
            f"`--out` (={str(folder)!r}) already holds records for {', '.join(others)} from a different source "
            f"({previous_source}). Add these splits to --splits to prepare them again, or choose a different folder."
        )
    return others if is_current_format else {}


def write_manifest(folder: epath.Path, source: str, data_dir: str, splits: Mapping[str, Any]) -> None:
    """Write the manifest, or delete it if `splits` is empty."""
    if not splits:
        remove_file(folder / MANIFEST)
        return
    text = json.dumps({"format": FORMAT, "source": source, "data_dir": data_dir, "splits": splits})
    if not (folder / MANIFEST).exists() or (folder / MANIFEST).read_text() != text:
        with write_atomically(folder / MANIFEST) as file:
            file.write(text.encode())


def remove_outdated(folder: epath.Path, current: set[str], splits: Sequence[str]) -> None:
    """Delete these splits' shards and sidecar files, except for the files named in `current`."""
    for path in folder.iterdir():
        if _split_of(path.name) in splits and path.name not in current:
            remove_file(path)


def remove_temporary_files(folder: epath.Path, splits: Sequence[str], names: Collection[str] | None) -> None:
    """Delete the temporary files that killed processes left behind for these splits and for the manifest.

    If other processes write to the same folder, `names` has this process's planned shards, and only theirs are deleted. A
    process of another host does not count as running.
    """
    for path in folder.iterdir():
        match = TEMPORARY.fullmatch(path.name)
        if match and names is not None and match["name"] not in names:
            continue
        if match and (not match["split"] or match["split"] in splits) and not is_running(int(match["pid"])):
            remove_file(path)


def _split_of(name: str) -> str:
    """Return the split name in a shard or sidecar file name, or "" for any other file name."""
    match = SIDECAR.fullmatch(name) or SHARD.fullmatch(name)
    return match["split"] if match else ""


def remove_file(path: epath.Path) -> None:
    """Delete a file, if it exists.

    Raises:
      ConfigError: The file cannot be deleted.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be removed ({error.strerror}). Fix this problem or choose a different folder."
        ) from None
