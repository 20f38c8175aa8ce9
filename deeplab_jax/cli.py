"""The console script, and how every entry point parses flags and reports errors."""

import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from absl import app, flags, logging
from etils import epath

from deeplab_jax import config as config_module
from deeplab_jax.config import Config, validate
from deeplab_jax.errors import ConfigError, DeeplabError

T = TypeVar("T")


def synthetic(
    out: Annotated[Path, tyro.conf.Positional],
    train: int = 128,
    val: int = 24,
    test: int = 8,
    size: tuple[int, int] = (192, 384),
    seed: int = 0,
) -> None:
    """Draw a small street-scene set in the Cityscapes layout.

    Args:
      out: folder to make.
      train: training scenes.
      val: validation scenes.
      test: test scenes, without labels.
      size: height and width in pixels.
      seed: another seed draws other scenes.
    """
    from deeplab_jax.data import synthetic as drawn

    drawn.write(out, train=train, val=val, test=test, size=size, seed=seed)
    print(f"{train} training, {val} validation and {test} test scenes are in {out}")


COMMANDS: dict[str, Callable[..., None]] = {"data synthetic": synthetic}


def main() -> None:
    """`deeplab-jax COMMAND ...`."""
    words = sys.argv[1:]
    for name, command in COMMANDS.items():
        length = len(name.split())
        if words[:length] == name.split():
            _or_exit(functools.partial(tyro.cli, command, prog=f"deeplab-jax {name}", args=words[length:]))
            return
    asked = words in ([], ["-h"], ["--help"])
    if not asked:
        print(f"error: `{' '.join(words)}` is no command of deeplab-jax\n", file=sys.stderr)
    print("usage: deeplab-jax COMMAND ...\n\ncommands (each has --help):", file=sys.stdout if asked else sys.stderr)
    for name, command in COMMANDS.items():
        print(f"  {name}: {(command.__doc__ or '').splitlines()[0]}", file=sys.stdout if asked else sys.stderr)
    sys.exit(0 if asked else 2)


def run_with_flags(program: Callable[[], None]) -> None:
    """Parses absl's flags and runs `program`; an error that is the user's to mend becomes one line and exit code 2."""
    # Orbax and TensorFlow report every save and every kernel at "info".
    logging.set_verbosity(logging.WARNING)
    app.run(lambda _: _or_exit(program), flags_parser=lambda argv: _or_exit(lambda: _parse_flags(argv)))


def checked_config(config: Any) -> Config:
    """The value of a `--config` flag, validated.

    Raises:
      ConfigError: no file was given, it cannot be read, it holds no `Config`, or `validate` objects.
    """
    if config is None:
        raise ConfigError("`--config` is missing: give a recipe, such as --config=configs/quickstart.py")
    if not isinstance(config, Config):
        # config_flags defers the error of an unreadable file until an attribute is asked for.
        try:
            config.seed  # noqa: B018
        except OSError as error:
            raise ConfigError(f"`--config` cannot be used: {_one_line(error)}") from None
        except AttributeError:
            pass
        raise ConfigError(f"`--config` holds a {type(config).__name__}: get_config() must return a deeplab_jax.config.Config")
    return validate(config)


def checked_folder(flag: str, value: str | None, example: str) -> str:
    """The value of a flag that names a folder, which need not exist.

    Raises:
      ConfigError: it is missing, or names a file.
    """
    if not value:
        raise ConfigError(f"`{flag}` is missing: give a run's folder, such as {flag}={example}")
    if epath.Path(value).is_file():
        raise ConfigError(f"`{flag}` (={value!r}) is a file: give a folder, such as {flag}={example}")
    return value


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(list(argv))
    except flags.Error as error:
        raise ConfigError(_one_line(error)) from None
    except dataclasses.FrozenInstanceError:
        raise ConfigError("`--config.labels` cannot be set by flags: write the label set in the config file") from None
    # What config_flags lets through of a recipe that cannot be imported, and of fields that do not exist.
    except (KeyError, OSError, TypeError, SyntaxError, ImportError, AttributeError) as error:
        raise ConfigError(_unknown_field(str(error)) or f"`--config` cannot be used: {_one_line(error)}") from None
    if rest[1:]:
        raise ConfigError(f"`{rest[1]}` is no flag: fields of the config are set with --config.FIELD=VALUE")
    return rest


def _one_line(error: BaseException) -> str:
    # config_flags puts a whole traceback into some messages: its last line is the reason.
    head, _, trace = str(error).partition("Traceback")
    return " ".join(f"{head} {trace.strip().splitlines()[-1] if trace else ''}".split())


def _unknown_field(message: str) -> str:
    """What to say of a field that config_flags did not find; "" if `message` is about something else."""
    found = re.search(r"Field (?P<name>\w+) not found on dataclass .*\.(?P<owner>\w+)'", message)
    found = found or re.search(r"\.(?P<owner>\w+)'>\.(?P<name>\w+) does not exist", message)
    if not found:
        return ""
    known = ", ".join(field.name for field in dataclasses.fields(getattr(config_module, found["owner"])))
    return f"`{found['name']}` is no field of the config's {found['owner']}: it has {known}"


def _or_exit(work: Callable[[], T]) -> T:
    try:
        return work()
    except DeeplabError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
