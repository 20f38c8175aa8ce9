"""The `deeplab-jax` console script.

Each command is a function that imports large packages only when called, which keeps --help fast.
"""

import contextlib
import functools
import io
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tyro.extras import SubcommandApp

from deeplab_jax.commands import data
from deeplab_jax.commands.compare import compare
from deeplab_jax.commands.demo import demo
from deeplab_jax.commands.exit import run_or_exit
from deeplab_jax.commands.export import export
from deeplab_jax.commands.import_annotations import import_annotations
from deeplab_jax.commands.plan import plan
from deeplab_jax.commands.predict import predict
from deeplab_jax.commands.report import report
from deeplab_jax.commands.robustness import robustness
from deeplab_jax.commands.verify import verify
from deeplab_jax.commands.warm import warm
from deeplab_jax.commands.weights import export_weights, import_weights, list_weights
from deeplab_jax.errors import ConfigError
from deeplab_jax.files import expand_home
from deeplab_jax.runtime.machine import reuse_step_memory

Command = Callable[..., None]

COMMANDS: dict[str, Command | dict[str, Command]] = {
    "data": {
        "synthetic": data.synthetic,
        "labels": data.labels,
        "check": data.check,
        "prepare": data.prepare,
        "import": import_annotations,
    },
    "weights": {"import": import_weights, "export": export_weights, "list": list_weights},
    "verify": verify,
    "plan": plan,
    "predict": predict,
    "report": report,
    "robustness": robustness,
    "compare": compare,
    "export": export,
    "demo": demo,
    "warm": warm,
}


def main() -> None:
    """Run `deeplab-jax COMMAND ...`."""
    reuse_step_memory()
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
        raise ConfigError(_explain_usage(message.getvalue(), arguments)) from None


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


def _explain_usage(message: str, arguments: Sequence[str]) -> str:
    """Return a tyro error message as one line, without its box and help texts, ending with the help command to run."""
    # The first line is the box's title. Without a UTF-8 terminal, the box has no side borders, and its lines are dashes.
    lines = [line[1:].strip("│").rstrip() for line in message.splitlines()[1:]]
    # Below an option, its help text is indented by eight more spaces.
    body = " ".join(line for line in lines if not line.startswith(" " * 9))
    reason = " ".join(re.sub("[─╯]+|-{3,}", "─", body).split()).partition(" For full helptext, ")[0]
    reason = _explain_value(reason)
    reasons = re.sub(r"(Argument helptext|Perhaps you meant):[^─]*", "", reason).split("─")
    # The command that tyro names is not always the one that was called.
    command = _find_command(arguments)
    values = arguments[len(command) :]
    reasons += [_explain_fields(command, values), _explain_missing_path(reason, values)]
    return (
        f"{'. '.join(each.strip(' .') for each in reasons if each.strip())}. See {' '.join(['deeplab-jax', *command])} --help."
    )


def _explain_value(reason: str) -> str:
    """Return tyro's reason without Python's types and errors if it is about the value of an option."""
    option = r"Error parsing (\S+): "
    reason = re.sub(rf"{option}invalid literal for int\(\) with base 10: ('.*?')", r"`\1` (=\2) is not a whole number", reason)
    reason = re.sub(rf"{option}could not convert string to float: ('.*?')", r"`\1` (=\2) is not a number", reason)

    def explain(match: re.Match[str]) -> str:
        name, form, words = match.groups()
        return f"`{name}` (={words.replace(', ', ' ')}) cannot be read. Give {form.strip('{}')}"

    def list_choices(match: re.Match[str]) -> str:
        value, name, listed = match.groups()
        choices = [choice for choice in re.findall(r"'(.*?)'", listed) if choice != "None"]  # in random order
        return f"`{name}` (={value}) is not supported. Use one of {', '.join(sorted(choices, key=lambda x: (len(x), x)))}"

    reason = re.sub(r"invalid choice ('.*?') for argument '(\S+)'\. Expected one of \((.*?)\)", list_choices, reason)
    several = rf"{option}no type matching (?:{{None}}\|)?(.*?) could be instantiated from \[(.*?)\]\.[^─]*"
    return re.sub(several, explain, reason)


def _find_command(arguments: Sequence[str]) -> list[str]:
    """Return the words at the start of a command line that name a command or a group of commands."""
    names: list[str] = []
    table: Any = COMMANDS
    for word in arguments:
        if not isinstance(table, dict) or word not in table:
            break
        names, table = [*names, word], table[word]
    return names


def _explain_fields(command: Sequence[str], values: Sequence[str]) -> str:
    """Return how the command takes config fields if they are given as train.py takes them, or ""."""
    matches = [re.match(r"--?(?=\w+\.)(?:config\.)?([\w.]+=.*)", word) for word in values]
    fields = [match[1] for match in matches if match]
    if list(command) != ["plan"] or not fields:
        return ""
    return f"This command takes config fields without dashes: --config FILE.py {shlex.join(fields)}"


def _explain_missing_path(reason: str, values: Sequence[str]) -> str:
    """Return what is wrong with a path whose options are missing, so that both are reported at once, or ""."""
    path = values[0] if values else ""
    if "Missing from" not in reason or re.match(r"-|$|.*[=:*?\[]", path):
        return ""
    from etils import epath

    from deeplab_jax.checkpoints.paths import describe_path, find_run

    return "" if epath.Path(path).exists() or find_run(path) else f"{path!r} {describe_path(path)}"
