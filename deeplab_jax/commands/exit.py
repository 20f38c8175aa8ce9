"""Run a command, and exit with one line after a user error."""

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import TextIO, TypeVar

from deeplab_jax.errors import ConfigError, DeeplabError, OutOfMemoryError

T = TypeVar("T")


def run_or_exit(program: Callable[[], T]) -> T:
    """Run a program and return its result, or exit after a user error.

    A DeeplabError, a JAX error about missing devices or memory, and output that goes to a full disk are reported in one line.
    The exit code is 2, or 3 if the same command can succeed later. After Ctrl-C, it is 130. If nobody reads the output any
    more, as in `| head`, it is 141. Standard streams that are closed, as by `>&-`, become the null device. Characters that the
    encoding of the output lacks are escaped.
    """
    _replace_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a notebook's is not
        sys.stdout.reconfigure(errors="backslashreplace")
    if not sys.warnoptions:
        # Pillow warns about damaged metadata, which are not used, and about transparency, which is noted with a file's name.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
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
    except OSError as error:
        from deeplab_jax.files import FULL_DISK

        if error.filename or not FULL_DISK.search(str(error)):
            raise
        print("error: The output cannot be written, because the disk is full. Free some disk space.", file=sys.stderr)
        sys.exit(ConfigError.exit_code)
    finally:
        _flush_or_discard(sys.stdout)


def _replace_closed_streams() -> None:
    """Open the null device for each closed standard stream.

    Otherwise, the next file to be opened, such as a checkpoint, would get the stream's number, and with it the messages of C
    libraries.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))  # gets the lowest free number


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
        if _is_current_folder_gone():
            raise ConfigError("The current folder was deleted. Change to one that exists, and try again.") from error
        if "No usable temporary directory" in str(error):  # TensorFlow's import looks for one
            raise ConfigError("No folder for temporary files can be written. Set TMPDIR to one that can.") from error
        if "jax" not in sys.modules:  # it was not needed, or its import failed
            if name := _find_jax_variable(error):
                raise ConfigError(f"`{name}` (={os.environ[name]!r}) is refused by JAX. Correct or unset it.") from error
            raise
        from deeplab_jax.runtime.accelerators import require_devices
        from deeplab_jax.runtime.memory import describe_out_of_memory

        require_devices()
        if what := describe_out_of_memory(error):
            raise OutOfMemoryError(
                what, "Use smaller batches or images. `deeplab-jax plan` estimates what training needs."
            ) from error
        raise


def _is_current_folder_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _find_jax_variable(error: Exception) -> str | None:
    """Return the environment variable whose value JAX refused when it was imported, or None for other errors."""
    names = re.findall(r"\bjax_\w+", str(error), re.IGNORECASE) if isinstance(error, ValueError) else []
    return next((name.upper() for name in names if name.upper() in os.environ), None)
