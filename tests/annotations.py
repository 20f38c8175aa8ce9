"""What checks the package's annotations, shapes included, while tests run (jaxtyping's import hook, see pyproject.toml)."""

from beartype import BeartypeConf, beartype

# An int is a float, as type checkers have it.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
