"""The console script `deeplab-jax`: its commands by name, and how every program answers a user's mistake.

A command is a function of its arguments, in a file of its own, that imports what it needs when it is called.
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
from deeplab_jax.commands.export import export
from deeplab_jax.commands.plan import plan
from deeplab_jax.commands.predict import predict
from deeplab_jax.commands.report import report
from deeplab_jax.commands.verify import verify
from deeplab_jax.commands.weights import export_weights, import_weights
from deeplab_jax.errors import ConfigError, run_or_exit

Command = Callable[..., None]

COMMANDS: dict[str, Command | dict[str, Command]] = {
    "data": {"synthetic": data.synthetic, "labels": data.labels, "check": data.check, "prepare": data.prepare},
    "weights": {"import": import_weights, "export": export_weights},
    "verify": verify,
    "plan": plan,
    "predict": predict,
    "report": report,
    "export": export,
    "demo": demo,
}


def main() -> None:
    """Run `deeplab-jax COMMAND ...`."""
    run_or_exit(lambda: parse(sys.argv[1:] or ["--help"])())


def parse(words: Sequence[str]) -> Callable[[], None]:
    """Return the call that `words` ask for.

    Raises:
      ConfigError: The words name no command, or do not fit it.
      SystemExit: They ask for help, which has been printed.
    """
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return _app(COMMANDS).cli(prog="deeplab-jax", args=words)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(_one_line(message.getvalue())) from None


def _app(commands: dict[str, Any]) -> SubcommandApp:
    app = SubcommandApp()
    for name, command in commands.items():
        if isinstance(command, dict):
            app.command(_app(command), name=name, help=", ".join(f"{name} {each}" for each in command))
        else:
            app.command(name=name)(_defer(command))
    return app


def _defer(command: Command) -> Callable[..., Callable[[], None]]:
    """Return a function that only binds its arguments: an error of `command` must not look to tyro like one of the words."""

    @functools.wraps(command)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], None]:
        return functools.partial(command, *args, **kwargs)

    return bind


def _one_line(message: str) -> str:
    """Return tyro's message, which is framed and ends with where to find help, as one line."""
    reason, _, program = " ".join(re.sub(r"[│╭╮╰╯─]+|-{3,}", " ", message).split()).partition(" For full helptext, run")
    return f"{reason.rstrip('.')}: see{program.removeprefix(':')}"
