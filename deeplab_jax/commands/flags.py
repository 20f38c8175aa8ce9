"""Handle the train.py and eval.py flags that select a recipe, override its fields and connect a run's processes."""

import collections
import contextlib
import dataclasses
import difflib
import errno
import itertools
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console

import deeplab_jax.config
from deeplab_jax.checkpoints.paths import RECIPE, describe_path, find_run
from deeplab_jax.commands.exit import run_or_exit
from deeplab_jax.config import Config, MeshConfig
from deeplab_jax.errors import ConfigError, DeeplabError
from deeplab_jax.files import expand_home
from deeplab_jax.runtime.machine import reuse_step_memory

_NO_CONFIG = "`--config` is missing. Give a recipe, for example --config=configs/quickstart.py."


def define_host_flags() -> None:
    """Define the flags that `join_hosts` uses to connect programs on several hosts."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT where process 0 listens, for a run with several processes.")
    flags.DEFINE_integer(
        "num_processes", None, "The number of processes in the run. Under a launcher, it is detected automatically."
    )
    flags.DEFINE_integer("process_id", None, "The index of this process, starting at 0.")


@contextlib.contextmanager
def join_hosts(mesh: MeshConfig) -> Iterator[Console]:
    """Connect the run's processes. If there are several, an error inside the block ends this process.

    Args:
      mesh: The config's mesh. In a single-process run, the CPU is divided into as many devices; see `split_cpu_for`.

    Yields:
      A console that only prints on the first process.

    Raises:
      ConfigError: The flags contradict each other, or the processes cannot connect.
    """
    import jax

    from deeplab_jax.runtime import hosts
    from deeplab_jax.runtime.console import make_console
    from deeplab_jax.runtime.mesh import split_cpu_for

    with hosts.exit_on_error():
        if not hosts.start(flags.FLAGS.coordinator, flags.FLAGS.num_processes, flags.FLAGS.process_id):
            split_cpu_for(mesh)
        yield make_console(quiet=jax.process_index() > 0)


def run_with_flags(program: Callable[[], None]) -> None:
    """Parse the absl flags and run `program`. User errors are printed as one line."""
    # At INFO level, orbax logs every save, and TensorFlow logs every kernel.
    logging.set_verbosity(logging.WARNING)
    reuse_step_memory()
    # config_flags reads sys.argv itself, and needs the recipe before the fields.
    sys.argv[1:] = put_recipe_first(run_or_exit(lambda: expand_home(sys.argv[1:])))
    app.run(lambda _: run_or_exit(program), flags_parser=lambda argv: run_or_exit(lambda: _parse_flags(argv)))


def put_recipe_first(words: Sequence[str]) -> list[str]:
    """Return command-line words with `--config=FILE` or `--config FILE` moved to the front."""
    first: list[str] = []
    rest: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word == "--":
            return [*first, *rest, word, *remaining]
        if word in ("--config", "-config"):
            first += [word, *itertools.islice(remaining, 1)]
        else:
            (first if re.match("--?config=", word) else rest).append(word)
    return [*first, *rest]


def require_config(value: Any) -> Config:
    """Return the validated config from a `--config` flag value.

    Raises:
      ConfigError: No file was given, the file is unreadable or does not return a `Config`, or the config is invalid.
    """
    if value is None:
        raise ConfigError(_NO_CONFIG)
    if not isinstance(value, Config):
        # If the file is unreadable, config_flags only raises the error when an attribute is read.
        try:
            value.seed  # noqa: B018
        except OSError as error:
            raise ConfigError(_explain_broken_recipe(error)) from None
        except AttributeError:
            pass
        raise ConfigError(
            f"`--config` returns a value of type {type(value).__name__}. "
            "Its get_config() must return a deeplab_jax.config.Config."
        )
    from deeplab_jax.models import validate  # JAX is slow to import, so mistyped flags are reported first

    return validate(value)


def require_workdir(path: str) -> str:
    """Return `path` if it is not a part of an existing run, where a new run would end up inside the old one.

    Raises:
      ConfigError: `path` is a run's `checkpoints` folder, a path in it, or its `best` or `latest`.
    """
    if run := find_run(path):
        raise ConfigError(
            f"`--workdir` (={path!r}) is a part of the run {run}. Give --workdir={run} to continue it. To start a new run from "
            f"its weights, give a new folder and --config.model.pretrained={path}."
        )
    return path


def load_recipe(path: str, fields: Sequence[str] = ()) -> Config:
    """Return the config that train.py would build from `--config=path --config.FIELD=VALUE ...`.

    Args:
      path: The recipe path.
      fields: Overrides in the form FIELD=VALUE.

    Raises:
      ConfigError: The recipe is invalid (see `require_config`), a field does not exist, or a value is invalid.
    """
    arguments = ["", *expand_home([f"--config={path}", *(f"--config.{field}" for field in fields)])]
    values = flags.FlagValues()
    flag = config_flags.DEFINE_config_file("config", None, "", values, sys_argv=arguments)
    _parse_flags(arguments, values)
    return require_config(flag.value)


def _parse_flags(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    recipes = re.findall(r"^--?config[=\n]([^:\n]*)", "\n".join(argv), re.MULTILINE)
    for path in recipes:
        # A recipe is executed. A weights file that is given by mistake must not be.
        if os.path.isfile(path) and not path.endswith(".py"):
            raise ConfigError(f"`--config` (={path!r}) is not a recipe, which is a Python file (.py). Give a recipe.")
    _require_single_fields(argv)
    try:
        rest = values(list(argv))
    except DeeplabError:
        raise
    except Exception as error:  # a recipe is a Python program, so it can raise any error
        cause = _find_cause(error)
        # The --config.FIELD flags are only defined once a recipe is given.
        if isinstance(cause, flags.UnrecognizedFlagError) and cause.flagname.startswith("config."):
            raise ConfigError(_NO_CONFIG) from None
        if isinstance(cause, flags.Error):
            raise ConfigError(_replace_python_words(_one_line(cause))) from None
        raise ConfigError(_explain_unknown_field(str(cause)) or _explain_broken_recipe(cause, *recipes[-1:])) from None
    if values["config"].present and values["config"].value is None:
        raise ConfigError("`--config` returns None. Its get_config() must return a deeplab_jax.config.Config.")
    counts = collections.Counter(re.findall(r"^--?(config\.[\w.]+)", "\n".join(argv), re.MULTILINE))
    for name, times in counts.items():
        # config_flags would concatenate the repeated values into one long tuple.
        if times > 1 and isinstance(values[name].value, list):
            raise ConfigError(f"`--{name}` is given {times} times. Give it once.")
    if rest[1:]:
        raise ConfigError(f"`{rest[1]}` is not a flag. Set config fields with --config.FIELD=VALUE.")
    return rest


def _require_single_fields(argv: Sequence[str]) -> None:
    """Raise a ConfigError if a flag sets the label set or a whole section of the config."""
    names = re.findall(r"^--?config\.(\w+(?:\.\w+)*)", "\n".join(argv), re.MULTILINE)
    if any(name.split(".")[0] == "labels" for name in names):
        raise ConfigError("`--config.labels` cannot be set by a flag. Set the label set in the recipe.")
    for name in names:
        section = getattr(Config(), name, None)
        if dataclasses.is_dataclass(section):
            fields = ", ".join(field.name for field in dataclasses.fields(section))
            raise ConfigError(f"`--config.{name}` is a section of the config. Set its fields instead: {fields}.")


def _find_cause(error: BaseException) -> BaseException:
    """Return the error that a recipe raised. config_flags and absl repeat some of these in errors of their own."""
    while error.__context__ and "Error whilst parsing config file" in str(error):
        error = error.__context__
    return error


def _explain_broken_recipe(error: BaseException, recipe: str = "") -> str:
    # config_flags repeats an OSError's message in an error of its own, without the errno and the file name.
    if match := re.search(r"\[Errno (\d+)\] [^:]*: '(.*)'$", str(error)):
        name = match[2]
        if int(match[1]) == errno.EISDIR:
            return f"`--config` (={name!r}) is a folder. Give a recipe. The config of a checkpoint is configs/stored.py:{name}."
        if int(match[1]) == errno.ENOENT and "Did you mean" in (description := describe_path(name, RECIPE)):
            return f"`--config` (={name!r}) {description}"
    reason = _one_line(error) if isinstance(error, OSError) else f"{type(error).__name__}: {_one_line(error)}".rstrip(": ")
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename in (recipe, os.path.abspath(recipe))]
    place = f"line {lines[-1]}: " if lines else ""
    return f"`--config` cannot be loaded ({place}{reason}). Fix the recipe or give a different one."


def _one_line(error: BaseException) -> str:
    return re.sub(r".*Failed loading config file.*(?=\[Errno)", "", " ".join(str(error).split()))


def _replace_python_words(message: str) -> str:
    """Return a flag's error message with advice in place of Python's or absl's reason why a value is wrong."""
    for words, advice in (
        (r"invalid literal for int\(\) with base 10: ", "Give an integer."),
        (r"could not convert string to float: ", "Give a number."),
        (r"\('Non-boolean argument to boolean flag', ", "Give true or false."),
    ):
        message = re.sub(f"{words}.*", advice, message)
    return message


def _explain_unknown_field(message: str) -> str:
    """Return our own error message if `message` reports an unknown config field, or "" otherwise."""
    match = re.search(r"Field (?P<name>\w+) not found on dataclass .*\.(?P<owner>\w+)'", message)
    match = match or re.search(r"\.(?P<owner>\w+)'>\.(?P<name>\w+) does not exist", message)
    # Recipes, rather than flags, cause these messages.
    match = match or re.match(r"'(?P<owner>\w+)' object has no attribute '(?P<name>\w+)'", message)
    match = match or re.match(r"(?P<owner>\w+)\.__init__\(\) got an unexpected keyword argument '(?P<name>\w+)'", message)
    section = getattr(deeplab_jax.config, match["owner"], None) if match else None
    if not match or not dataclasses.is_dataclass(section):
        return ""
    names = [field.name for field in dataclasses.fields(section)]
    hint = "".join(f"Did you mean {name}? " for name in difflib.get_close_matches(match["name"], names, n=1))
    return f"`{match['name']}` is not a field of {match['owner']}. {hint}Its fields are {', '.join(names)}."
