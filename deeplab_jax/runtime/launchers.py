"""Which process of a run this is, from flags or from what its launcher says. It starts nothing and needs no JAX."""

import dataclasses
import importlib.util
import re
from collections.abc import Mapping
from typing import NamedTuple

from deeplab_jax.errors import ConfigError


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
        size, rank = environ.get(launcher.size, ""), environ.get(launcher.rank, "")
        if size.isdigit() and int(size) > 1 and rank.isdigit():
            return _launched(launcher, address, environ)
    if coordinator:
        return _explicit(coordinator, num_processes, process_id)
    return Place(address) if _on_tpu_pod(environ) or _in_indexed_job(environ) else None


def _launched(launcher: Launcher, coordinator: str | None, environ: Mapping[str, str]) -> Place:
    count = environ[launcher.size]
    if coordinator:
        split_address(coordinator)
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
    split_address(coordinator)
    return Place(coordinator, num_processes, process_id) if num_processes > 1 else None


def split_address(coordinator: str) -> tuple[str, int]:
    """Host and port of `--coordinator`.

    Raises:
      ConfigError: it is no HOST:PORT.
    """
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
