"""Run a command, and exit with one line after a user error."""

import os
import sys
from collections.abc import Callable
from typing import TypeVar

from deeplab_jax import errors
from deeplab_jax.errors import ConfigError, DeeplabError, OutOfMemoryError, one_line

T = TypeVar("T")


def run_or_exit(program: Callable[[], T]) -> T:
    """Run a program like `errors.run_or_exit`, and also explain JAX's errors about missing devices and memory."""
    return errors.run_or_exit(lambda: _explain_jax_errors(program))


def _explain_jax_errors(program: Callable[[], T]) -> T:
    try:
        return program()
    except DeeplabError:
        raise
    except Exception as error:
        if "jax" not in sys.modules:  # importing it takes seconds
            raise
        if reason := _find_device_problem():
            platforms = os.environ.get("JAX_PLATFORMS", "")
            if not platforms:
                raise ConfigError(
                    f"JAX found no device ({reason}). Install JAX for what this machine has (see "
                    "docs/how-to/accelerators.md), or set JAX_PLATFORMS=cpu."
                ) from error
            raise ConfigError(
                f"`JAX_PLATFORMS` (={platforms!r}) cannot be used ({reason}). Install JAX for this device (see "
                "docs/how-to/accelerators.md), or unset JAX_PLATFORMS to use what this machine has."
            ) from error
        from deeplab_jax.runtime.memory import describe_out_of_memory

        if what := describe_out_of_memory(error):
            raise OutOfMemoryError(
                what, "Use smaller batches or images. `deeplab-jax plan` estimates what training needs."
            ) from error
        raise


def _find_device_problem() -> str | None:
    """Return why JAX cannot use any device, or None if it can."""
    import jax

    try:
        jax.devices()
    except Exception as error:  # JAX raises various types, including AssertionError without a message
        return one_line(error) if str(error) else "JAX found no such device"
    return None
