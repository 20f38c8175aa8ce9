"""The processes of one run: how they find each other, agree, and notice that one is gone."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from deeplab_jax.errors import ConfigError, DeeplabError, HostError, one_line

LOST = 3  # exit code of a process that ends because another one stalls or is gone
HEARTBEAT_SECONDS = 60  # without a sign of life, after which JAX takes a process for dead
FAREWELL_SECONDS = 1.0


class Launcher(NamedTuple):
    """A program that starts processes, and the variables in which it tells them of each other.

    Attributes:
      name: as users know it.
      size, rank: variables of the number of processes, and of which one this is.
      address: variables from which JAX tells where process 0 is; none if it cannot.
    """

    name: str
    size: str
    rank: str
    address: tuple[str, ...] = ()


LAUNCHERS = (
    # Open MPI 5 does not set the first variable any more.
    Launcher(
        "Open MPI",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        ("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ),
    # The step's size: SLURM_NTASKS is the whole job's in a shell of salloc, where one process runs.
    Launcher(
        "SLURM",
        "SLURM_STEP_NUM_TASKS",
        "SLURM_PROCID",
        ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_LOCALID"),
    ),
    Launcher("MPI", "PMI_SIZE", "PMI_RANK"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a process stands among those of its run; what is None, JAX finds out.

    Attributes:
      coordinator: HOST:PORT at which process 0 listens.
      num_processes: processes of the run.
      process_id: which of them this is.
      all_devices: whether it takes every GPU that it sees, not only that of its rank on the host.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    all_devices: bool = True


def find_place(
    coordinator: str | None, num_processes: int | None, process_id: int | None, environ: Mapping[str, str]
) -> Place | None:
    """This process's place, from the flags and else from what its launcher says; None for a run of one process.

    Args:
      coordinator: of `--coordinator`; alone, it replaces the address that the launcher's variables give.
      num_processes: of `--num_processes`.
      process_id: of `--process_id`.
      environ: the environment.

    Raises:
      ConfigError: flags are missing or cannot be, or the launcher does not say where process 0 is.
    """
    address = coordinator or environ.get("JAX_COORDINATOR_ADDRESS")
    if num_processes is not None or process_id is not None:
        return _explicit(address, num_processes, process_id)
    for launcher in LAUNCHERS:
        if int(environ.get(launcher.size, 1)) > 1 and launcher.rank in environ:
            return _launched(launcher, address, environ)
    if coordinator:
        return _explicit(coordinator, num_processes, process_id)
    return Place(address) if _on_tpu_pod(environ) or _in_indexed_job(environ) else None


def _launched(launcher: Launcher, coordinator: str | None, environ: Mapping[str, str]) -> Place:
    count = environ[launcher.size]
    if coordinator:
        _split(coordinator)
    elif not launcher.address or not all(name in environ for name in launcher.address):
        raise ConfigError(
            f"{launcher.name} started {count} processes and does not say where the first one is: "
            "give --coordinator=HOST:PORT, with a free port of the host where it runs"
        )
    return Place(coordinator, int(count), int(environ[launcher.rank]), _has_host_to_itself(environ))


def _explicit(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Place | None:
    if coordinator is None or num_processes is None or process_id is None:
        raise ConfigError(
            f"`--coordinator` (={coordinator!r}), `--num_processes` (={num_processes}) and `--process_id` (={process_id}) "
            "belong together: give all three, or none for one process or where the launcher is recognised"
        )
    if num_processes < 1:
        raise ConfigError(f"`--num_processes` (={num_processes}) cannot be used: give the number of processes, from 1")
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"`--process_id` (={process_id}) is none of {num_processes} processes: count them from 0 to {num_processes - 1}"
        )
    _split(coordinator)
    return Place(coordinator, num_processes, process_id) if num_processes > 1 else None


def _split(coordinator: str) -> tuple[str, int]:
    """Host and port of `--coordinator`."""
    found = re.fullmatch(r"(?P<host>\[[^]]+\]|[^:/\s]+):(?P<port>\d{1,5})", coordinator)
    if not found or not 0 < int(found["port"]) < 2**16:
        raise ConfigError(f"`--coordinator` (={coordinator!r}) is no HOST:PORT: give process 0's, such as node1:12345")
    return found["host"].strip("[]"), int(found["port"])


def _has_host_to_itself(environ: Mapping[str, str]) -> bool:
    """Whether no other process of the run shares the devices that this one sees.

    JAX would give a process the device of its rank on the host even where it is the only one there (leaving all other
    GPUs idle), and where the launcher shows it one device only (looking for a second that is not there).
    """
    if "," not in environ.get("CUDA_VISIBLE_DEVICES", ","):
        return True
    if "OMPI_COMM_WORLD_LOCAL_SIZE" in environ:
        return environ["OMPI_COMM_WORLD_LOCAL_SIZE"] == "1"
    # "1(x2),1": tasks of a node, and how many nodes in a row have as many.
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    return all(re.fullmatch(r"1(\(x\d+\))?", part) for part in tasks.split(","))


def _on_tpu_pod(environ: Mapping[str, str]) -> bool:
    """Whether this may be a host of a TPU pod: on Google's own machines only the metadata server, which JAX asks, knows."""
    if "tpu" not in environ.get("JAX_PLATFORMS", "tpu").split(","):
        return False
    workers = environ.get("TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES"))
    # JAX sets the first where it finds TPU chips and their library, the second where it does not.
    has_chips = environ.get("TPU_ML_PLATFORM") == "JAX" and "TPU_SKIP_MDS_QUERY" not in environ
    return "," in workers if workers is not None else has_chips


def _in_indexed_job(environ: Mapping[str, str]) -> bool:
    """Whether this is a pod of an indexed Kubernetes Job and has the package with which JAX asks for the others."""
    named = "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ
    return named and importlib.util.find_spec("kubernetes") is not None


def start(coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: int = 300) -> None:
    """Joins the processes of the run; does nothing for a run of one. To be called before anything else of JAX.

    Without flags, the launcher's variables tell: Open MPI, SLURM's srun, a TPU pod, or an indexed Kubernetes Job with the
    `kubernetes` package. If the processes do not find each other in time, each ends with one line and exit code 2: JAX
    aborts then, which cannot be caught.

    Args:
      coordinator: HOST:PORT at which process 0 shall listen.
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
    _, port = _split(coordinator)
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
    host, port = _split(place.coordinator)
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
      describe: what the process is at, for that line.
    """

    def __init__(self, seconds: int, describe: Callable[[], str] | None = None) -> None:
        self._seconds, self._describe = seconds, describe
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
        try:
            doing = f" ({self._describe()})" if self._describe else ""
        except Exception as error:  # of the caller's: the process must end all the same
            doing = f" ({one_line(error)})"
        since = time.strftime("%H:%M:%S", time.localtime(self._last_beat))
        return (
            f"error: process {jax.process_index()} of {jax.process_count()} got nowhere for {self._seconds} s, since {since}"
            f"{doing}: it or another one stalls or has died, see the output of all; "
            "the same command resumes from the last checkpoint"
        )


def gone(error: BaseException) -> HostError | None:
    """What to tell the user of an error that came up because another process ended; None for any other error."""
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
    lost = error if isinstance(error, HostError) else gone(error)
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
