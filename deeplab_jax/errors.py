"""Errors that users can fix. Each message is one line that gives the argument, its value, the problem and the fix."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class DeeplabError(Exception):
    """Base class for errors that users can fix. Programs print the message as one line and exit with `exit_code`.

    Attributes:
      exit_code: 2, or 3 if the same command can succeed later without a change. SLURM and Kubernetes then start it again.
    """

    exit_code = 2


class ConfigError(DeeplabError):
    """An invalid config field or flag, or a combination of fields that cannot work."""


class DataError(DeeplabError):
    """A data set, list, image or label file that is unreadable or does not match the config."""


class CheckpointError(DeeplabError):
    """A missing or damaged checkpoint, or a checkpoint for a different model."""


class TrainingError(DeeplabError):
    """A training run that cannot continue because its loss or gradients are not finite."""


class OutOfMemoryError(DeeplabError):
    """A computation that needs more memory than the host or a device has.

    Attributes:
      reason: What ran out of memory, or what the computation needs.
      advice: What to lower.
    """

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason, advice)  # `args` must suffice to make the error again in another process
        self.reason, self.advice = reason, advice

    def __str__(self) -> str:
        return f"{self.reason} {self.advice}"


class BucketError(DeeplabError):
    """A bucket that does not exist, cannot be reached or may not be used, or whose package is missing.

    It says nothing about single files, which raise FileNotFoundError as on disk.
    """


class BucketOutageError(BucketError):
    """A bucket that did not answer, or not without errors, for longer than the packages' own retries."""

    exit_code = 3


class HostError(DeeplabError):
    """Another process in the run has exited or cannot be reached."""

    exit_code = 3


def choose(name: str, table: Mapping[str, T], field: str) -> T:
    """Return the entry called `name` in `table`.

    Args:
      name: The name to look up.
      table: The supported entries, keyed by name.
      field: The config field or flag that was set to `name`, for the error message.

    Raises:
      ConfigError: `name` is not in the table.
    """
    if name not in table:
        raise ConfigError(f"`{field}` (={name!r}) is not supported. Use one of {', '.join(table)}.")
    return table[name]


def summarize(items: Iterable[object], most: int = 5) -> str:
    """Return the first items and the number of the others, such as "a, b and 7 more", or "nothing" if there are none."""
    names = [str(item) for item in items]
    return (", ".join(names[:most]) or "nothing") + (f" and {len(names) - most} more" if len(names) > most else "")


def one_line(error: BaseException) -> str:
    """Return another library's error message as one line of at most 200 characters, for use in our own messages."""
    return " ".join(str(error).split())[:200] or type(error).__name__
