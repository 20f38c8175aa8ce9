"""Generate the command reference, docs/reference/commands.md, from the command signatures and docstrings.

Run `python -m deeplab_jax.commands.reference > docs/reference/commands.md`.
"""

import ast
import inspect
import pathlib
import re
import types
import typing
from collections.abc import Iterator

import tyro

from deeplab_jax.commands import flags
from deeplab_jax.commands.main import COMMANDS, Command

ROOT = pathlib.Path(__file__).parents[2]

INTRODUCTION = """# Commands

This page is generated from the signatures and docstrings of the commands:
`python -m deeplab_jax.commands.reference > docs/reference/commands.md`.

`deeplab-jax COMMAND --help` prints the same for one command, and `python -m deeplab_jax` stands for `deeplab-jax`. All commands
have the same [exit codes](run-files.md#exit-codes).
"""

PROGRAM_FLAGS = """In addition, `--config.SECTION.FIELD=VALUE` overrides a [config field](config.md).

| flag | description |
| --- | --- |
"""


def render_markdown() -> str:
    """Return the command reference as Markdown."""
    parts = [INTRODUCTION]
    for name, command in COMMANDS.items():
        if isinstance(command, dict):
            parts += [_render_command(f"{name} {each}", function) for each, function in command.items()]
        else:
            parts.append(_render_command(name, command))
    return "\n".join([*parts, _render_program("train.py"), _render_program("eval.py")])


def _render_command(name: str, command: Command) -> str:
    introduction, _, arguments = (inspect.getdoc(command) or "").partition("\nArgs:\n")
    rows = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", arguments, re.MULTILINE)
    descriptions = {argument: _in_cell(text) for argument, text in rows}
    table = "| argument | default | description |\n| --- | --- | --- |\n"
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        table += f"| {_spell(parameter)} | {_spell_default(parameter)} | {descriptions[parameter.name]} |\n"
    return f"## deeplab-jax {name}\n\n{introduction.strip()}\n\n{table}"


def _spell(parameter: inspect.Parameter) -> str:
    """Return an argument as typed on the command line."""
    kind, *markers = _unwrap(parameter.annotation)
    settings = [marker for marker in markers if hasattr(marker, "metavar")]
    metavar = next((each.metavar for each in settings if each.metavar), "") or _make_metavar(kind)
    if tyro.conf.Positional in markers:
        return f"`{metavar}`"
    name = next((each.name for each in settings if each.name), "") or parameter.name.replace("_", "-")
    if kind is bool:
        return f"`--{name}`" + ("" if tyro.conf.FlagCreatePairsOff in markers else f", `--no-{name}`")
    return f"`--{name} {metavar}`"


def _spell_default(parameter: inspect.Parameter) -> str:
    value = parameter.default
    if value is parameter.empty:
        return "required"
    if value is None or value in ("", ()):
        return ""
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def _unwrap(annotation: typing.Any) -> tuple[typing.Any, ...]:
    """Return an argument type without `| None`, followed by its tyro markers."""
    if typing.get_origin(annotation) is typing.Annotated:
        kind, *markers = typing.get_args(annotation)
        return (_unwrap(kind)[0], *markers)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return _unwrap(next(kind for kind in typing.get_args(annotation) if kind is not types.NoneType))
    return (annotation,)


def _make_metavar(kind: typing.Any) -> str:
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return f"{{{','.join(map(str, arguments))}}}"
    if arguments:
        return " ".join("..." if each is ... else each.__name__.upper() for each in arguments)
    return str(kind.__name__).upper()


def _render_program(file: str) -> str:
    source = ast.parse((ROOT / file).read_text())
    table = "".join(f"| `--{name}` | {_in_cell(text)} |\n" for name, text in list_flags(source))
    return f"## python {file}\n\n{ast.get_docstring(source)}\n\n{PROGRAM_FLAGS}{table}"


def list_flags(source: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the name and description of each flag that a program defines.

    The source is parsed rather than imported, because both programs define `--config` and absl allows that only once per
    process.
    """
    shared = ast.parse(inspect.getsource(flags.define_host_flags))
    for node in (*ast.walk(source), *ast.walk(shared)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("DEFINE_"):
            name, _, text = (ast.literal_eval(argument) for argument in node.args)
            yield name, text


def _in_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(render_markdown(), end="")
