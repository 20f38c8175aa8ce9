import pytest

from deeplab_jax.errors import ConfigError
from deeplab_jax.runtime import launchers
from deeplab_jax.runtime.launchers import ProcessSpec, find_process_spec

MPIRUN = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_MCA_orte_hnp_uri": "1341587456.0;tcp://192.0.2.2:50047",
}
SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}


@pytest.mark.parametrize(
    ("environ", "spec"),
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, None),
        (MPIRUN, ProcessSpec(None, 4, 3, all_devices=False)),
        (MPIRUN | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, ProcessSpec(None, 4, 3, all_devices=True)),
        (MPIRUN | {"CUDA_VISIBLE_DEVICES": "1"}, ProcessSpec(None, 4, 3, all_devices=True)),
        (MPIRUN | {"CUDA_VISIBLE_DEVICES": "0,1"}, ProcessSpec(None, 4, 3, all_devices=False)),
        (MPIRUN | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, None),
        (SRUN, ProcessSpec(None, 2, 1, all_devices=True)),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "2"}, ProcessSpec(None, 2, 1, all_devices=False)),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "1,2"}, ProcessSpec(None, 2, 1, all_devices=False)),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),  # a salloc shell on one of the job's nodes
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, None),  # a batch script
        (SRUN | MPIRUN, ProcessSpec(None, 4, 3, all_devices=False)),  # srun started mpirun's daemons
        ({"JAX_COORDINATOR_ADDRESS": "node1:1"}, None),
        (SRUN | {"JAX_COORDINATOR_ADDRESS": "node1:1"}, ProcessSpec("node1:1", 2, 1)),
        ({"TPU_ML_PLATFORM": "JAX"}, ProcessSpec()),
        ({"TPU_ML_PLATFORM": "JAX", "JAX_PLATFORMS": "cpu"}, None),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ML_PLATFORM": "JAX"}, None),
        ({"TPU_WORKER_HOSTNAMES": "host0,host1", "TPU_ML_PLATFORM": "JAX"}, ProcessSpec()),
        ({"TPU_WORKER_HOSTNAMES": "host0", "MEGASCALE_NUM_SLICES": "2"}, ProcessSpec()),  # two slices of a single host each
        ({"TPU_WORKER_HOSTNAMES": "host0", "MEGASCALE_NUM_SLICES": "1"}, None),
        (POD, None),
    ],
)
def test_launchers_are_recognized_by_their_variables(environ, spec):
    assert find_process_spec(None, None, None, environ) == spec


def test_an_indexed_job_is_recognized_if_the_kubernetes_package_is_installed(monkeypatch):
    monkeypatch.setattr(launchers.importlib.util, "find_spec", lambda name: name == "kubernetes")
    assert find_process_spec(None, None, None, POD) == ProcessSpec()
    assert find_process_spec(None, None, None, POD | {"JOB_COMPLETION_INDEX": ""}) == ProcessSpec()
    assert find_process_spec(None, None, None, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None


def test_flags_take_precedence_over_the_launcher():
    assert find_process_spec("node1:12345", 4, 3, SRUN) == ProcessSpec("node1:12345", 4, 3)
    assert find_process_spec("[fd00::2]:12345", 2, 0, {}) == ProcessSpec("[fd00::2]:12345", 2, 0)
    assert find_process_spec(None, 2, 0, {"JAX_COORDINATOR_ADDRESS": "node1:1"}) == ProcessSpec("node1:1", 2, 0)
    assert find_process_spec("node1:12345", 1, 0, MPIRUN) is None


def test_the_coordinator_flag_replaces_only_the_address():
    no_address = {name: value for name, value in MPIRUN.items() if "orte" not in name}
    assert find_process_spec("node1:12345", None, None, no_address) == ProcessSpec("node1:12345", 4, 3, all_devices=False)
    for environ, name in ((no_address, "Open MPI"), ({"PMI_SIZE": "4", "PMI_RANK": "3"}, "MPI")):
        message = f"{name} started 4 processes but does not provide .*. Set --coordinator=HOST:PORT"
        with pytest.raises(ConfigError, match=message):
            find_process_spec(None, None, None, environ)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("node1:1", None, None), r"`--coordinator` \(='node1:1'\), `--num_processes` \(=None\) .* must be set together"),
        ((None, 2, 0), r"`--coordinator` \(=None\), .* Set all three"),
        (("node1:1", 2, None), r"`--process_id` \(=None\) must be set together"),
        (("node1:1", 0, 0), r"`--num_processes` \(=0\) cannot be used\. .* 1 or more"),
        (("node1:1", 2, 2), r"`--process_id` \(=2\) is out of range for 2 processes\. .* 0 to 1"),
        (("node1:1", 2, -1), r"`--process_id` \(=-1\) is out of range for 2 processes"),
        (("node1", 2, 0), r"`--coordinator` \(='node1'\) is not a HOST:PORT"),
        (("node1:70000", 2, 0), r"is not a HOST:PORT"),
        (("fd00::2:1", 2, 0), r"is not a HOST:PORT"),
        (("http://node1:1", 2, 0), r"is not a HOST:PORT"),
    ],
)
def test_invalid_flags_are_rejected(flags, message):
    with pytest.raises(ConfigError, match=message):
        find_process_spec(*flags, {})
