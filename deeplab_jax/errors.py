"""The errors that a user can cause. Each message is one line with the argument, its value, the problem and the fix."""

import sys
from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")


class DeeplabError(Exception):
    """Base class of the errors that a user can fix. Programs print the message as one line and exit with code 2."""


class ConfigError(DeeplabError):
    """A config field or flag with an invalid value, or a combination of fields that cannot work."""


class DataError(DeeplabError):
    """A data set, list, image or label file that cannot be read or does not match the config."""


class CheckpointError(DeeplabError):
    """A checkpoint that is missing, is damaged, or belongs to a different model."""


class TrainingError(DeeplabError):
    """A training that cannot continue because its numbers are no longer finite."""


class HostError(DeeplabError):
    """Another process of the run has ended or cannot be reached."""


def choose(name: str, table: Mapping[str, T], field: str) -> T:
    """Return the entry of `table` with the given name.

    Args:
      name: The name of the entry.
      table: The supported entries, by name.
      field: The config field or flag that contains the name. The error message mentions it.

    Raises:
      ConfigError: The table has no entry with this name.
    """
    if name not in table:
        raise ConfigError(f"`{field}` (={name!r}) is not supported. Use one of {', '.join(table)}.")
    return table[name]


def one_line(error: BaseException) -> str:
    """Return the message of another library's error as one line of at most 200 characters, for use in our own messages."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def run_or_exit(program: Callable[[], T]) -> T:
    """Run a program and return its result, or exit if the program fails.

    A DeeplabError is printed as one line, and the exit code is 2. After Ctrl-C, the exit code is 130.
    """
    try:
        return program()
    except DeeplabError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
