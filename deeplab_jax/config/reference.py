"""Generate docs/reference/config.md, the config field reference, from the field declarations.

Run `python -m deeplab_jax.config.reference > docs/reference/config.md`.
"""

import dataclasses
import typing

from deeplab_jax.config.schema import Config

INTRODUCTION = """# Config fields

This page is generated from `deeplab_jax/config`: `python -m deeplab_jax.config.reference > docs/reference/config.md`.

A recipe sets fields in Python. On the command line, `--config.SECTION.FIELD=VALUE` overrides a field.

The last column shows whether a checkpoint can be used after a field is changed. An empty entry means that it can. **shapes**
means that the stored arrays would no longer fit. **meaning** means that they would fit, but the network would compute different
outputs with them.

The field `labels` is a [label set](data-formats.md#label-sets). It has no flag: recipes set it, and
`configs/custom_lite0.py:LABELS.json` reads it from a file. The default is `cityscapes`.
"""


def render_markdown() -> str:
    """Return the config field reference as Markdown."""
    parts = [INTRODUCTION]
    for section in dataclasses.fields(Config):
        kind = typing.get_type_hints(Config)[section.name]
        if section.metadata:
            parts.append(f"## {section.name}\n\n{section.metadata['doc']} Default: `{section.default!r}`.\n")
        elif section.name != "labels":
            parts.append(f"## {section.name}\n\n{kind.__doc__.strip()}\n\n{_render_table(kind)}")
    return "\n".join(parts)


def _render_table(section: type) -> str:
    rows = ["| field | default | description | changes |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(section):
        changes = "" if field.metadata["changes"] == "run" else field.metadata["changes"]
        doc = field.metadata["doc"].replace("|", "\\|")
        rows.append(f"| `{field.name}` | `{field.default!r}` | {doc} | {changes} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(render_markdown(), end="")
