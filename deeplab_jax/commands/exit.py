"""Run a command, and exit with one line after a user error."""

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import TextIO, TypeVar

from deeplab_jax.errors import ConfigError, DeeplabError, OutOfMemoryError, one_line

T = TypeVar("T")


def run_or_exit(program: Callable[[], T]) -> T:
    """Run a program and return its result, or exit after a user error.

    A DeeplabError, or a JAX error about missing devices or memory, is printed as one line. Its exit code is 2, or 3 if the
    same command can succeed later. After Ctrl-C, the exit code is 130. If nobody reads the output any more, as in `| head`, it
    is 141. Characters that the encoding of the output lacks are escaped.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a notebook's is not
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return _explain_jax_errors(program)
    except DeeplabError as error:
        with contextlib.suppress(OSError):
            print(f"error: {escape_unprintable(str(error))}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    finally:
        _flush_or_discard(sys.stdout)


def escape_unprintable(text: str) -> str:
    """Return a text with its control characters escaped, because names of files can contain line breaks and terminal codes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _flush_or_discard(stream: TextIO | None) -> None:
    """Flush a stream. If this fails, discard its output, because Python would print a traceback when it exits."""
    if stream is None:  # it was closed before Python started
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        from deeplab_jax.runtime.console import discard  # Rich, which it imports, is not needed otherwise

        discard(stream)


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
