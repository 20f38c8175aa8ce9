import pathlib

from deeplab_jax.config.reference import markdown

PAGE = pathlib.Path(__file__).parent.parent.parent / "docs" / "config.md"


def test_the_page_is_what_the_fields_declare():
    stale = "docs/config.md is stale: python -m deeplab_jax.config.reference > docs/config.md"
    assert PAGE.read_text() == markdown(), stale
