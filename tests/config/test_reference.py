import pathlib

from deeplab_jax.config.reference import render_markdown

PAGE = pathlib.Path(__file__).parent.parent.parent / "docs" / "reference" / "config.md"


def test_the_generated_page_is_up_to_date():
    stale = "docs/reference/config.md is stale. Run python -m deeplab_jax.config.reference > docs/reference/config.md"
    assert PAGE.read_text() == render_markdown(), stale
