"""Import the packages of the optional extra `import`."""

import importlib
from typing import Any

from deeplab_jax.errors import ConfigError


def import_extra(module: str, purpose: str) -> Any:
    """Return a module of the extra `import`.

    Args:
      module: The module's name.
      purpose: What needs it, for the error message.

    Raises:
      ConfigError: The package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = {"yaml": "PyYAML"}.get(module, module.partition(".")[0])
        raise ConfigError(
            f"{purpose} require the package {package}. Run `pip install 'deeplab-jax[import]'` to install it."
        ) from None
