"""The errors a user can cause. Each message is one line: the argument, its value, what is wrong, what to do."""

import sys
from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")


class DeeplabError(Exception):
    """Base class of the errors that a user can fix. Entry points print them as one line and exit with code 2."""


class ConfigError(DeeplabError):
    """A field of the config, or a combination of fields, that cannot work."""


class DataError(DeeplabError):
    """A data set, list, image or label that cannot be read or does not mean what the config says."""


class CheckpointError(DeeplabError):
    """A checkpoint that is missing, damaged or of another model."""


class TrainingError(DeeplabError):
    """A training that cannot go on: its numbers are no longer finite."""


class HostError(DeeplabError):
    """Another process of the run ended, or cannot be reached."""


def choose(name: str, table: Mapping[str, T], field: str) -> T:
    """Return an entry of a table by its name.

    Raises:
      ConfigError: The table has no such name. `field` is the field or flag that gave it.
    """
    if name not in table:
        raise ConfigError(f"`{field}` (={name!r}) cannot be used: use one of {', '.join(table)}")
    return table[name]


def one_line(error: BaseException) -> str:
    """What another library says, short enough to stand in a message of ours."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def run_or_exit(program: Callable[[], T]) -> T:
    """Run a program; where it raises a DeeplabError, print that as one line and exit with code 2."""
    try:
        return program()
    except DeeplabError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
