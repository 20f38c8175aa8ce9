"""The `deeplab-jax` console script.

Each command is a function that imports large packages only when called, which keeps --help fast.
"""

import contextlib
import functools
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tyro.extras import SubcommandApp

from deeplab_jax.commands import data
from deeplab_jax.commands.demo import demo
from deeplab_jax.commands.exit import run_or_exit
from deeplab_jax.commands.export import export
from deeplab_jax.commands.import_annotations import import_annotations
from deeplab_jax.commands.plan import plan
from deeplab_jax.commands.predict import predict
from deeplab_jax.commands.report import report
from deeplab_jax.commands.verify import verify
from deeplab_jax.commands.warm import warm
from deeplab_jax.commands.weights import export_weights, import_weights
from deeplab_jax.errors import ConfigError
from deeplab_jax.files import expand_home

Command = Callable[..., None]

COMMANDS: dict[str, Command | dict[str, Command]] = {
    "data": {
        "synthetic": data.synthetic,
        "labels": data.labels,
        "check": data.check,
        "prepare": data.prepare,
        "import": import_annotations,
    },
    "weights": {"import": import_weights, "export": export_weights},
    "verify": verify,
    "plan": plan,
    "predict": predict,
    "report": report,
    "export": export,
    "demo": demo,
    "warm": warm,
}


def main() -> None:
    """Run `deeplab-jax COMMAND ...`."""
    run_or_exit(lambda: parse(expand_home(sys.argv[1:]) or ["--help"])())


def parse(arguments: Sequence[str]) -> Callable[[], None]:
    """Parse a command line and return a function that runs the command.

    Args:
      arguments: The command line, without the program name.

    Raises:
      ConfigError: The command does not exist, or its arguments are invalid.
      SystemExit: Help was requested and has been printed.
    """
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return _build_app(COMMANDS).cli(prog="deeplab-jax", args=arguments)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(_one_line(message.getvalue())) from None


def _build_app(commands: dict[str, Any]) -> SubcommandApp:
    app = SubcommandApp()
    for name, command in commands.items():
        if isinstance(command, dict):
            app.command(_build_app(command), name=name, help="Commands: " + ", ".join(f"{name} {each}" for each in command))
        else:
            app.command(name=name)(_defer(command))
    return app


def _defer(command: Command) -> Callable[..., Callable[[], None]]:
    """Return a function that binds arguments to `command` without calling it.

    tyro must not call the command itself, because it would report errors from the command as command-line errors.
    """

    @functools.wraps(command)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], None]:
        return functools.partial(command, *args, **kwargs)

    return bind


def _one_line(message: str) -> str:
    """Return a tyro error message as one line, without its box and help texts, ending with the help command to run."""
    # The first line is the box's title. Without a UTF-8 terminal, the box has no side borders, and its lines are dashes.
    lines = [line[1:].strip("│").rstrip() for line in message.splitlines()[1:]]
    # Below an option, its help text is indented by eight more spaces.
    body = " ".join(line for line in lines if not line.startswith(" " * 9))
    reason, _, program = " ".join(re.sub("[─╯]+|-{3,}", "─", body).split()).partition(" For full helptext, ")
    reasons = re.sub(r"(Argument helptext|Perhaps you meant):[^─]*", "", reason).split("─")
    help_command = re.sub("^(run|see):? |[ ─]+$", "", program)
    return f"{'. '.join(each.strip(' .') for each in reasons if each.strip())}. See {help_command}."
