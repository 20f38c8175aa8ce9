"""List files and folders, and leave out those that people do not see or did not create.

Training and `predict` both list folders with these functions. A folder is read once, and no file is opened or examined, because
a data set can have 25,000 images, and a request to a network drive takes milliseconds.
"""

import contextlib
import os
import posixpath
from collections.abc import Collection, Iterable, Iterator

from etils import epath

from deeplab_jax.buckets import is_url
from deeplab_jax.errors import DataError

# Folders that file managers, notebooks and network drives create.
TOOL_FOLDERS = frozenset(("@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"))
# Windows keeps where a file was downloaded from in a part of the file. On other systems, copies of it are files of their own.
DOWNLOAD_NOTE = ":Zone.Identifier"


def is_visible(name: str) -> bool:
    """Return whether a file or folder is neither hidden nor created by a file manager or a similar program."""
    return not name.startswith(".") and name not in TOOL_FOLDERS and not name.endswith(DOWNLOAD_NOTE)


def list_files(folder: epath.PathLike) -> list[str]:
    """Return the names of all visible files in `folder` and its subfolders, relative to `folder`, sorted by path.

    Links to folders are followed. If `folder` is not a folder, the list is empty.

    Raises:
      DataError: A folder cannot be listed.
    """
    return sorted(_walk(epath.Path(folder)), key=lambda name: name.split("/"))


def select(names: Iterable[str], suffixes: Collection[str]) -> list[str]:
    """Return the names with one of the suffixes, in upper or lower case."""
    return [name for name in names if suffix_of(name) in suffixes]


def suffix_of(name: str) -> str:
    """Return a file name's suffix in lower case, such as ".png", or ""."""
    return posixpath.splitext(name)[1].lower()


def list_folders(parent: epath.Path) -> list[str]:
    """Return the sorted names of the visible folders in `parent`, or an empty list if `parent` is not a folder.

    Raises:
      DataError: The folder cannot be listed.
    """
    if is_url(parent):
        names = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
        return sorted(filter(is_visible, names))
    with _report_errors(parent), os.scandir(parent) as entries:
        return sorted(entry.name for entry in entries if is_visible(entry.name) and entry.is_dir())
    return []


def list_names(folder: epath.Path) -> list[str]:
    """Return the names of everything in `folder`, or an empty list if it is not a folder.

    Raises:
      DataError: The folder cannot be listed.
    """
    if is_url(folder):
        return [path.name for path in folder.iterdir()] if folder.is_dir() else []
    with _report_errors(folder):
        return os.listdir(folder)
    return []


@contextlib.contextmanager
def _report_errors(folder: epath.PathLike) -> Iterator[None]:
    """Leave the block if `folder` is not a folder, and raise DataError if it cannot be listed."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"The folder {folder} cannot be listed ({reason}). Make it readable, or move it elsewhere.") from None


def _walk(folder: epath.Path) -> Iterator[str]:
    is_local, top = not is_url(folder), os.fspath(folder)
    above: dict[str, frozenset[str]] = {}  # the real paths of each folder and the folders that it is in
    for parent, folders, names in os.walk(top, onerror=_raise, followlinks=True) if is_local else folder.walk():
        place = str(parent)
        outer = above.get(os.path.dirname(place), frozenset())
        real = os.path.realpath(place) if is_local else place
        if real in outer:  # a link to a folder above it, which would never end
            folders[:] = []
            continue
        above[place] = outer | {real}
        folders[:] = sorted(filter(is_visible, folders))
        inner = str(parent)[len(top) :].replace(os.sep, "/").strip("/")
        yield from (f"{inner}/{name}" if inner else name for name in names if is_visible(name))


def _raise(error: OSError) -> None:
    """Raise DataError for an error of `os.walk`, which leaves out such folders otherwise."""
    with _report_errors(error.filename):
        raise error
