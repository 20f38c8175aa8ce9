"""A lock on a run folder, so that two runs never write to the same one."""

import contextlib
import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import jax
from etils import epath

from deeplab_jax.buckets import create_file, is_url, touch_file
from deeplab_jax.errors import BucketError, ConfigError
from deeplab_jax.files import advise_on_write_error
from deeplab_jax.runtime.shared_errors import failing_together

AnyPath: TypeAlias = Path | epath.Path  # the second for buckets
LOCK = "lock.json"
# The owner touches its lock this often. A lock that was not touched for `_STALE_SECONDS` belongs to a run that has ended.
# The other processes of a run on CPUs wait for at most 30 s.
_TOUCH_SECONDS, _STALE_SECONDS = 3.0, 20.0
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


@contextlib.contextmanager
def lock_workdir(workdir: str, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Hold the lock on a run folder for all processes of the run. All processes must call this.

    The first process takes the lock; see `lock_folder`. If it fails, all processes raise its error.

    Yields:
      A function that checks that the lock is still held. All processes must call it, and all raise its error.
    """
    with contextlib.ExitStack() as stack:
        check = _do_nothing
        with failing_together():
            if jax.process_index() == 0:
                check = stack.enter_context(lock_folder(workdir, say))
        yield failing_together()(check)


def _do_nothing() -> None:
    pass


@contextlib.contextmanager
def lock_folder(folder: str, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Hold the lock on a run folder during the `with` block. Create the folder if it does not exist.

    The lock of a run that has ended without removing it is taken over. On the same host, its process is looked up. A process of
    another host, or of another container, cannot be looked up, so this waits until its lock is touched or has not been touched
    for 20 s. Buckets can be locked too: they create a file only if it does not exist, and note when it was written.

    Args:
      folder: The run folder.
      say: Function that is called with a message if there is a reason to wait.

    Yields:
      A function that checks that the lock is still held. It raises ConfigError if another run has taken it over, which can
      happen if this process was suspended for a while.

    Raises:
      ConfigError: Another run holds the lock, or the folder is not writable.
      BucketError: The bucket cannot be used.
    """
    path, own = (epath.Path(folder) if is_url(folder) else Path(folder)) / LOCK, _describe_this_process()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(path, own, say)
    except OSError as error:
        advice = advise_on_write_error(error, "Choose a different folder")
        raise ConfigError(f"`--workdir` (={folder!r}) is not writable ({error.strerror}). {advice}.") from None

    def check() -> None:
        try:
            owner, _ = _read(path)
        except (OSError, BucketError):
            return  # saving will report why the folder cannot be read
        if owner is None:
            raise ConfigError(
                f"{path} is gone or damaged, so another run might have used {folder} meanwhile. This one stops without "
                "saving. Run the same command again to resume from the last checkpoint."
            )
        if owner != own:
            raise ConfigError(f"Another run has taken over {folder}{_describe(owner)}, so this one stops without saving.")

    released = threading.Event()
    thread = threading.Thread(target=_touch_until, args=(path, own, released), daemon=True)
    thread.start()
    try:
        yield check
    finally:
        released.set()
        thread.join()
        with contextlib.suppress(OSError, BucketError):
            if _read(path)[0] == own:
                path.unlink()


def _acquire(path: AnyPath, own: dict[str, Any], say: Callable[[str], None]) -> None:
    first_touch, deadline = None, 0.0
    while not _create(path, own):
        owner, touched = _read(path)
        if owner == own:
            return  # NFS can repeat a request whose answer was lost, and then says that the lock exists
        if owner and _can_look_up(owner):
            if _is_alive(owner):
                is_copy = touched is not None and _now(path) - touched > _STALE_SECONDS  # or the owner is suspended
                raise _make_error(path, owner, f" If it is a copy of that run's folder, delete {path}." if is_copy else "")
            _remove_stale(path, owner)
        elif first_touch is None and touched is not None:
            age = _now(path) - touched
            first_touch, deadline = touched, time.monotonic() + min(_STALE_SECONDS, max(0.0, _STALE_SECONDS - age))
            if age < _STALE_SECONDS:
                limit = f"{_STALE_SECONDS:.0f} s"
                say(f"{path.parent} is locked{_describe(owner)}. Waiting for up to {limit} to see whether that run is alive.")
        elif touched is not None and touched != first_touch:
            raise _make_error(path, owner)
        elif touched is not None and time.monotonic() >= deadline:
            _remove_stale(path, owner)
        else:
            time.sleep(0.5)


def _make_error(path: AnyPath, owner: dict[str, Any] | None, advice: str = "") -> ConfigError:
    workdir = str(path.parent)
    return ConfigError(
        f"`--workdir` (={workdir!r}) is in use{_describe(owner)}. Wait for that run, or choose a different folder.{advice}"
    )


def _describe(owner: dict[str, Any] | None) -> str:
    return f" by process {owner['process']} on {owner['host']} since {owner['since']}" if owner else ""


def _create(path: AnyPath, own: dict[str, Any]) -> bool:
    """Create the lock, or return False if it exists. A link is atomic on network file systems too."""
    text = json.dumps(own) + "\n"
    if is_url(path):
        return _create_without_link(path, text)
    temporary = path.with_name(f".{LOCK}.{own['id']}.new")
    try:
        temporary.write_text(text)
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _create_without_link(path, text)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _create_without_link(path: AnyPath, text: str) -> bool:
    if is_url(path):
        return create_file(str(path), text.encode())
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def _remove_stale(path: AnyPath, owner: dict[str, Any] | None) -> None:
    """Remove a stale lock, unless another process has replaced it already.

    Of the processes that found the same stale lock, one at a time may look at it again and remove it.
    """
    permit = path.with_name(f".{LOCK}.{owner['id'] if owner else 'unknown'}.permit")
    if not _create_without_link(permit, ""):
        with contextlib.suppress(FileNotFoundError):
            if _now(path) - _read_time(permit) > _STALE_SECONDS:
                permit.unlink()  # the process that made it was killed
        time.sleep(0.05)
        return
    try:
        if _read(path)[0] == owner:
            path.unlink(missing_ok=True)
    finally:
        permit.unlink(missing_ok=True)


def _touch_until(path: AnyPath, own: dict[str, Any], released: threading.Event) -> None:
    while not released.wait(_TOUCH_SECONDS):
        with contextlib.suppress(OSError, BucketError):
            if _read(path)[0] == own:
                _touch(path)


def _touch(path: AnyPath) -> None:
    if is_url(path):
        touch_file(str(path))
    else:
        os.utime(path)


def _read_time(path: AnyPath) -> float:
    """Return when a file was last touched, by the file system's clock. In a bucket, it is in whole seconds."""
    return float(path.stat().mtime) if isinstance(path, epath.Path) else path.stat().st_mtime


def _read(path: AnyPath) -> tuple[dict[str, Any] | None, float | None]:
    """Return a lock's owner and the time when it was last touched, or (None, None) if there is no lock.

    The owner is None if the file is incomplete. Opening the file makes NFS ask the server for its current time.
    """
    try:
        if is_url(path):
            touched, text = _read_time(path), path.read_text()
        else:
            with path.open() as file:
                touched, text = os.fstat(file.fileno()).st_mtime, file.read()
    except FileNotFoundError:
        return None, None
    try:
        owner = json.loads(text)
        return (owner if {"id", "host", "space", "process", "started", "since"} <= owner.keys() else None), touched
    except (ValueError, AttributeError):
        return None, touched


def _now(path: AnyPath) -> float:
    """Return the file system's time, because the clocks of two hosts can differ."""
    probe = path.with_name(f".{LOCK}.{uuid.uuid4().hex}.time")
    probe.write_text("")
    try:
        return _read_time(probe)
    finally:
        probe.unlink()


def _describe_this_process() -> dict[str, Any]:
    return {
        "id": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "space": _process_space(),
        "process": os.getpid(),
        "started": _start_time(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _process_space() -> str:
    """Return a name for the set of processes that this process can look up. It changes with every boot and container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return ""


def _can_look_up(owner: dict[str, Any]) -> bool:
    if os.name == "nt":  # where `os.kill(process, 0)` sends Ctrl-C
        return False
    return (owner["host"], owner["space"]) == (socket.gethostname(), _process_space())


def _is_alive(owner: dict[str, Any]) -> bool:
    try:
        os.kill(owner["process"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # The start time of another user's process can be hidden.
    return _start_time(owner["process"]) in (owner["started"], "")


def _start_time(process: int) -> str:
    """Return a process's start time since boot, because the system uses a process's number again after its end.

    It is "" where /proc does not exist, and "ended" for a process that has ended and whose parent has not noticed yet.
    """
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "ended" if fields[0] in "ZX" else fields[19]
