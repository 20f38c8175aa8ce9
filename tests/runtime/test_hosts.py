import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from deeplab_jax.errors import ConfigError
from deeplab_jax.runtime import hosts, launchers
from deeplab_jax.runtime.hosts import HostError, Watchdog
from deeplab_jax.runtime.launchers import Place, find_place

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

# What each of two processes does: it agrees, then disagrees and must end at once.
PROGRAM = """
import json, sys
import jax
import numpy as np
from deeplab_jax.runtime import hosts, launchers

flags = [sys.argv[1], int(sys.argv[2]), int(sys.argv[3])] if sys.argv[1:] else [None] * 3
with hosts.leave_on_error():
    hosts.start(*flags, timeout=60)
    i = jax.process_index()
    hosts.barrier("begin")
    hosts.require_same(config={"optim": {"lr": 0.1}}, data="a")
    said = {
        "processes": jax.process_count(),
        "devices": [len(jax.devices()), len(jax.local_devices())],
        "sees": jax.config.values["jax_cuda_visible_devices"],
        "gathered": hosts.gather(np.array([2**40 + i, -1])).tolist(),
        "empty": hosts.gather(np.zeros((0, 3))).shape,
        "everywhere": [hosts.everywhere(True), hosts.everywhere(i == 0)],
        "anywhere": [hosts.anywhere(i == 1), hosts.anywhere(False)],
    }
    print(json.dumps(said), flush=True)
    hosts.require_same(config={"optim": {"lr": 0.1 + 0.1 * i}}, data="a")
"""
DIFFER = (
    "error: process 1 has `config.optim.lr` (=0.2), process 0 has 0.1: start every process with the same command, code and data"
)

WATCHED = """
import sys, time
from deeplab_jax.runtime import hosts, launchers

hosts._is_alone = lambda: False
with hosts.Watchdog(1) as watchdog:
    time.sleep(2.5)  # what comes before the first beat may take long
    print("begins", flush=True)
    for _ in range(20):
        watchdog.beat()
        time.sleep(0.1)
    print("beaten", flush=True)
    time.sleep(float(sys.argv[1]))
print("left", flush=True)
"""


def environment(**variables):
    """This one's without what a launcher or a proxy of the machine would add."""
    mine = ("OMPI_", "SLURM_", "PMI_", "PMIX_", "TPU_", "JAX_COORD", "JAX_LOCAL", "CUDA_VISIBLE")
    return {name: value for name, value in os.environ.items() if not name.startswith(mine)} | variables


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def launch(*arguments, **variables):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ends(*processes, timeout=90):
    """(exit code, output, errors) of each; none outlives the test."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def without_gloo(output):
    return [line for line in output.splitlines() if "[Gloo]" not in line]


@pytest.fixture(scope="module")
def two_processes():
    """What two processes with two devices each say, behind a proxy that is not there."""
    at = f"localhost:{free_port()}"
    variables = {"JAX_NUM_CPU_DEVICES": "2", "http_proxy": "http://127.0.0.1:9", "grpc_proxy": "http://127.0.0.1:9"}
    return ends(*(launch("-c", PROGRAM, at, 2, i, **variables) for i in range(2)))


def test_two_processes_agree(two_processes):
    for _, output, errors in two_processes:
        said = json.loads(without_gloo(output)[-1] if without_gloo(output) else pytest.fail(errors))
        assert said["processes"] == 2
        assert said["devices"] == [4, 2]
        assert said["gathered"] == [[2**40, -1], [2**40 + 1, -1]]
        assert said["empty"] == [2, 0, 3]
        assert said["everywhere"] == [True, False]
        assert said["anywhere"] == [True, False]


def test_two_processes_disagree_both_say_so_and_end(two_processes):
    for code, _, errors in two_processes:
        assert without_gloo(errors) == [DIFFER]
        assert code == 2


def test_unequal_device_counts_end_both():
    at = f"localhost:{free_port()}"
    for code, _, errors in ends(*(launch("-c", PROGRAM, at, 2, i, JAX_NUM_CPU_DEVICES=str(i + 1)) for i in range(2))):
        assert without_gloo(errors) == ["error: process 1 has 2 devices, process 0 has 1: start them where each sees as many"]
        assert code == 2


@pytest.mark.long
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs Open MPI")
def test_mpirun_is_recognised():
    command = ["mpirun", "--oversubscribe", "-n", "2", sys.executable, "-c", PROGRAM]
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "JAX_NUM_CPU_DEVICES": "2"}
    process = subprocess.Popen(command, env=environment(**allowed), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    [(code, output, errors)] = ends(process)
    said = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert [one["processes"] for one in said] == [2, 2], errors
    assert {one["sees"] for one in said} == {"0", "1"}  # two share the host: each takes the GPU of its rank
    assert errors.count(DIFFER) == 2
    assert code == 2


@pytest.mark.long
def test_srun_is_recognised():
    # JAX makes its port of the job's number.
    job = str(int(time.time()) % 4096)
    ranks = [SRUN | {"SLURM_JOB_ID": job, "SLURM_STEP_NODELIST": "localhost", "SLURM_PROCID": str(i)} for i in range(2)]
    for code, output, errors in ends(*(launch("-c", PROGRAM, JAX_NUM_CPU_DEVICES="2", **rank) for rank in ranks)):
        said = json.loads(without_gloo(output)[-1])
        assert said["processes"] == 2
        assert said["sees"] == "all"  # one task on each node takes all of its GPUs
        assert without_gloo(errors) == [DIFFER]
        assert code == 2


def test_processes_that_do_not_meet_end_with_a_line():
    ports = [free_port(), free_port()]
    program = "import sys; from deeplab_jax.runtime import hosts; hosts.start(sys.argv[1], 2, int(sys.argv[2]), timeout=2)"
    first, second = ends(*(launch("-c", program, f"localhost:{port}", i) for i, port in enumerate(ports)))
    assert (first[0], second[0]) == (2, 2)
    assert first[2].startswith(f"error: not all 2 processes came to `--coordinator` (='localhost:{ports[0]}') within 2 s: ")
    assert second[2].startswith(
        f"error: `--coordinator` (='localhost:{ports[1]}') did not answer within 2 s (Connection refused): "
    )
    assert first[2].count("\n") == second[2].count("\n") == 1


def test_a_taken_port_is_an_error():
    with socket.create_server(("", 0)) as server:
        at = f"localhost:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"`--coordinator` \(='{at}'\) cannot be used .*in use.*: give another port"):
            hosts.start(at, 2, 0)


@pytest.mark.parametrize("flags", [(None, None, None), ("localhost:1234", 1, 0)])
def test_one_process_does_not_start_anything(monkeypatch, flags):
    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("called"))
    hosts.start(*flags)
    assert not jax.distributed.is_initialized()


def let_initialize_raise(monkeypatch, error):
    """A launcher is found, and JAX fails to join its processes."""

    def initialize(*_, **__):
        raise error

    monkeypatch.setattr(hosts, "find_place", lambda *_: Place())
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)


def test_a_single_tpu_host_is_a_run_of_one(monkeypatch):
    let_initialize_raise(monkeypatch, ValueError("coordinator_address should be defined."))
    hosts.start(None, None, None)
    assert not jax.distributed.is_initialized()


def test_jax_errors_of_starting_become_a_line(monkeypatch):
    let_initialize_raise(monkeypatch, RuntimeError("Kubernetes API Error: 403 - Forbidden\nIt appears that"))
    with pytest.raises(ConfigError, match=r"cannot find each other \(Kubernetes API Error: 403 - Forbidden It appears that\)"):
        hosts.start(None, None, None)


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, None),
        (MPIRUN, Place(None, 4, 3, all_devices=False)),
        (MPIRUN | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, Place(None, 4, 3, all_devices=True)),
        (MPIRUN | {"CUDA_VISIBLE_DEVICES": "1"}, Place(None, 4, 3, all_devices=True)),
        (MPIRUN | {"CUDA_VISIBLE_DEVICES": "0,1"}, Place(None, 4, 3, all_devices=False)),
        (MPIRUN | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, None),
        (SRUN, Place(None, 2, 1, all_devices=True)),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "2"}, Place(None, 2, 1, all_devices=False)),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "1,2"}, Place(None, 2, 1, all_devices=False)),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),  # a shell of salloc on a node of the job
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, None),  # a batch script
        (SRUN | MPIRUN, Place(None, 4, 3, all_devices=False)),  # srun started mpirun's daemons
        ({"JAX_COORDINATOR_ADDRESS": "node1:1"}, None),
        (SRUN | {"JAX_COORDINATOR_ADDRESS": "node1:1"}, Place("node1:1", 2, 1)),
        ({"TPU_ML_PLATFORM": "JAX"}, Place()),
        ({"TPU_ML_PLATFORM": "JAX", "JAX_PLATFORMS": "cpu"}, None),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ML_PLATFORM": "JAX"}, None),
        ({"TPU_WORKER_HOSTNAMES": "host0,host1", "TPU_ML_PLATFORM": "JAX"}, Place()),
        (POD, None),
    ],
)
def test_what_launchers_say(environ, place):
    assert find_place(None, None, None, environ) == place


def test_an_indexed_job_counts_with_the_package_that_asks_for_the_others(monkeypatch):
    monkeypatch.setattr(launchers.importlib.util, "find_spec", lambda name: name == "kubernetes")
    assert find_place(None, None, None, POD) == Place()
    assert find_place(None, None, None, POD | {"JOB_COMPLETION_INDEX": ""}) == Place()
    assert find_place(None, None, None, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None


def test_flags_tell_the_place():
    assert find_place("node1:12345", 4, 3, SRUN) == Place("node1:12345", 4, 3)
    assert find_place("[fd00::2]:12345", 2, 0, {}) == Place("[fd00::2]:12345", 2, 0)
    assert find_place(None, 2, 0, {"JAX_COORDINATOR_ADDRESS": "node1:1"}) == Place("node1:1", 2, 0)
    assert find_place("node1:12345", 1, 0, MPIRUN) is None


def test_the_coordinator_alone_replaces_what_the_launcher_says():
    without = {name: value for name, value in MPIRUN.items() if "orte" not in name}
    assert find_place("node1:12345", None, None, without) == Place("node1:12345", 4, 3, all_devices=False)
    for environ, name in ((without, "Open MPI"), ({"PMI_SIZE": "4", "PMI_RANK": "3"}, "MPI")):
        with pytest.raises(ConfigError, match=f"{name} started 4 processes and does not say .*: give --coordinator=HOST:PORT"):
            find_place(None, None, None, environ)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("node1:1", None, None), r"`--coordinator` \(='node1:1'\), `--num_processes` \(=None\) .* belong together"),
        ((None, 2, 0), r"`--coordinator` \(=None\), .* give all three"),
        (("node1:1", 2, None), r"`--process_id` \(=None\) belong together"),
        (("node1:1", 0, 0), r"`--num_processes` \(=0\) cannot be used: .* from 1"),
        (("node1:1", 2, 2), r"`--process_id` \(=2\) is none of 2 processes: count them from 0 to 1"),
        (("node1:1", 2, -1), r"`--process_id` \(=-1\) is none of 2 processes"),
        (("node1", 2, 0), r"`--coordinator` \(='node1'\) is no HOST:PORT"),
        (("node1:70000", 2, 0), r"is no HOST:PORT"),
        (("fd00::2:1", 2, 0), r"is no HOST:PORT"),
        (("http://node1:1", 2, 0), r"is no HOST:PORT"),
    ],
)
def test_flags_that_cannot_be(flags, message):
    with pytest.raises(ConfigError, match=message):
        find_place(*flags, {})


def test_one_process_agrees_with_itself():
    array = np.array([[2**40, 1]])
    np.testing.assert_array_equal(hosts.gather(array), array[None])
    assert [hosts.everywhere(True), hosts.everywhere(False)] == [True, False]
    assert [hosts.anywhere(True), hosts.anywhere(False)] == [True, False]
    hosts.require_same(config={"not": "compared"})
    hosts.barrier("anything")


def test_differences_name_the_process_the_fields_and_both_values():
    same = {"config": {"a": 1, "b": {"c": [1, 2]}, "labels": {}}, "data": "x"}
    other = {"config": {"a": 1.0, "b": {"c": [1, 3], "d": True}, "labels": {}}, "data": "x" * 100}
    assert hosts._flat(same) == {"config.a": "1", "config.b.c": "[1, 2]", "config.labels": "{}", "data": '"x"'}
    text = hosts._difference([hosts._flat(same), hosts._flat(same), hosts._flat(other)])
    assert text.startswith(
        "process 2 has `config.a` (=1.0), process 0 has 1; `config.b.c` (=[1, 3]), process 0 has [1, 2]; "
        "`config.b.d` (=true), process 0 has nothing; and 1 fields more: start every process"
    )
    long = hosts._difference([hosts._flat({"data": "x"}), hosts._flat({"data": "x" * 100})])
    assert '...), process 0 has "x":' in long


def test_the_watchdog_leaves_one_process_and_zero_seconds_alone(monkeypatch):
    for alone, seconds in ((True, 1), (False, 0)):
        monkeypatch.setattr(hosts, "_is_alone", lambda alone=alone: alone)
        before = threading.active_count()
        with Watchdog(seconds) as watchdog:
            watchdog.beat()
            assert threading.active_count() == before


def test_the_watchdog_ends_a_process_that_stalls():
    [(code, output, errors)] = ends(launch("-c", WATCHED, 20))
    assert code == hosts.LOST
    assert output.split() == ["begins", "beaten"]
    assert errors.startswith("error: process 0 of 1 got nowhere for 1 s, since ")
    assert errors.count("\n") == 1


def test_the_watchdog_does_not_count_a_pause_of_the_whole_process():
    process = launch("-c", WATCHED, 0)
    assert process.stdout.readline() == "begins\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    process.send_signal(signal.SIGCONT)
    [(code, output, errors)] = ends(process)
    assert (code, output.split(), errors) == (0, ["beaten", "left"], "")


@pytest.mark.parametrize(
    ("error", "is_gone"),
    [
        (
            ValueError("UNKNOWN: Gloo all-reduce failed: [gloo/pair.cc:547] Connection closed by peer [::1]:1"),
            True,
        ),
        (jax.errors.JaxRuntimeError("UNAVAILABLE: Task 1 heartbeat timeout."), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), False),
        (ValueError("shapes differ"), False),
        (ConfigError("Gloo"), False),
    ],
)
def test_errors_of_another_process_are_recognised(monkeypatch, error, is_gone):
    assert hosts.as_host_error(error) is None  # of a process that is alone
    monkeypatch.setattr(hosts, "_is_alone", lambda: False)
    found = hosts.as_host_error(error)
    assert isinstance(found, HostError) == is_gone
    if is_gone:
        assert str(found).startswith("another process of the run ended or cannot be reached (")
        assert "\n" not in str(found)


def test_one_process_leaves_by_the_usual_ways():
    with pytest.raises(SystemExit, match="2"):
        hosts.leave(2)
    with pytest.raises(ConfigError, match="mine"), hosts.leave_on_error():
        raise ConfigError("mine")


def test_a_program_that_ends_well_ends_by_the_usual_way(monkeypatch):
    monkeypatch.setattr(hosts, "_is_alone", lambda: False)
    with pytest.raises(SystemExit, match="0"), hosts.leave_on_error():
        sys.exit(0)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("no such field"), 2, "error: no such field\n"),
        (ValueError("Gloo all-gather failed: timed out"), 3, "error: another process of the run ended"),
        (HostError("another one ended"), 3, "error: another one ended"),
        (KeyboardInterrupt(), 130, ""),
        (SystemExit(7), 7, ""),
        (ZeroDivisionError("of ours"), 1, "Traceback"),
    ],
)
def test_one_of_several_reports_and_leaves_at_once(monkeypatch, capsys, error, code, line):
    codes = []
    monkeypatch.setattr(hosts, "_is_alone", lambda: False)
    monkeypatch.setattr(hosts, "FAREWELL_SECONDS", 0)
    monkeypatch.setattr(hosts.os, "_exit", codes.append)
    with hosts.leave_on_error():
        raise error
    assert codes == [code]
    assert capsys.readouterr().err.startswith(line)
