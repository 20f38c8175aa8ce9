import io
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
from test_launchers import SRUN

from deeplab_jax.errors import ConfigError
from deeplab_jax.runtime import hosts
from deeplab_jax.runtime.hosts import HostError, Watchdog
from deeplab_jax.runtime.launchers import ProcessSpec

# Both processes run this program. At first, their values agree. Later, the values differ, and both processes must exit.
PROGRAM = """
import json, sys
import jax
import numpy as np
from deeplab_jax.runtime import hosts, launchers

flags = [sys.argv[1], int(sys.argv[2]), int(sys.argv[3])] if sys.argv[1:] else [None] * 3
with hosts.exit_on_error():
    hosts.start(*flags, timeout=60)
    i = jax.process_index()
    hosts.barrier("begin")
    hosts.require_same(config={"optim": {"lr": 0.1}}, data="a")
    result = {
        "processes": jax.process_count(),
        "devices": [len(jax.devices()), len(jax.local_devices())],
        "visible_devices": jax.config.values["jax_cuda_visible_devices"],
        "gathered": hosts.gather(np.array([2**40 + i, -1])).tolist(),
        "empty": hosts.gather(np.zeros((0, 3))).shape,
        "on_all": [hosts.is_true_on_all(True), hosts.is_true_on_all(i == 0)],
        "on_any": [hosts.is_true_on_any(i == 1), hosts.is_true_on_any(False)],
    }
    print(json.dumps(result), flush=True)
    hosts.require_same(config={"optim": {"lr": 0.1 + 0.1 * i}}, data="a")
"""
DIFFERENCE = (
    "error: Process 1 was started with `config.optim.lr` (=0.2), process 0 with 0.1. "
    "Start every process with the same command, code and data."
)

CODE_PROGRAM = """
import sys
from deeplab_jax.runtime import hosts

hosts.digest_code = lambda: f"commit {sys.argv[2]}"
with hosts.exit_on_error():
    hosts.start(sys.argv[1], 2, int(sys.argv[2]), timeout=60)
"""

WATCHDOG_PROGRAM = """
import sys, time
from deeplab_jax.runtime import hosts, launchers

hosts._is_alone = lambda: False
with hosts.Watchdog(1) as watchdog:
    time.sleep(2.5)  # longer than the limit, but before the first beat
    print("started", flush=True)
    for _ in range(20):
        watchdog.beat()
        time.sleep(0.1)
    print("stalling", flush=True)
    time.sleep(float(sys.argv[1]))
print("exited", flush=True)
"""


def environment(**variables):
    """Return this process's environment, without the launchers' variables and with `variables` added."""
    launcher_prefixes = ("OMPI_", "SLURM_", "PMI_", "PMIX_", "TPU_", "JAX_COORD", "JAX_LOCAL", "CUDA_VISIBLE")
    return {name: value for name, value in os.environ.items() if not name.startswith(launcher_prefixes)} | variables


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def start_python(*arguments, **variables):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(*processes, timeout=90):
    """Wait for the processes, and return (exit code, stdout, stderr) for each. Kill any that exceed the timeout."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def drop_gloo_lines(output):
    return [line for line in output.splitlines() if "[Gloo]" not in line]


@pytest.fixture(scope="module")
def two_processes():
    """Run PROGRAM in two processes with two devices each. Their environment variables name nonexistent proxies."""
    address = f"localhost:{free_port()}"
    variables = {"JAX_NUM_CPU_DEVICES": "2", "http_proxy": "http://127.0.0.1:9", "grpc_proxy": "http://127.0.0.1:9"}
    variables |= {"KUBERNETES_SERVICE_HOST": "127.0.0.1"}  # with flags, JAX must not ask it
    return wait_for(*(start_python("-c", PROGRAM, address, 2, i, **variables) for i in range(2)))


@pytest.mark.slow
def test_two_processes_agree(two_processes):
    for _, output, errors in two_processes:
        result = json.loads(drop_gloo_lines(output)[-1] if drop_gloo_lines(output) else pytest.fail(errors))
        assert "kubernetes" not in errors.lower()
        assert result["processes"] == 2
        assert result["devices"] == [4, 2]
        assert result["gathered"] == [[2**40, -1], [2**40 + 1, -1]]
        assert result["empty"] == [2, 0, 3]
        assert result["on_all"] == [True, False]
        assert result["on_any"] == [True, False]


def test_processes_that_disagree_print_the_difference_and_exit(two_processes):
    for code, _, errors in two_processes:
        assert drop_gloo_lines(errors) == [DIFFERENCE]
        assert code == 2


@pytest.mark.slow
def test_processes_with_different_code_exit():
    address = f"localhost:{free_port()}"
    for code, _, errors in wait_for(*(start_python("-c", CODE_PROGRAM, address, i) for i in range(2))):
        assert code == 2
        assert 'error: Process 1 was started with `code` (="commit 1"), process 0 with "commit 0".' in errors


def test_processes_with_different_device_counts_exit():
    address = f"localhost:{free_port()}"
    message = "error: Process 1 has 2 devices, but process 0 has 1. Give every process the same number of devices."
    processes = [start_python("-c", PROGRAM, address, 2, i, JAX_NUM_CPU_DEVICES=str(i + 1)) for i in range(2)]
    for code, _, errors in wait_for(*processes):
        assert drop_gloo_lines(errors) == [message]
        assert code == 2


@pytest.mark.long
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs Open MPI")
def test_mpirun_is_recognized():
    command = ["mpirun", "--oversubscribe", "-n", "2", sys.executable, "-c", PROGRAM]
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "JAX_NUM_CPU_DEVICES": "2"}
    process = subprocess.Popen(command, env=environment(**allowed), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    [(code, output, errors)] = wait_for(process)
    results = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert [each["processes"] for each in results] == [2, 2], errors
    # When two processes share a host, each uses the GPU that matches its rank.
    assert {each["visible_devices"] for each in results} == {"0", "1"}
    assert errors.count(DIFFERENCE) == 2
    assert code == 2


@pytest.mark.long
def test_srun_is_recognized():
    # JAX derives the coordinator's port from the job id.
    job = str(int(time.time()) % 4096)
    ranks = [SRUN | {"SLURM_JOB_ID": job, "SLURM_STEP_NODELIST": "localhost", "SLURM_PROCID": str(i)} for i in range(2)]
    for code, output, errors in wait_for(*(start_python("-c", PROGRAM, JAX_NUM_CPU_DEVICES="2", **rank) for rank in ranks)):
        result = json.loads(drop_gloo_lines(output)[-1])
        assert result["processes"] == 2
        assert result["visible_devices"] == "all"  # the only task on a node uses all of the node's GPUs
        assert drop_gloo_lines(errors) == [DIFFERENCE]
        assert code == 2


def test_processes_that_do_not_find_each_other_exit_with_one_line():
    ports = [free_port(), free_port()]
    program = "import sys; from deeplab_jax.runtime import hosts; hosts.start(sys.argv[1], 2, int(sys.argv[2]), timeout=2)"
    first, second = wait_for(*(start_python("-c", program, f"localhost:{port}", i) for i, port in enumerate(ports)))
    assert (first[0], second[0]) == (3, 3)
    assert first[2].startswith(
        f"error: Not all 2 processes connected to `--coordinator` (='localhost:{ports[0]}') within 2 s. "
    )
    assert second[2].startswith(
        f"error: `--coordinator` (='localhost:{ports[1]}') did not answer within 2 s (Connection refused). "
    )
    assert first[2].count("\n") == second[2].count("\n") == 1


def test_a_port_in_use_is_an_error():
    with socket.create_server(("", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
        message = rf"`--coordinator` \(='{address}'\) cannot be used .*in use.*\. Choose a different port"
        with pytest.raises(ConfigError, match=message):
            hosts.start(address, 2, 0)


@pytest.mark.parametrize("flags", [(None, None, None), ("localhost:1234", 1, 0)])
def test_a_single_process_does_not_initialize_jax_distributed(monkeypatch, flags):
    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("jax.distributed.initialize was called."))
    hosts.start(*flags)
    assert not jax.distributed.is_initialized()


def let_initialize_raise(monkeypatch, error):
    """Pretend that a launcher was found, and make `jax.distributed.initialize` raise `error`."""

    def initialize(*_, **__):
        raise error

    monkeypatch.setattr(hosts, "find_process_spec", lambda *_: ProcessSpec())
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)


def test_a_single_tpu_host_is_a_run_of_one_process(monkeypatch):
    let_initialize_raise(monkeypatch, ValueError("coordinator_address should be defined."))
    hosts.start(None, None, None)
    assert not jax.distributed.is_initialized()


def test_jax_initialization_errors_become_one_line(monkeypatch):
    let_initialize_raise(monkeypatch, RuntimeError("Kubernetes API Error: 403 - Forbidden\nIt appears that"))
    with pytest.raises(ConfigError, match=r"cannot find each other \(Kubernetes API Error: 403 - Forbidden It appears that\)"):
        hosts.start(None, None, None)


def test_collectives_work_in_a_single_process():
    array = np.array([[2**40, 1]])
    np.testing.assert_array_equal(hosts.gather(array), array[None])
    assert [hosts.is_true_on_all(True), hosts.is_true_on_all(False)] == [True, False]
    assert [hosts.is_true_on_any(True), hosts.is_true_on_any(False)] == [True, False]
    hosts.require_same(config={"not": "compared"})
    hosts.barrier("anything")


def test_a_difference_names_the_process_the_fields_and_both_values():
    same = {"config": {"a": 1, "b": {"c": [1, 2]}, "labels": {}}, "data": "x"}
    other = {"config": {"a": 1.0, "b": {"c": [1, 3], "d": True}, "labels": {}}, "data": "x" * 100}
    assert hosts._flatten(same) == {"config.a": "1", "config.b.c": "[1, 2]", "config.labels": "{}", "data": '"x"'}
    text = hosts._describe_difference([hosts._flatten(same), hosts._flatten(same), hosts._flatten(other)])
    assert text.startswith(
        "Process 2 was started with `config.a` (=1.0), process 0 with 1; `config.b.c` (=[1, 3]), process 0 with [1, 2]; "
        "`config.b.d` (=true), process 0 with nothing; and 1 more. Start every process"
    )
    long = hosts._describe_difference([hosts._flatten({"data": "x"}), hosts._flatten({"data": "x" * 100})])
    assert '...), process 0 with "x". ' in long


def test_the_watchdog_is_off_for_a_single_process_or_zero_seconds(monkeypatch):
    for is_alone, seconds in ((True, 1), (False, 0)):
        monkeypatch.setattr(hosts, "_is_alone", lambda is_alone=is_alone: is_alone)
        before = threading.active_count()
        with Watchdog(seconds) as watchdog:
            watchdog.beat()
            assert threading.active_count() == before


@pytest.mark.slow
def test_the_watchdog_ends_a_process_that_stalls():
    [(code, output, errors)] = wait_for(start_python("-c", WATCHDOG_PROGRAM, 20))
    assert code == HostError.exit_code
    assert output.split() == ["started", "stalling"]
    assert errors.startswith("error: Process 0 of 1 has made no progress for 1 s, since ")
    assert errors.endswith(", raise train.stall_timeout.\n")  # for saves that are only slow
    assert errors.count("\n") == 1


@pytest.mark.slow
def test_the_watchdog_ignores_the_time_in_which_the_process_is_paused():
    process = start_python("-c", WATCHDOG_PROGRAM, 0)
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    process.send_signal(signal.SIGCONT)
    [(code, output, errors)] = wait_for(process)
    assert (code, output.split(), errors) == (0, ["stalling", "exited"], "")


@pytest.mark.parametrize(
    ("error", "is_lost"),
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
def test_errors_caused_by_another_process_are_recognized(monkeypatch, error, is_lost):
    assert hosts.as_host_error(error) is None  # in a single-process run
    monkeypatch.setattr(hosts, "_is_alone", lambda: False)
    host_error = hosts.as_host_error(error)
    assert isinstance(host_error, HostError) == is_lost
    if is_lost:
        assert str(host_error).startswith("Another process in the run has ended or cannot be reached (")
        assert "\n" not in str(host_error)


def test_a_single_process_exits_by_raising_exceptions():
    with pytest.raises(SystemExit, match="2"):
        hosts.exit_process(2)
    with pytest.raises(ConfigError, match="an error"), hosts.exit_on_error():
        raise ConfigError("an error")


def test_a_successful_process_exits_normally(monkeypatch):
    monkeypatch.setattr(hosts, "_is_alone", lambda: False)
    with pytest.raises(SystemExit, match="0"), hosts.exit_on_error():
        sys.exit(0)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("no such field"), 2, "error: no such field\n"),
        (ValueError("Gloo all-gather failed: timed out"), 3, "error: Another process in the run has ended"),
        (HostError("a process ended"), 3, "error: a process ended"),
        (KeyboardInterrupt(), 130, ""),
        (SystemExit(7), 7, ""),
        (ZeroDivisionError("a bug"), 1, "Traceback"),
    ],
)
def test_one_of_several_processes_prints_its_error_and_exits(monkeypatch, capsys, error, code, line):
    codes = []
    monkeypatch.setattr(hosts, "_is_alone", lambda: False)
    monkeypatch.setattr(hosts, "EXIT_DELAY_SECONDS", 0)
    monkeypatch.setattr(hosts.os, "_exit", codes.append)
    with hosts.exit_on_error():
        raise error
    assert codes == [code]
    assert capsys.readouterr().err.startswith(line)


def test_a_process_whose_terminal_is_closed_exits(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise OSError(5, "Input/output error")

        def flush(self):
            raise OSError(5, "Input/output error")

    codes = []
    monkeypatch.setattr(hosts, "_is_alone", lambda: False)
    monkeypatch.setattr(hosts, "EXIT_DELAY_SECONDS", 0)
    monkeypatch.setattr(hosts.os, "_exit", codes.append)
    monkeypatch.setattr(sys, "stdout", Closed())
    monkeypatch.setattr(sys, "stderr", Closed())
    with hosts.exit_on_error():
        raise ConfigError("no such field")
    assert codes == [2]
