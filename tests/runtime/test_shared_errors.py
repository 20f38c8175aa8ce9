"""Test that an error of one process is raised on all of them."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_hosts import drop_gloo_lines, free_port, start_python, wait_for

from deeplab_jax.errors import ConfigError, OutOfMemoryError
from deeplab_jax.runtime.shared_errors import failing_together, wait_together

PROGRAM = """
import sys, threading, time
from concurrent.futures import Future, ThreadPoolExecutor
from deeplab_jax.errors import CheckpointError, HostError, OutOfMemoryError
from deeplab_jax.runtime import hosts
from deeplab_jax.runtime.shared_errors import failing_together, wait_together

index = int(sys.argv[2])
with hosts.exit_on_error():
    hosts.start(sys.argv[1], 2, index)
    with failing_together():
        pass
    # The work of process 1 takes longer than one round of waiting.
    with ThreadPoolExecutor() as pool:
        wait_together(pool.submit(time.sleep, 1.2) if index else None)
    caught = []
    for owner, error in ((1, OutOfMemoryError("No memory.", "Free some.")), (0, CheckpointError("Cannot write."))):
        try:
            with failing_together():
                if index == owner:
                    raise error
        except type(error) as shared:
            caught.append(str(shared))
    print(caught, flush=True)
    work = Future()  # never done on process 1
    if index == 0:
        work.set_exception(CheckpointError("The disk is full."))
    wait_together(work)
"""


@pytest.mark.slow
def test_all_processes_raise_the_error_of_one():
    address = f"localhost:{free_port()}"
    processes = [start_python("-c", PROGRAM, address, i, JAX_NUM_CPU_DEVICES="1") for i in range(2)]
    for code, output, errors in wait_for(*processes):
        assert drop_gloo_lines(output) == ["['No memory. Free some.', 'Cannot write.']"], errors
        assert drop_gloo_lines(errors) == ["error: The disk is full."]
        assert code == 2


def test_a_single_process_raises_its_own_error():
    error = OutOfMemoryError("No memory.", "Free some.")
    with pytest.raises(OutOfMemoryError) as caught, failing_together():
        raise error
    assert caught.value is error
    with pytest.raises(KeyError), failing_together():
        raise KeyError


def test_a_single_process_waits_for_its_work():
    wait_together(None)
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(time.sleep, 0.7)
        wait_together(slow)
        assert slow.done()
        with pytest.raises(ConfigError, match="full"):
            wait_together(pool.submit(fail))


def fail():
    raise ConfigError("The disk is full.")
