import pathlib

from deeplab_jax.commands.reference import render_markdown

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "reference" / "commands.md"


def test_the_page_matches_the_commands():
    stale = "docs/reference/commands.md is stale: python -m deeplab_jax.commands.reference > docs/reference/commands.md"
    assert PAGE.read_text() == render_markdown(), stale


def test_every_argument_has_a_description():
    assert "|  |\n" not in render_markdown()
