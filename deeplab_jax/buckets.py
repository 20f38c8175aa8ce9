"""Read and write `gs://`, `s3://` and `hf://` URLs with fsspec.

Importing this module registers `BucketPath`, so `epath.Path` returns it for these URLs, here and inside orbax and TFDS. Without
it, etils would use TensorFlow's file system where TensorFlow is installed, and fsspec elsewhere.

A bucket is not a disk:

- A file appears as a whole, once it is uploaded, or not at all. It cannot be appended to or renamed. Appending uploads it
  again, and renaming copies it.
- A folder is only a part of the names of files, so making one does nothing, and one without files does not exist.
- Removing or renaming a folder takes many requests and can be interrupted. `COMMIT_MARKER`, without which a checkpoint does not
  count, is removed first and copied last.

Listings are never cached, because TensorStore and other processes write to the same folders.
"""

import contextlib
import errno
import functools
import io
import logging
import os
import posixpath
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from etils import epath
from etils.epath import backend, gpath, stat_utils

from deeplab_jax.errors import BucketError, BucketOutageError, ConfigError, one_line

COMMIT_MARKER = "commit_success.txt"  # the file with which orbax ends a save to a bucket
SCHEMES = ("gs", "s3", "hf")
CHECKPOINT_SCHEMES = ("gs",)  # orbax stores arrays only on disk and in gs://
# For each scheme, the package that fsspec needs, and how to log in.
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "hf": "huggingface_hub"}
_LOGINS = {
    "gs": "Run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a key file",
    "s3": "Run `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "hf": "Run `hf auth login`, or set HF_TOKEN",
}
_BLOCK = 1 << 20  # bytes read at a time, if a file is not read as a whole


def is_url(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a URL, such as gs://bucket/run, and not a path on this machine."""
    return "://" in os.fspath(path)


def require_scheme(path: str, argument: str, schemes: Sequence[str] = SCHEMES) -> None:
    """Raise ConfigError if `path` is a URL with another scheme, or one in which a slash is missing."""
    if match := re.match(rf"({'|'.join(SCHEMES)}):/?(?!/)", path):
        raise ConfigError(f"`{argument}` (={path!r}) is not a URL. Did you mean {match[1]}://{path[match.end() :]}?")
    if is_url(path) and _scheme(path) not in schemes:
        urls = " or ".join(f"{scheme}://" for scheme in schemes)
        reason = "" if schemes == SCHEMES else ", because checkpoints can only be stored there"
        raise ConfigError(f"`{argument}` (={path!r}) cannot be used. Give a local path, or a URL with {urls}{reason}.")


def read_range(url: str, start: int, size: int) -> bytes:
    """Return up to `size` bytes of a file, starting at byte `start`. The file's end can make it fewer.

    Raises:
      BucketError: The bucket cannot be used.
      OSError: The file does not exist.
    """
    with _explain(url):
        return bytes(_file_system(url).cat_file(url, start=start, end=start + size))


def create_file(url: str, content: bytes) -> bool:
    """Create a file, or return False if it exists. Of several programs that try this at the same time, only one succeeds.

    Raises:
      BucketError: The bucket cannot be used.
    """
    try:
        with _explain(url):
            _file_system(url).pipe_file(url, content, mode="create")
    except FileExistsError:
        return False
    return True


def touch_file(url: str) -> None:
    """Update the time of a file in `gs://`, whoever wrote it. Its content stays, even if another program replaces it meanwhile.

    Raises:
      BucketError: The bucket cannot be used.
      OSError: The file does not exist.
    """
    with _explain(url):
        _file_system(url).setxattrs(url, touched=str(time.time_ns()))


@epath.register_path_cls([f"{scheme}://" for scheme in SCHEMES])
class BucketPath(gpath.PosixGPath):
    """An `epath.Path` for URLs."""

    @property
    def _backend(self) -> backend.Backend:
        return _BACKEND if self._uri_scheme else super()._backend

    @property
    def parent(self) -> "BucketPath":
        """The folder that the path is in. Like that of "/", the parent of a bucket is the bucket itself."""
        return self if self._uri_scheme and not _split(os.fspath(self))[1] else super().parent

    def read_bytes(self) -> bytes:
        """Return the file's content in a single request."""
        with _explain(os.fspath(self)):
            return bytes(_file_system(os.fspath(self)).cat_file(os.fspath(self)))

    def read_text(self, encoding: str | None = None) -> str:
        """Return the content of a text file in UTF-8."""
        return self.read_bytes().decode()


def _file_system(url: str) -> Any:
    return _make_file_system(_scheme(url))


def _scheme(url: str) -> str:
    return url.partition("://")[0]


def _split(url: str) -> tuple[str, str]:
    """Split a URL into the bucket, such as gs://bucket, and the name of a file or folder in it.

    Raises:
      BucketError: The URL names no bucket.
    """
    scheme, _, path = url.partition("://")
    bucket, _, name = path.partition("/")
    if not bucket:
        raise BucketError(f"{url} names no bucket. Give a URL such as {scheme}://BUCKET/FOLDER.")
    return f"{scheme}://{bucket}", name.strip("/")


@functools.cache
def _make_file_system(scheme: str) -> Any:
    import fsspec  # in each process, so that no process forks the connections of another one

    # gcsfs has another client for zonal buckets, which asks for the kind of each bucket. Not everyone may do this.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    for package in ("gcsfs", "fsspec"):  # they log the tracebacks of errors that BucketError reports in a line
        logging.getLogger(package).setLevel(logging.CRITICAL)
    return fsspec.filesystem(scheme, use_listings_cache=False)


@contextlib.contextmanager
def _explain(url: str) -> Iterator[None]:
    """Raise BucketError for whatever goes wrong with a bucket, except for errors that are about a single path in it."""
    bucket, _ = _split(url)
    try:
        yield
    except BucketError:
        raise
    except FileNotFoundError:
        _require_bucket(bucket)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from None
    except (FileExistsError, IsADirectoryError, NotADirectoryError):
        raise
    except ImportError:
        scheme = _scheme(url)
        raise BucketError(
            f"{url} needs the package {_PACKAGES[scheme]}. Run `pip install 'deeplab-jax[{scheme}]'` to install it."
        ) from None
    except Exception as error:  # each package has its own errors
        raise _as_bucket_error(error, url) from error


@functools.cache
def _require_bucket(bucket: str) -> None:
    """Raise BucketError if a bucket does not exist. Accounts that may not list it are given the benefit of the doubt."""
    scheme = _scheme(bucket)
    if scheme == "hf":  # the part after the scheme is not the repository
        return
    try:
        _make_file_system(scheme).ls(bucket, **({"max_results": 1} if scheme == "gs" else {}))
    except FileNotFoundError:
        raise BucketError(f"The bucket {bucket} does not exist. Create it, or fix its name.") from None
    except OSError:
        return
    except Exception as error:
        raise _as_bucket_error(error, bucket) from error


def _as_bucket_error(error: Exception, url: str) -> BucketError:
    names = {each.__name__ for each in type(error).__mro__}
    status = getattr(error, "code", None)
    if status == 401 or {"GoogleAuthError", "NoCredentialsError", "PartialCredentialsError"} & names:
        return BucketError(f"{url} cannot be used without credentials ({one_line(error)}). {_LOGINS[_scheme(url)]}.")
    if isinstance(error, PermissionError) or status == 403 or str(error).startswith("Forbidden"):
        advice = "Give it the permissions in docs/how-to/buckets.md, or log in as another one"
        return BucketError(f"This account may not use {url} ({one_line(error)}). {advice}.")
    reason = f"{url} cannot be used ({type(error).__name__}: {one_line(error)})"
    is_refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)  # not for a slow or busy server
    if is_refused or isinstance(error, TypeError | ValueError | AttributeError):
        return BucketError(f"{reason}. Check the URL, the bucket and the account.")
    return BucketOutageError(f"{reason}. Check the network, and run the same command again.")


def _explained(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: "_Backend", path: Any, *args: Any, **kwargs: Any) -> Any:
        with _explain(os.fspath(path)):
            return method(self, os.fspath(path), *args, **kwargs)

    return call


class _Reader(io.RawIOBase):
    """Reads a file in blocks."""

    def __init__(self, url: str) -> None:
        self._url = url
        with _explain(url):
            self._file = _file_system(url).open(url, "rb", block_size=_BLOCK)

    def readinto(self, buffer: Any) -> int:
        with _explain(self._url):
            return int(self._file.readinto(buffer))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


@contextlib.contextmanager
def _write(url: str, mode: str) -> Iterator[IO[Any]]:
    """Open a local file, and upload it when the block ends without an error."""
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, "file")
        if "a" in mode:
            # Not `get_file`, in which gcsfs nests its retries: it notices an outage only after minutes.
            with contextlib.suppress(FileNotFoundError), _explain(url), open(local, "wb") as copy:
                copy.write(_file_system(url).cat_file(url))
        with open(local, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
        # Upload only now, so that nothing appears if the block raises an error.
        with _explain(url):
            _file_system(url).put_file(local, url)


class _Backend(backend.Backend):
    """What `epath.Path` does with URLs."""

    def open(self, path: Any, mode: str) -> Any:
        url = os.fspath(path)
        if "r" not in mode:
            return _write(url, mode)
        file = io.BufferedReader(_Reader(url), _BLOCK)
        return file if "b" in mode else io.TextIOWrapper(file, "utf-8")

    @_explained
    def exists(self, path: str) -> bool:
        return self._find(path) is not None

    @_explained
    def isdir(self, path: str) -> bool:
        entry = self._find(path)
        return entry is not None and entry["type"] == "directory"

    def _find(self, path: str) -> dict[str, Any] | None:
        bucket, name = _split(path)
        if not name:  # many accounts may use the files in a bucket, but not ask for the bucket itself
            _require_bucket(bucket)
            return {"type": "directory"}
        # fsspec's own `exists` and `isdir` return False after any error. A run would then start again from the beginning.
        try:
            return dict(_file_system(path).info(path))
        except FileNotFoundError:
            _require_bucket(bucket)
            return None

    @_explained
    def listdir(self, path: str) -> list[str]:
        try:
            names = [name.rstrip("/") for name in _file_system(path).ls(path, detail=False)]
        except FileNotFoundError:
            _require_bucket(_split(path)[0])
            return []  # a folder that was made, but has no files yet
        folder = path.partition("://")[2].strip("/")  # some tools create a file for the folder itself
        return [posixpath.basename(name) for name in names if name != folder]

    @_explained
    def glob(self, path: str) -> list[str]:
        return [_as_url(match, path) for match in _file_system(path).glob(path)]

    def walk(self, top: Any, *, top_down: bool = True, on_error: Any = None) -> Iterator[tuple[Any, list[str], list[str]]]:
        url = os.fspath(top)
        with contextlib.suppress(FileNotFoundError), _explain(url):
            for folder, folders, names in _file_system(url).walk(url, topdown=top_down, on_error=on_error or "raise"):
                yield _as_url(folder, url), folders, [name for name in names if name]

    def makedirs(self, path: Any, *, exist_ok: bool = False, mode: int | None = None) -> None:
        self.mkdir(path, exist_ok=exist_ok)

    @_explained
    def mkdir(self, path: str, *, exist_ok: bool = False, mode: int | None = None) -> None:
        entry = self._find(path)
        if entry and not (exist_ok and entry["type"] == "directory"):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)

    @_explained
    def rmtree(self, path: str) -> None:
        files = _list_files(path)
        with ThreadPoolExecutor() as pool:
            for is_marker in (True, False):
                list(pool.map(_remove_file, (url for url in files if (posixpath.basename(url) == COMMIT_MARKER) is is_marker)))

    @_explained
    def remove(self, path: str) -> None:
        if self.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        _file_system(path).rm_file(path)

    @_explained
    def rename(self, path: str, dst: Any) -> None:
        target = os.fspath(dst)
        if self.exists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
        for name in sorted(_list_files(path), key=lambda name: posixpath.basename(name) == COMMIT_MARKER):
            self.copy(name, target + name[len(path.rstrip("/")) :], overwrite=True)
        self.rmtree(path)

    @_explained
    def replace(self, path: str, dst: Any) -> None:
        self.copy(path, dst, overwrite=True)
        self.remove(path)

    @_explained
    def copy(self, path: str, dst: Any, overwrite: bool) -> None:
        target = os.fspath(dst)
        if not overwrite and self.exists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
        _file_system(path).cp_file(path, target)

    @_explained
    def stat(self, path: str) -> stat_utils.StatResult:
        info = _file_system(path).info(path)
        is_folder, changed = info["type"] == "directory", info.get("mtime") or info.get("LastModified")
        seconds = int(changed.timestamp()) if hasattr(changed, "timestamp") else 0
        return stat_utils.StatResult(
            is_directory=is_folder, length=info["size"] or 0, mtime=seconds, owner=None, group=None, mode=None
        )


_BACKEND = _Backend()


def _remove_file(url: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # another process of the run can be faster
        _file_system(url).rm_file(url)  # `rm` would take a name such as run[1] for a pattern


def _as_url(name: str, like: str) -> str:
    return f"{_scheme(like)}://{name}"


def _list_files(folder: str) -> list[str]:
    """Return the URLs of all files in a folder and its subfolders.

    Raises:
      FileNotFoundError: There are none.
    """
    files = [_as_url(name, folder) for name in _file_system(folder).find(folder)]
    if not files:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), folder)
    return files
