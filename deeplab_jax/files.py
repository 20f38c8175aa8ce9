"""Files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from typing import IO

from etils import epath

from deeplab_jax.errors import ConfigError


def require_file(path: str, flag: str) -> None:
    """Raises ConfigError, before any work is done, where `path` cannot become a file."""
    file = epath.Path(path)
    if file.is_dir():
        raise ConfigError(f"`{flag}` (={path!r}) is a folder: name a file")
    there = next((parent for parent in file.parents if parent.exists()), None)
    if there and not there.is_dir():
        raise ConfigError(f"`{flag}` (={path!r}) would lie in {there}, which is a file: name another folder")


def require_folder(path: str | None, flag: str, example: str) -> str:
    """Return `path`, which need not exist.

    Raises:
      ConfigError: It is missing, or is a file.
    """
    if not path:
        raise ConfigError(f"`{flag}` is missing: give a folder, such as {flag}={example}")
    if epath.Path(path).is_file():
        raise ConfigError(f"`{flag}` (={path!r}) is a file: give a folder, such as {flag}={example}")
    return path


@contextlib.contextmanager
def replacing(path: epath.Path) -> Iterator[IO[bytes]]:
    """A file to write, which becomes `path` when the block ends; an error leaves `path` as it was. Folders are made.

    Raises:
      ConfigError: `path` cannot be written.
    """
    beside = path.parent / f".{path.name}.{os.getpid()}.new"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            yield file
        beside.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror or error}): fix this or choose another folder") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
