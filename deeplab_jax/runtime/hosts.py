"""Coordinate a run's processes: connect them, exchange values, and detect lost processes."""

import contextlib
import functools
import hashlib
import json
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from deeplab_jax.errors import ConfigError, DeeplabError, HostError, one_line
from deeplab_jax.runtime.compilation import compile_program
from deeplab_jax.runtime.launchers import ProcessSpec, find_process_spec, parse_address
from deeplab_jax.runtime.machine import digest_code, list_packages

HEARTBEAT_SECONDS = 60  # JAX considers a process dead after this long without a heartbeat
_is_compiling = threading.Event()  # compiling can take longer than a step may take
EXIT_DELAY_SECONDS = 1.0  # delay before exiting on an error, so that the other processes can print theirs


def start(coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: int = 300) -> bool:
    """Connect this process to the others in the run. Call this before any other use of JAX.

    In a single-process run, this does nothing. If no flags are given, the launcher's environment variables are used. The
    supported launchers are Open MPI, SLURM's srun, TPU pods and, with the `kubernetes` package, indexed Kubernetes Jobs.

    If the processes do not find each other in time, each prints one line and exits with code 3. Raising an exception is not
    possible here, because JAX would abort the process.

    Args:
      coordinator: The HOST:PORT address that process 0 listens on.
      num_processes: The number of processes in the run.
      process_id: This process's index, from 0.
      timeout: How long to wait for the other processes, in seconds.

    Returns:
      Whether this process belongs to a run with other processes.

    Raises:
      ConfigError: The flags are inconsistent, the port is in use, or the processes have different device counts, code or
        packages.
    """
    spec = find_process_spec(coordinator, num_processes, process_id, os.environ)
    if spec is None:
        return False
    if spec.coordinator and spec.process_id == 0:
        _require_free_port(spec.coordinator)
    # JAX's preemption service would intercept SIGTERM, which must end the program or, during training, save and stop.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with _without_proxies(), _deadline(timeout, functools.partial(_explain_timeout, spec, timeout)):
            jax.distributed.initialize(
                spec.coordinator,
                spec.num_processes,
                spec.process_id,
                initialization_timeout=timeout + 60,  # later than our own deadline, which gives a more readable message
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                cluster_detection_method=_choose_detection(spec),
            )
    except (RuntimeError, OSError, ImportError, ValueError) as error:
        if isinstance(error, ValueError) and spec.num_processes is None:
            return False  # JAX did not find a TPU pod, so this is a single TPU host
        raise ConfigError(
            f"The run's processes cannot find each other ({one_line(error)}). "
            "Set --coordinator, --num_processes and --process_id."
        ) from None
    if spec.all_devices and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
        for kind in ("cuda", "rocm"):
            visible = os.environ.get(f"JAX_{kind.upper()}_VISIBLE_DEVICES", "all")
            jax.config.update(f"jax_{kind}_visible_devices", visible)
    _require_same_device_counts()
    require_same(code=digest_code(), packages=list_packages())
    return True


def _choose_detection(spec: ProcessSpec) -> str | None:
    """Return how JAX finds what is missing in `spec`.

    If nothing is, it must not look. It would ask Kubernetes or Google Cloud, which fails or takes minutes where they refuse.
    """
    is_complete = spec.all_devices and None not in (spec.coordinator, spec.num_processes, spec.process_id)
    return "deactivate" if is_complete else None


def _require_free_port(coordinator: str) -> None:
    """Check that the coordinator's port is free. Otherwise, JAX would crash or share the port with another run.

    Raises:
      ConfigError: The port is in use or cannot be opened.
    """
    _, port = parse_address(coordinator)
    is_dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if is_dual else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=is_dual).close()
    except OSError as error:
        raise ConfigError(
            f"`--coordinator` (={coordinator!r}) cannot be used ({error.strerror}). Choose a different port."
        ) from None


@contextlib.contextmanager
def _without_proxies() -> Iterator[None]:
    """Hide the proxy environment variables inside the block, so that gRPC connects to the other hosts directly."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.lower().endswith("_proxy")}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def _deadline(seconds: float, explain: Callable[[], str]) -> Iterator[None]:
    """If the block takes longer than `seconds`, print the message returned by `explain` and exit with code 3."""
    timer = threading.Timer(seconds, lambda: _print_and_exit(f"error: {explain()}", HostError.exit_code))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _explain_timeout(spec: ProcessSpec, timeout: int) -> str:
    """Return an error message for processes that did not find each other in time."""
    if not spec.coordinator:
        return (
            f"The run's processes did not find each other within {timeout} s. "
            "Set --coordinator=HOST:PORT to an address that all processes can reach."
        )
    missing = (
        f"Not all {spec.num_processes} processes connected to `--coordinator` (={spec.coordinator!r}) within {timeout} s. "
        "Start all of them with the same --coordinator and --num_processes, each with its own --process_id."
    )
    if spec.process_id == 0:
        return missing
    host, port = parse_address(spec.coordinator)
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        return (
            f"`--coordinator` (={spec.coordinator!r}) did not answer within {timeout} s ({error.strerror or error}). "
            "Check that process 0 is running there, and that this host can connect to that port."
        )
    return missing


def _require_same_device_counts() -> None:
    # On first use, JAX initialises the devices and waits for every process. Trigger this here, where every process arrives.
    try:
        devices = jax.devices()
    # JAX can raise various errors here. Exit directly, because `exit_process` would try to initialise the devices again.
    except Exception as error:
        _print_and_exit(
            f"error: JAX found no devices for this process ({one_line(error)}). Check which devices JAX can use on this host.",
            2,
        )
    counts = np.bincount([device.process_index for device in devices], minlength=jax.process_count())
    if (counts != counts[0]).any():
        other = int(np.argmax(counts != counts[0]))
        raise ConfigError(
            f"Process {other} has {counts[other]} devices, but process 0 has {counts[0]}. "
            "Give every process the same number of devices."
        )


def gather(array: Any) -> np.ndarray:
    """Gather one array per process onto all processes. All processes must call this.

    Args:
      array: A small array. Its shape and dtype must be the same on every process.

    Returns:
      The arrays, stacked along a new first axis: [processes, ...].
    """
    array = np.asarray(array)
    if _is_alone():
        return array[None]
    # Send raw bytes, because JAX would truncate 64-bit values to 32 bits.
    rows = multihost_utils.process_allgather(np.frombuffer(array.tobytes(), np.uint8))
    return np.frombuffer(rows.tobytes(), array.dtype).reshape(len(rows), *array.shape)


def is_true_on_all(ok: bool) -> bool:
    """Return whether `ok` is true on every process. All processes must call this."""
    return bool(gather(bool(ok)).all())


def is_true_on_any(flag: bool) -> bool:
    """Return whether `flag` is true on at least one process. All processes must call this."""
    return bool(gather(bool(flag)).any())


def barrier(name: str) -> None:
    """Wait until every process has reached the barrier with this name."""
    if not _is_alone():
        multihost_utils.sync_global_devices(name)


def compile_together(jitted: Any, *args: Any, **kwargs: Any) -> Any:
    """Compile `jitted` for these arguments, and wait until every process has done so. All processes must call this.

    Some processes take longer to compile than others, and Gloo gives up if the processes do not make contact within 30 s, so
    CPU runs might fail without the wait.
    """
    _is_compiling.set()
    try:
        program = compile_program(jitted, *args, **kwargs)
        barrier("compiled")
    finally:
        _is_compiling.clear()
    return program


def require_same(**facts: Any) -> None:
    """Check that every process was started with the same values. All processes must call this.

    Args:
      **facts: The JSON-serialisable values to compare. Dicts are compared field by field.

    Raises:
      ConfigError: The values differ. Every process raises this error. The message names a process that differs from process 0,
        and the fields that differ, such as `config.optim.lr`.
    """
    if _is_alone():
        return
    own = json.dumps(_flatten(facts), sort_keys=True).encode()
    digests = gather(np.frombuffer(hashlib.sha256(own).digest(), np.uint8))
    if (digests != digests[0]).any():
        raise ConfigError(_describe_difference([json.loads(text) for text in gather_bytes(own)]))


def _flatten(tree: Any, name: str = "") -> dict[str, str]:
    """Flatten a nested dict and encode its values as JSON, so {"a": {"b": 1}} becomes {"a.b": "1"}."""
    if not isinstance(tree, dict) or not tree:
        return {name: json.dumps(tree)}
    fields = (_flatten(value, f"{name}.{key}" if name else str(key)) for key, value in tree.items())
    return {key: value for field in fields for key, value in field.items()}


def gather_bytes(text: bytes) -> list[bytes]:
    """Gather one text per process, of any length, onto all processes. All processes must call this."""
    lengths = gather(len(text))
    padded = gather(np.frombuffer(text.ljust(lengths.max(), b"\0"), np.uint8))
    return [row.tobytes()[:length] for row, length in zip(padded, lengths, strict=True)]


def _describe_difference(tables: list[dict[str, str]], shown: int = 3) -> str:
    """Return an error message that lists up to `shown` differences between table 0 and the first table that differs."""
    process, other = next((i, table) for i, table in enumerate(tables) if table != tables[0])
    names = sorted(name for name in tables[0].keys() | other.keys() if tables[0].get(name) != other.get(name))
    parts = [
        f"`{name}` (={_shorten(other.get(name))}), process 0 with {_shorten(tables[0].get(name))}" for name in names[:shown]
    ]
    more = f"; and {len(names) - shown} more" if len(names) > shown else ""
    return (
        f"Process {process} was started with {'; '.join(parts)}{more}. "
        "Start every process with the same command, code and data."
    )


def _shorten(value: str | None) -> str:
    if value is None:
        return "nothing"
    return value if len(value) <= 80 else f"{value[:77]}..."


class Watchdog:
    """Ends this process if a step takes too long, because a collective waiting for a lost process cannot be cancelled.

    The watchdog has no effect in a single-process run. It starts counting at the first beat, because opening the data can take
    longer, and does not count while `compile_together` runs. It counts its own thread's ticks rather than elapsed time, so that
    a process can be paused and resumed.

    Args:
      seconds: How long to wait for the next beat before printing one line and exiting with code 3. If 0, wait forever.
    """

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._idle, self._last_beat, self._beaten = 0, 0.0, False
        self._leaving = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self._seconds and not _is_alone():
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()

    def beat(self) -> None:
        """Report that the process has made progress."""
        self._idle, self._last_beat, self._beaten = 0, time.time(), True

    def _watch(self) -> None:
        while not self._leaving.wait(1.0):
            self._idle += self._beaten and not _is_compiling.is_set()
            if self._idle > self._seconds:  # not >=, because the first tick can come immediately after the beat
                _print_and_exit(self._message(), HostError.exit_code)

    def _message(self) -> str:
        since = time.strftime("%H:%M:%S", time.localtime(self._last_beat))
        return (
            f"error: Process {jax.process_index()} of {jax.process_count()} has made no progress for {self._seconds} s, "
            f"since {since}. At least one process in the run has stalled or died. Check the output of all processes. "
            "The same command resumes from the last checkpoint. If a save or an image takes that long here, raise "
            "train.stall_timeout."
        )


def as_host_error(error: BaseException) -> HostError | None:
    """Convert an error caused by the loss of another process to a HostError.

    Returns:
      The HostError to show instead of `error`, or None if `error` has a different cause.
    """
    if not isinstance(error, RuntimeError | ValueError) or _is_alone():
        return None
    signs = r"Gloo|NCCL|coordination.?service|heartbeat|Connection (closed|reset) by peer|Socket closed"
    if not re.search(signs, str(error), re.IGNORECASE):
        return None
    return HostError(
        f"Another process in the run has ended or cannot be reached ({one_line(error)}). "
        "Check the output of all processes. The same command resumes from the last checkpoint."
    )


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """Exit this process if the block raises an error. Use this context manager around the main program.

    In a multi-process run, an error must end the process promptly, because the others might be waiting for it. The exit code
    is 2 for a user error, 3 for a lost process or bucket, 130 for Ctrl-C, and 1 for a bug, whose traceback is also printed.
    In a single-process run, errors propagate to the caller.
    """
    try:
        yield
    except BaseException as error:
        is_success = isinstance(error, SystemExit) and not error.code
        if is_success or _is_alone():
            raise
        exit_process(_report(error))


def _report(error: BaseException) -> int:
    """Print `error` for the user, and return the exit code."""
    known = error if isinstance(error, DeeplabError) else as_host_error(error)
    if known:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"error: {known}\n")
        return known.exit_code
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return 130
    traceback.print_exception(error)
    return 1


def exit_process(code: int) -> NoReturn:
    """Exit this process after an error.

    In a multi-process run, skip JAX's shutdown, because it would wait for the others while they wait for this process.
    """
    if _is_alone():
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a closed terminal must not keep this process from exiting
            stream.flush()
    # Give the other processes time to print the same error. Process 0 must exit last: it runs the coordinator, and JAX aborts
    # the other processes once the coordinator is gone.
    time.sleep(EXIT_DELAY_SECONDS * (2 if jax.process_index() == 0 else 1))
    os._exit(code)


def _is_alone() -> bool:
    # Check `is_initialized` first, because `process_count` would initialise the devices.
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def _print_and_exit(line: str, code: int) -> NoReturn:
    try:
        sys.stderr.write(f"{line}\n")  # a single write, because launchers interleave the output of different processes
        sys.stderr.flush()
    finally:
        os._exit(code)
