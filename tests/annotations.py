"""Use jaxtyping's import hook (see pyproject.toml) to check type annotations and array shapes while tests run."""

from beartype import BeartypeConf, beartype

# Accept an int for a float, as type checkers do (PEP 484).
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
