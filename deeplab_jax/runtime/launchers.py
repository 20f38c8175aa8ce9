"""Determine this process's index and the number of processes, from flags or the launcher's environment variables.

This module starts no processes and does not import JAX.
"""

import dataclasses
import importlib.util
import re
from collections.abc import Mapping
from typing import NamedTuple

from deeplab_jax.errors import ConfigError


class Launcher(NamedTuple):
    """A program that starts a run's processes and sets environment variables for them.

    Attributes:
      name: The launcher name to use in messages.
      size: The variable holding the number of processes.
      rank: The variable holding this process's index.
      address: The variables from which JAX derives process 0's address, or () if JAX cannot derive it.
    """

    name: str
    size: str
    rank: str
    address: tuple[str, ...] = ()


LAUNCHERS = (
    # Open MPI 5 no longer sets the first `address` variable.
    Launcher(
        "Open MPI",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        ("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ),
    # SLURM_STEP_NUM_TASKS counts the tasks in the job step, whereas SLURM_NTASKS counts those in the entire job. The latter
    # is wrong in a salloc shell, which runs a single process.
    Launcher(
        "SLURM",
        "SLURM_STEP_NUM_TASKS",
        "SLURM_PROCID",
        ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_LOCALID"),
    ),
    Launcher("MPI", "PMI_SIZE", "PMI_RANK"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class ProcessSpec:
    """The arguments for joining a run. JAX detects the values of those that are None.

    Attributes:
      coordinator: The HOST:PORT address that process 0 listens on.
      num_processes: The number of processes in the run.
      process_id: This process's index, from 0.
      all_devices: Whether the process uses all visible GPUs, not just the one that matches its rank on the host.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    all_devices: bool = True


def find_process_spec(
    coordinator: str | None, num_processes: int | None, process_id: int | None, environ: Mapping[str, str]
) -> ProcessSpec | None:
    """Determine how this process joins its run. If no flags are given, use the launcher's environment variables.

    Args:
      coordinator: The value of `--coordinator`. If no other flag is given, it overrides the address that JAX would derive from
        the launcher's variables.
      num_processes: The value of `--num_processes`.
      process_id: The value of `--process_id`.
      environ: The environment variables.

    Returns:
      The arguments for joining the run, or None for a single-process run.

    Raises:
      ConfigError: Flags are missing or out of range, or the launcher does not provide the address of process 0.
    """
    address = coordinator or environ.get("JAX_COORDINATOR_ADDRESS")
    if num_processes is not None or process_id is not None:
        return _spec_from_flags(address, num_processes, process_id)
    for launcher in LAUNCHERS:
        size, rank = environ.get(launcher.size, ""), environ.get(launcher.rank, "")
        if size.isdigit() and int(size) > 1 and rank.isdigit():
            return _spec_from_launcher(launcher, address, environ)
    if coordinator:
        return _spec_from_flags(coordinator, num_processes, process_id)
    return ProcessSpec(address) if _is_on_tpu_pod(environ) or _is_in_indexed_job(environ) else None


def _spec_from_launcher(launcher: Launcher, coordinator: str | None, environ: Mapping[str, str]) -> ProcessSpec:
    count = environ[launcher.size]
    if coordinator:
        parse_address(coordinator)
    elif not launcher.address or not all(name in environ for name in launcher.address):
        raise ConfigError(
            f"{launcher.name} started {count} processes but does not provide the address of process 0. "
            "Set --coordinator=HOST:PORT to the host of process 0 and a free port on that host."
        )
    return ProcessSpec(coordinator, int(count), int(environ[launcher.rank]), _has_own_devices(environ))


def _spec_from_flags(coordinator: str | None, num_processes: int | None, process_id: int | None) -> ProcessSpec | None:
    if coordinator is None or num_processes is None or process_id is None:
        raise ConfigError(
            f"`--coordinator` (={coordinator!r}), `--num_processes` (={num_processes}) and `--process_id` (={process_id}) "
            "must be set together. Set all three, or set none for a single process or under a supported launcher."
        )
    if num_processes < 1:
        raise ConfigError(f"`--num_processes` (={num_processes}) cannot be used. Give the number of processes, 1 or more.")
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"`--process_id` (={process_id}) is out of range for {num_processes} processes. "
            f"Give each process a different number from 0 to {num_processes - 1}."
        )
    parse_address(coordinator)
    return ProcessSpec(coordinator, num_processes, process_id) if num_processes > 1 else None


def parse_address(coordinator: str) -> tuple[str, int]:
    """Split a `--coordinator` value into host and port.

    Raises:
      ConfigError: The value is not a HOST:PORT address.
    """
    match = re.fullmatch(r"(?P<host>\[[^]]+\]|[^:/\s]+):(?P<port>\d{1,5})", coordinator)
    if not match or not 0 < int(match["port"]) < 2**16:
        raise ConfigError(
            f"`--coordinator` (={coordinator!r}) is not a HOST:PORT address. "
            "Give the address of process 0, such as node1:12345."
        )
    return match["host"].strip("[]"), int(match["port"])


def _has_own_devices(environ: Mapping[str, str]) -> bool:
    """Return whether this process has its visible GPUs to itself, rather than sharing them with other processes in the run.

    If so, the process must use all of them. By default, JAX would use only the GPU whose index is the process's local rank.
    With one process per host, this would leave GPUs idle. With a launcher that shows each process a single GPU, it would
    fail, because a process with local rank 1 would look for a second GPU.
    """
    if "," not in environ.get("CUDA_VISIBLE_DEVICES", ","):
        return True
    if "OMPI_COMM_WORLD_LOCAL_SIZE" in environ:
        return environ["OMPI_COMM_WORLD_LOCAL_SIZE"] == "1"
    # For example, "1(x2),1" means one task on each of the first two nodes and one on the third.
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    return all(re.fullmatch(r"1(\(x\d+\))?", part) for part in tasks.split(","))


def _is_on_tpu_pod(environ: Mapping[str, str]) -> bool:
    """Return whether this host might be part of a TPU pod.

    On Google Cloud, only the metadata server knows for certain. JAX queries it later.
    """
    if "tpu" not in environ.get("JAX_PLATFORMS", "tpu").split(","):
        return False
    workers = environ.get("TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES"))
    # JAX sets TPU_ML_PLATFORM if it finds TPU chips and libtpu, and TPU_SKIP_MDS_QUERY otherwise.
    has_chips = environ.get("TPU_ML_PLATFORM") == "JAX" and "TPU_SKIP_MDS_QUERY" not in environ
    has_slices = environ.get("MEGASCALE_NUM_SLICES", "1") != "1"  # each can be a single host
    return has_slices or "," in workers if workers is not None else has_chips


def _is_in_indexed_job(environ: Mapping[str, str]) -> bool:
    """Return whether this is a pod in an indexed Kubernetes Job, with the `kubernetes` package that JAX needs installed."""
    is_indexed = "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ
    return is_indexed and importlib.util.find_spec("kubernetes") is not None
