"""docs/config.md, the reference of all fields, from what the fields declare: `python -m deeplab_jax.config.reference`."""

import dataclasses
import typing

from deeplab_jax.config.schema import Config

INTRODUCTION = """# Config fields

Written from `deeplab_jax/config/schema.py` by `python -m deeplab_jax.config.reference > docs/config.md`. A recipe sets fields
in Python; `--config.SECTION.FIELD=VALUE` overrides one on the command line. A checkpoint is used with another value of a field
only where the last column is empty: **shapes** says that stored arrays would not fit, **meaning** that they would compute
something else.
"""


def markdown() -> str:
    """Return the page."""
    parts = [INTRODUCTION]
    for section in dataclasses.fields(Config):
        kind = typing.get_type_hints(Config)[section.name]
        if section.metadata:
            parts.append(f"## {section.name}\n\n{section.metadata['doc']} Default: `{section.default!r}`.\n")
        elif section.name != "labels":
            parts.append(f"## {section.name}\n\n{kind.__doc__.strip()}\n\n{_table(kind)}")
    return "\n".join(parts)


def _table(section: type) -> str:
    rows = ["| field | default | | changes |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(section):
        changes = "" if field.metadata["changes"] == "run" else field.metadata["changes"]
        doc = field.metadata["doc"].replace("|", "\\|")
        rows.append(f"| `{field.name}` | `{field.default!r}` | {doc} | {changes} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
