"""The seal of a folder: the SHA-256 of every file in it, in the format of coreutils: `cd FOLDER && sha256sum -c SHA256SUMS`."""

import hashlib
import re
from collections.abc import Iterator

from etils import epath

from deeplab_jax.files import replacing

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_CHUNK = 1 << 20


def write_seal(folder: epath.Path) -> None:
    """Writes the sums of all files below `folder`, which nothing may change meanwhile.

    Raises:
      ConfigError: the seal cannot be written.
    """
    lines = [f"{_digest(folder / name)}  {name}\n" for name in sorted(_files(folder))]
    with replacing(folder / SUMS) as file:
        file.write("".join(lines).encode())


def is_sealed(folder: epath.Path) -> bool:
    """Whether there are sums, whatever they say."""
    return (folder / SUMS).exists()


def broken_seal(folder: epath.Path) -> list[str] | None:
    """The files below `folder` that were changed, are missing or were added since it was sealed.

    Args:
      folder: of one step.

    Returns:
      Relative paths in order, none if all is as it was; None if there is no seal.
    """
    if not is_sealed(folder):
        return None
    return sorted({*_unlike(folder), *_files(folder) - _sums(folder).keys()})


def damaged_files(folder: epath.Path) -> list[str]:
    """Those of `broken_seal` that were changed or are missing; none without a seal."""
    return sorted(_unlike(folder)) if is_sealed(folder) else []


def _unlike(folder: epath.Path) -> Iterator[str]:
    there = _files(folder)
    for name, digest in _sums(folder).items():
        if name not in there or _digest(folder / name) != digest:
            yield name


def _sums(folder: epath.Path) -> dict[str, str]:
    """Digests by path. Where a line is no sum, the seal itself is a path, whose digest it cannot be."""
    lines = (folder / SUMS).read_bytes().decode(errors="replace").splitlines()
    matches = [_LINE.fullmatch(line) for line in lines]
    sums = {match[2]: match[1] for match in matches if match}
    return sums if lines and all(matches) else sums | {SUMS: ""}


def _files(folder: epath.Path, prefix: str = "") -> set[str]:
    """Relative paths of the files below `folder`, but for the seal, whole or half-written."""
    found: set[str] = set()
    for path in folder.iterdir():
        if path.is_dir():
            found |= _files(path, f"{prefix}{path.name}/")
        elif prefix or not (path.name == SUMS or path.name.startswith(f".{SUMS}.")):
            found.add(prefix + path.name)
    return found


def _digest(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
