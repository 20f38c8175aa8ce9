"""Flags of train.py and eval.py: the recipe with its overrides, and where the processes of a run find each other."""

import collections
import contextlib
import dataclasses
import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console

import deeplab_jax.config
from deeplab_jax.config import Config
from deeplab_jax.errors import ConfigError, run_or_exit

_NO_CONFIG = "`--config` is missing: give a recipe, such as --config=configs/quickstart.py"


def define_host_flags() -> None:
    """Define the flags of `join_hosts`, for programs that run on several hosts."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT at which process 0 listens, for a run of several processes.")
    flags.DEFINE_integer("num_processes", None, "Number of processes of the run; found automatically under a launcher.")
    flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")


@contextlib.contextmanager
def join_hosts() -> Iterator[Console]:
    """Join the processes of the run for the part of a program that computes; an error on one of them ends it there.

    Yields:
      A console that is quiet on all processes but the first.

    Raises:
      ConfigError: The flags do not fit together, or the processes do not find each other.
    """
    import jax

    from deeplab_jax.runtime import hosts

    with hosts.leave_on_error():
        hosts.start(flags.FLAGS.coordinator, flags.FLAGS.num_processes, flags.FLAGS.process_id)
        yield Console(soft_wrap=True, highlight=False, quiet=jax.process_index() > 0)


def run_with_flags(program: Callable[[], None]) -> None:
    """Parse absl's flags and run `program`; a user's mistake becomes one line and exit code 2."""
    # Orbax and TensorFlow report every save and every kernel at "info".
    logging.set_verbosity(logging.WARNING)
    app.run(lambda _: run_or_exit(program), flags_parser=lambda argv: run_or_exit(lambda: _parse_flags(argv)))


def require_config(value: Any) -> Config:
    """Return the value of a `--config` flag, validated.

    Raises:
      ConfigError: No file was given, it cannot be read, it holds no `Config`, or `validate` objects.
    """
    if value is None:
        raise ConfigError(_NO_CONFIG)
    if not isinstance(value, Config):
        # config_flags defers the error of an unreadable file until an attribute is asked for.
        try:
            value.seed  # noqa: B018
        except OSError as error:
            raise ConfigError(f"`--config` cannot be used: {_one_line(error)}") from None
        except AttributeError:
            pass
        raise ConfigError(f"`--config` holds a {type(value).__name__}: get_config() must return a deeplab_jax.config.Config")
    from deeplab_jax.models import validate  # JAX, for which a mistyped flag should not wait

    return validate(value)


def load_recipe(path: str, fields: Sequence[str] = ()) -> Config:
    """Return the config that `--config=path --config.FIELD=VALUE ...` gives train.py.

    Raises:
      ConfigError: See `require_config`; or a field does not exist or cannot have the value.
    """
    words = ["", f"--config={path}", *(f"--config.{field}" for field in fields)]
    values = flags.FlagValues()
    flag = config_flags.DEFINE_config_file("config", None, "", values, sys_argv=words)
    _parse_flags(words, values)
    return require_config(flag.value)


def _parse_flags(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    try:
        rest = values(list(argv))
    except flags.Error as error:
        # The flags of fields exist once a recipe is given.
        is_field = isinstance(error, flags.UnrecognizedFlagError) and error.flagname.startswith("config.")
        raise ConfigError(_NO_CONFIG if is_field else _one_line(error)) from None
    except dataclasses.FrozenInstanceError:
        raise ConfigError("`--config.labels` cannot be set by flags: write the label set in the config file") from None
    # config_flags lets these through for a recipe that cannot be imported and for fields that do not exist.
    except (KeyError, OSError, TypeError, SyntaxError, ImportError, AttributeError) as error:
        raise ConfigError(_unknown_field(str(error)) or f"`--config` cannot be used: {_one_line(error)}") from None
    given = collections.Counter(re.findall(r"^--?(config\.[\w.]+)", "\n".join(argv), re.MULTILINE))
    for name, times in given.items():
        if times > 1 and isinstance(values[name].value, list):  # a tuple's, which would become one longer tuple
            raise ConfigError(f"`--{name}` is given {times} times: give it once")
    if rest[1:]:
        raise ConfigError(f"`{rest[1]}` is no flag: fields of the config are set with --config.FIELD=VALUE")
    return rest


def _one_line(error: BaseException) -> str:
    # config_flags puts a whole traceback into some messages: its last line is the reason.
    head, _, trace = str(error).partition("Traceback")
    line = " ".join(f"{head} {trace.strip().splitlines()[-1] if trace else ''}".split())
    return re.sub(r".*Failed loading config file.*(?=\[Errno)", "", line)


def _unknown_field(message: str) -> str:
    """Return what to say about a field that config_flags did not find; "" if `message` is about something else."""
    match = re.search(r"Field (?P<name>\w+) not found on dataclass .*\.(?P<owner>\w+)'", message)
    match = match or re.search(r"\.(?P<owner>\w+)'>\.(?P<name>\w+) does not exist", message)
    if not match:
        return ""
    known = [field.name for field in dataclasses.fields(getattr(deeplab_jax.config, match["owner"]))]
    near = "".join(f"did you mean {name}? " for name in difflib.get_close_matches(match["name"], known, n=1))
    return f"`{match['name']}` is no field of the config's {match['owner']}: {near}it has {', '.join(known)}"
