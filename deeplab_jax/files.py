"""Check output paths and write files atomically."""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

from etils import epath

from deeplab_jax.buckets import SCHEMES, is_url, require_scheme
from deeplab_jax.errors import ConfigError

_HOME = re.compile(r"^((?:[\w.-]+=)?(?:.*\.py:)?)(~[\w.-]*)(?=/|$)")


def expand_home(words: Sequence[str]) -> list[str]:
    """Return command-line words with `~` expanded where it starts a path, because shells leave it alone after `=` or `:`.

    A path can be a whole word, or follow `--flag=`, `field=` or `recipe.py:`.

    Raises:
      ConfigError: A word is not UTF-8. TensorFlow, orbax and JSON files cannot hold such a path.
    """
    for word in words:
        if not _is_utf8(word):
            raise ConfigError(
                f"The argument {word!r} is not UTF-8. Set PYTHONUTF8=1 if your terminal shows it correctly, or rename the file."
            )
    return [_HOME.sub(lambda match: match[1] + os.path.expanduser(match[2]), word) for word in words]


def _is_utf8(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:  # Python stands for other bytes with half of a surrogate pair
        return False
    return True


def require_file(path: str, flag: str) -> None:
    """Check that `path` can be an output file. Call this before doing any work.

    Raises:
      ConfigError: `path` is a folder, one of its parents is a file or a link to nothing, or its folder is not writable.
    """
    require_scheme(path, flag)
    file = epath.Path(path)
    _require_link_targets(file.parents, path, flag)
    if file.is_dir():
        raise ConfigError(f"`{flag}` (={path!r}) is a folder. Give a file path.")
    nearest = next((parent for parent in file.parents if parent.exists()), None)
    if nearest and not nearest.is_dir():
        raise ConfigError(f"`{flag}` (={path!r}) would be inside {nearest}, which is a file. Choose a different folder.")
    if nearest and not is_url(file) and not os.access(nearest, os.W_OK):
        raise ConfigError(f"`{flag}` (={path!r}) would be inside {nearest}, which is not writable. Choose a different folder.")


def require_page(path: str, flag: str) -> None:
    """Check that `path` can be an HTML page. Call this before doing any work.

    Raises:
      ConfigError: See `require_file`. Or the name does not end in .html or .htm.
    """
    require_file(path, flag)
    if not path.lower().endswith((".html", ".htm")):
        raise ConfigError(f"`{flag}` (={path!r}) does not end in .html, but the file is an HTML page. Choose a different name.")


def _require_link_targets(folders: Iterable[epath.Path], path: str, flag: str) -> None:
    for folder in folders:
        if os.path.islink(folder) and not os.path.exists(folder):
            raise ConfigError(
                f"`{flag}` (={path!r}) cannot be used, because {folder} is a link to {os.readlink(folder)}, which does not "
                "exist. Create or mount that folder, or choose a different one."
            )


def require_folder(path: str | None, flag: str, example: str, schemes: Sequence[str] = SCHEMES) -> str:
    """Return `path` if it can be used as a folder. The folder does not have to exist yet.

    Args:
      path: The user's path, or None.
      flag: The flag that sets the path.
      example: An example path for the error message.
      schemes: The schemes that URLs can have.

    Raises:
      ConfigError: `path` is missing, is a file, is in a link to nothing, or is a URL with another scheme.
    """
    if not path:
        raise ConfigError(f"`{flag}` is missing. Give a folder, for example {flag}={example}.")
    require_scheme(path, flag, schemes)
    _require_link_targets([epath.Path(path), *epath.Path(path).parents], path, flag)
    if epath.Path(path).is_file():
        raise ConfigError(f"`{flag}` (={path!r}) is a file. Give a folder, for example {flag}={example}.")
    return path


def require_local(path: str, argument: str) -> str:
    """Return `path` if it is on this machine.

    Raises:
      ConfigError: `path` is a URL, or one in which a slash is missing.
    """
    if is_url(path):
        raise ConfigError(f"`{argument}` (={path!r}) is a URL, but this command only works on this machine. Give a local path.")
    require_scheme(path, argument)  # a slash can be missing
    return path


# What messages about a full disk contain, whatever library they come from.
FULL_DISK = re.compile("No space left on device|Disk quota exceeded")


def advise_on_write_error(error: object, otherwise: str = "Fix this or choose a different folder") -> str:
    """Return what to do after a failed write, without a full stop: free space if the disk is full, and `otherwise` if not.

    Args:
      error: The error, or its message. Libraries raise their own types of errors for a full disk.
      otherwise: What to do about other errors.
    """
    if FULL_DISK.search(str(error)):
        return "Free some disk space"
    return otherwise


@contextlib.contextmanager
def report_write_errors(path: epath.Path) -> Iterator[None]:
    """Raise ConfigError if the block cannot write `path`, for example because the disk is full."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"Cannot write {path}: {error.strerror or error}. {advise_on_write_error(error)}.") from None


def link_or_copy(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Make `target` a hard link to the file `source`, or a copy, because some file systems, such as exFAT, have no links.

    Raises:
      OSError: `target` cannot be written.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)  # without the permissions, which such file systems may refuse


@contextlib.contextmanager
def write_atomically(path: epath.Path) -> Iterator[IO[bytes]]:
    """Open a temporary file for writing, and rename it to `path`, or upload it to that URL, when the block ends.

    If the block raises an error, `path` is left unchanged. Missing parent folders are created.

    Raises:
      ConfigError: `path` cannot be written.
      BucketError: `path` is a URL that cannot be written.
    """
    if is_url(path):
        with report_write_errors(path), path.open("wb") as file:
            yield file
        return
    # In containers, many programs on the same disk have the same process id. The longest names would not leave room for both.
    start = path.name.encode(errors="surrogateescape")[:200].decode(errors="ignore")
    temporary = path.parent / f".{start}.{os.getpid()}.{secrets.token_hex(4)}.new"
    try:
        with report_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                yield file
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
