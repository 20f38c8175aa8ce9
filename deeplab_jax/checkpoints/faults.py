"""Turn the many errors of orbax and its storage layers into one line, on all processes of a run."""

import contextlib
import errno
import functools
import os
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
from etils import epath

from deeplab_jax.checkpoints.folders import DamagedError, list_steps
from deeplab_jax.errors import BucketError, BucketOutageError, CheckpointError, DeeplabError, one_line
from deeplab_jax.files import FULL_DISK, advise_on_write_error
from deeplab_jax.runtime.accelerators import require_devices
from deeplab_jax.runtime.hosts import as_host_error, is_true_on_all
from deeplab_jax.runtime.shared_errors import failing_together

T = TypeVar("T")
# The errors that TensorStore raises if a bucket refuses requests, and if it does not answer.
_REFUSAL = re.compile("^(PERMISSION_DENIED|UNAUTHENTICATED)")
_OUTAGE = re.compile("^(UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED)")
# How TensorStore reports the errors of a disk, in newer and older versions.
_DISK_ERROR = re.compile(r"\[(?:os_error_code='|OS error )(\d+)")
# The errors of a disk that mean damage. Others, such as a missing permission or a server that does not answer, do not.
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO)
_OBSTACLE_ADVICE = "It may be intact. Make it readable, and run the same command again"


def check_on_all_processes(check: Callable[[], T]) -> T:
    """Run `check` on every process, and return its result if it succeeds on all. All processes must call this function.

    Raises:
      DamagedError: `check` failed on at least one process.
      DeeplabError: `check` raised this error on at least one process, or one of the other processes has ended. Neither
        indicates damage.
    """
    fault = ""
    with failing_together():
        try:
            result = check()
        except DeeplabError:
            raise
        # Orbax passes on exceptions from its storage layers, such as ValueError, KeyError and OSError. Their messages are
        # often many lines long.
        except Exception as error:
            cause = _find_cause(error)
            if lost := as_host_error(cause):
                raise lost from error
            if isinstance(cause, MemoryError | jax.errors.JaxRuntimeError):
                raise  # a device error: the step is not damaged and must not be moved aside
            if bucket_error := _as_bucket_error(cause, "The checkpoint cannot be read"):
                raise bucket_error from error
            if _is_obstacle(cause):
                raise CheckpointError(f"A checkpoint cannot be read ({_describe_cause(error)}). {_OBSTACLE_ADVICE}.") from error
            fault = _describe_cause(error)
    if not is_true_on_all(not fault):
        raise DamagedError(fault or "another process cannot read it")
    return result


@contextlib.contextmanager
def report_errors(what: str, advise: Callable[[BaseException], str]) -> Iterator[None]:
    """Convert third-party errors in the `with` block into a CheckpointError with the message `what (reason). advice.`

    Args:
      what: What failed.
      advise: Function that returns the advice for an error.

    Raises:
      ConfigError: The error occurred because JAX found no device.
      HostError: The error occurred because one of the other processes ended.
      BucketError: The error occurred because a bucket refuses requests or does not answer.
    """
    try:
        yield
    except DeeplabError:
        raise
    except Exception as error:  # orbax raises many exception types; see `check_on_all_processes`
        require_devices()  # orbax needs them even to read arrays into host memory
        cause, reason = _find_cause(error), _describe_cause(error)
        known = as_host_error(cause) or _as_bucket_error(cause, what)
        raise known or CheckpointError(f"{what} ({reason}). {advise(cause)}.") from error


def _as_bucket_error(cause: BaseException, what: str) -> BucketError | None:
    """Return an error about a bucket, if TensorStore raised `cause` because a bucket cannot be used."""
    # A device without memory is RESOURCE_EXHAUSTED, too, and so are local files on a full disk.
    if isinstance(cause, jax.errors.JaxRuntimeError) or _DISK_ERROR.search(str(cause)) or FULL_DISK.search(str(cause)):
        return None
    if _REFUSAL.search(str(cause)):
        return BucketError(f"{what} ({one_line(cause)}). Check the credentials, and run the same command again.")
    if _OUTAGE.search(str(cause)):
        return BucketOutageError(f"{what} ({one_line(cause)}). Check the network, and run the same command again.")
    return None


def report_save_errors(folder: epath.Path) -> contextlib.AbstractContextManager[None]:
    """Report errors that occur while the checkpoints in `folder` are written; see `report_errors`."""
    return report_errors(f"Cannot write to {folder}", functools.partial(_advise_on_save, folder))


def _advise_on_save(folder: epath.Path, error: BaseException) -> str:
    advice = f"{advise_on_write_error(error, 'Fix this')}, then run the same command"
    try:
        steps = list_steps(folder)
    except (OSError, DeeplabError):
        return f"{advice} again"
    return f"{advice} to {f'resume from step {steps[-1]}' if steps else 'start from the beginning, because no step was saved'}"


def report_read_errors(step: epath.Path) -> contextlib.AbstractContextManager[None]:
    """Report errors that occur while a step is read; see `report_errors`."""
    return report_errors(f"Cannot read {step}", _advise_on_read)


def _advise_on_read(error: BaseException) -> str:
    return _OBSTACLE_ADVICE if _is_obstacle(error) else "It is damaged or incomplete. Use a different step"


def _is_obstacle(error: BaseException) -> bool:
    """Return whether a file could not be read for a reason that says nothing about its content."""
    match = _DISK_ERROR.search(str(error))
    number = error.errno if isinstance(error, OSError) else int(match[1]) if match else None
    return number is not None and number not in _DAMAGE


def _describe_cause(error: BaseException) -> str:
    cause = _find_cause(error)
    # Both are at the end of a long message.
    if match := FULL_DISK.search(str(cause)):
        return match[0]
    if match := _DISK_ERROR.search(str(cause)):
        return os.strerror(int(match[1]))
    return ("no " if isinstance(cause, KeyError) else "") + one_line(cause)


def _find_cause(error: BaseException) -> BaseException:
    # The outermost orbax error only says that a handler failed.
    while error.__cause__:
        error = error.__cause__
    return error
