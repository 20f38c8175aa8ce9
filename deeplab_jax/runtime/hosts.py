"""The processes of one run: how they find each other, agree, and notice that one is gone."""

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
from deeplab_jax.runtime.launchers import Place, find_place, split_address

LOST = 3  # exit code of a process that ends because another one stalls or is gone
HEARTBEAT_SECONDS = 60  # without a sign of life, after which JAX takes a process for dead
FAREWELL_SECONDS = 1.0


def start(coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: int = 300) -> None:
    """Join the processes of the run; do nothing for a run of one. Call this before any other use of JAX.

    Without flags, the launcher's variables are read: Open MPI, SLURM's srun, a TPU pod, or an indexed Kubernetes Job with the
    `kubernetes` package. If the processes do not find each other in time, each ends with one line and exit code 2: JAX
    aborts then, which cannot be caught.

    Args:
      coordinator: HOST:PORT at which process 0 listens.
      num_processes: processes of the run.
      process_id: which of them this is, from 0.
      timeout: seconds to wait for the others.

    Raises:
      ConfigError: the flags do not fit together, the port is taken, or the processes have different numbers of devices.
    """
    place = find_place(coordinator, num_processes, process_id, os.environ)
    if place is None:
        return
    if place.coordinator and place.process_id == 0:
        _require_free(place.coordinator)
    # It would swallow SIGTERM, which ends a program or, in training, saves and stops.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with _without_proxies(), _deadline(timeout, functools.partial(_why_not_met, place, timeout)):
            jax.distributed.initialize(
                place.coordinator,
                place.num_processes,
                place.process_id,
                initialization_timeout=timeout + 60,  # after the deadline, whose message is readable
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )
    except (RuntimeError, OSError, ImportError, ValueError) as error:
        if isinstance(error, ValueError) and place.num_processes is None:
            return  # JAX finds no pod: a single TPU host
        raise ConfigError(
            f"the processes of the run cannot find each other ({one_line(error)}): "
            "give --coordinator, --num_processes and --process_id"
        ) from None
    if place.all_devices and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
        for kind in ("cuda", "rocm"):
            given = os.environ.get(f"JAX_{kind.upper()}_VISIBLE_DEVICES", "all")
            jax.config.update(f"jax_{kind}_visible_devices", given)
    _require_same_device_counts()


def _require_free(coordinator: str) -> None:
    """Raises ConfigError if the port is taken: JAX would crash, or share it with another run."""
    _, port = split_address(coordinator)
    both = socket.has_dualstack_ipv6()
    try:
        socket.create_server(("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both).close()
    except OSError as error:
        raise ConfigError(f"`--coordinator` (={coordinator!r}) cannot be used ({error.strerror}): give another port") from None


@contextlib.contextmanager
def _without_proxies() -> Iterator[None]:
    """Hides proxies from gRPC, which would look for the run's own hosts behind them."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.lower().endswith("_proxy")}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def _deadline(seconds: float, why: Callable[[], str]) -> Iterator[None]:
    """Ends the process with the line that `why` gives and exit code 2 if the block takes longer."""
    timer = threading.Timer(seconds, lambda: _end(f"error: {why()}", 2))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _why_not_met(place: Place, timeout: int) -> str:
    late = f"within {timeout} s"
    if not place.coordinator:
        return f"the processes of the run did not find each other {late}: give --coordinator=HOST:PORT, which all can reach"
    others = "start all of them with the same --coordinator and --num_processes, each with its own --process_id"
    if place.process_id == 0:
        return f"not all {place.num_processes} processes came to `--coordinator` (={place.coordinator!r}) {late}: {others}"
    host, port = split_address(place.coordinator)
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        return (
            f"`--coordinator` (={place.coordinator!r}) did not answer {late} ({error.strerror or error}): "
            "see that process 0 runs there, and that this host may connect to that port"
        )
    return f"not all {place.num_processes} processes came to `--coordinator` (={place.coordinator!r}) {late}: {others}"


def _require_same_device_counts() -> None:
    # Bringing up the devices waits for every process: it is done here, where all of them are, and not wherever one asks first.
    try:
        devices = jax.devices()
    except Exception as error:  # JAX says it in several ways, and `leave` would have to ask for the devices again
        _end(f"error: this process of the run has no devices ({one_line(error)}): see what JAX finds on this host", 2)
    counts = np.bincount([device.process_index for device in devices], minlength=jax.process_count())
    if (counts != counts[0]).any():
        other = int(np.argmax(counts != counts[0]))
        raise ConfigError(
            f"process {other} has {counts[other]} devices, process 0 has {counts[0]}: start them where each sees as many"
        )


def gather(array: Any) -> np.ndarray:
    """Every process's `array`, [processes, ...], on all of them.

    Args:
      array: small; of one shape and type everywhere. It travels as bytes, since JAX would cut 64 bits to 32.
    """
    array = np.asarray(array)
    if _is_alone():
        return array[None]
    rows = multihost_utils.process_allgather(np.frombuffer(array.tobytes(), np.uint8))
    return np.frombuffer(rows.tobytes(), array.dtype).reshape(len(rows), *array.shape)


def everywhere(ok: bool) -> bool:
    """Whether `ok` is true on every process; all of them must ask."""
    return bool(gather(bool(ok)).all())


def anywhere(flag: bool) -> bool:
    """Whether `flag` is true on some process; all of them must ask."""
    return bool(gather(bool(flag)).any())


def barrier(name: str) -> None:
    """Waits until every process is at the barrier of this name."""
    if not _is_alone():
        multihost_utils.sync_global_devices(name)


def compile_together(jitted: Any, *args: Any, **kwargs: Any) -> Any:
    """`jitted` compiled for these arguments; no process goes on before all are ready. All of them must ask.

    Compiling takes some longer than others, and Gloo gives up after 30 s on processes that meet for the first time.
    """
    program = compile_program(jitted, *args, **kwargs)
    barrier("compiled")
    return program


def require_same(**facts: Any) -> None:
    """Compares what every process was started with; all of them must ask.

    Args:
      **facts: JSON values. Dicts are compared field by field, and fields named with dots.

    Raises:
      ConfigError: on every process, naming one that differs from process 0, and in what.
    """
    if _is_alone():
        return
    own = json.dumps(_flat(facts), sort_keys=True).encode()
    digests = gather(np.frombuffer(hashlib.sha256(own).digest(), np.uint8))
    if (digests != digests[0]).any():
        raise ConfigError(_difference([json.loads(text) for text in _gather_bytes(own)]))


def _flat(tree: Any, name: str = "") -> dict[str, str]:
    """{"a": {"b": 1}} as {"a.b": "1"}."""
    if not isinstance(tree, dict) or not tree:
        return {name: json.dumps(tree)}
    fields = (_flat(value, f"{name}.{key}" if name else str(key)) for key, value in tree.items())
    return {key: value for field in fields for key, value in field.items()}


def _gather_bytes(text: bytes) -> list[bytes]:
    lengths = gather(len(text))
    padded = gather(np.frombuffer(text.ljust(lengths.max(), b"\0"), np.uint8))
    return [row.tobytes()[:length] for row, length in zip(padded, lengths, strict=True)]


def _difference(tables: list[dict[str, str]], shown: int = 3) -> str:
    """What to say of the first table that differs from table 0."""
    process, other = next((i, table) for i, table in enumerate(tables) if table != tables[0])
    names = sorted(name for name in tables[0].keys() | other.keys() if tables[0].get(name) != other.get(name))
    parts = [f"`{name}` (={_short(other.get(name))}), process 0 has {_short(tables[0].get(name))}" for name in names[:shown]]
    more = f"; and {len(names) - shown} fields more" if len(names) > shown else ""
    return f"process {process} has {'; '.join(parts)}{more}: start every process with the same command, code and data"


def _short(value: str | None) -> str:
    if value is None:
        return "nothing"
    return value if len(value) <= 80 else f"{value[:77]}..."


class Watchdog:
    """Ends this process of several if a step takes too long: a collective that waits for another process cannot be stopped.

    Counting begins with the first beat, before which programs compile. It counts ticks of its own thread and not the time,
    so that a process that was stopped and goes on is not blamed for the pause.

    Args:
      seconds: without a beat, after which the process ends with one line and exit code 3; 0 for never.
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
        """Says that the process got on."""
        self._idle, self._last_beat, self._beaten = 0, time.time(), True

    def _watch(self) -> None:
        while not self._leaving.wait(1.0):
            self._idle += self._beaten
            if self._idle > self._seconds:  # the first tick may have followed the beat at once
                _end(self._message(), LOST)

    def _message(self) -> str:
        since = time.strftime("%H:%M:%S", time.localtime(self._last_beat))
        return (
            f"error: process {jax.process_index()} of {jax.process_count()} got nowhere for {self._seconds} s, since {since}: "
            "it or another one stalls or has died, see the output of all; "
            "the same command resumes from the last checkpoint"
        )


def as_host_error(error: BaseException) -> HostError | None:
    """Return the HostError to show instead of an error that another process's end caused; None for any other error."""
    if not isinstance(error, RuntimeError | ValueError) or _is_alone():
        return None
    signs = r"Gloo|NCCL|coordination.?service|heartbeat|Connection (closed|reset) by peer|Socket closed"
    if not re.search(signs, str(error), re.IGNORECASE):
        return None
    return HostError(
        f"another process of the run ended or cannot be reached ({one_line(error)}): see the output of all; "
        "the same command resumes from the last checkpoint"
    )


@contextlib.contextmanager
def leave_on_error() -> Iterator[None]:
    """Around a program: prints an error and ends this process of several at once, since others may wait for it in vain.

    The exit code is 2 for the user's errors, 3 where another process is gone, 130 for Ctrl-C, and 1 for a bug, with its
    traceback. Errors of a process that is alone go on to the caller.
    """
    try:
        yield
    except BaseException as error:
        succeeds = isinstance(error, SystemExit) and not error.code
        if succeeds or _is_alone():
            raise
        leave(_report(error))


def _report(error: BaseException) -> int:
    """Prints `error` as a user should see it, and gives its exit code."""
    lost = error if isinstance(error, HostError) else as_host_error(error)
    if lost or isinstance(error, DeeplabError):
        sys.stderr.write(f"error: {lost or error}\n")
        return LOST if lost else 2
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return 130
    traceback.print_exception(error)
    return 1


def leave(code: int) -> NoReturn:
    """Ends this process after an error. Of several, one would else wait at JAX's exit for the others, which wait for it."""
    if _is_alone():
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # The others may be about to print the same error. Process 0 goes last: with it goes the coordinator, and JAX then aborts
    # the others.
    time.sleep(FAREWELL_SECONDS * (2 if jax.process_index() == 0 else 1))
    os._exit(code)


def _is_alone() -> bool:
    # The first question is free, and needs no devices.
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def _end(line: str, code: int) -> NoReturn:
    try:
        sys.stderr.write(f"{line}\n")  # in one piece: launchers mix the lines of processes
        sys.stderr.flush()
    finally:
        os._exit(code)
