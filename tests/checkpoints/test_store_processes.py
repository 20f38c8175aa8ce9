"""Test two processes that save and resume one run in a shared folder."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from deeplab_jax.checkpoints.folders import find_changed_files

PROCESS = """
import json, pathlib, sys
import jax
address, index, workdir = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(address, 2, index)

import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from deeplab_jax.checkpoints.folders import Rank
from deeplab_jax.runtime.hosts import barrier
from saved_runs import ABSTRACT, CONFIG, DIGESTS, Checkpoints, state_digest, to_trees
from saved_runs import find_array_file, flip_bit, make_state, restore

replicated = NamedSharding(Mesh(np.array(jax.devices()), "data"), PartitionSpec())
abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), ABSTRACT)

def save(checkpoints, step):
    on_host = jax.device_get(make_state(step))
    state = jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, replicated, lambda part: x[part]), on_host)
    checkpoints.save(to_trees(state), step)

def resume(checkpoints, expected):
    warnings = []
    state = restore(checkpoints, warnings.append, expected, abstract)
    assert state_digest(state) == DIGESTS[int(state.step)]
    return [int(state.step), len(warnings)]

with Checkpoints(workdir, CONFIG) as checkpoints:
    for step in (1, 2, 3):
        save(checkpoints, step)
barrier("saved")
if index == 0:
    flip_bit(find_array_file(pathlib.Path(workdir) / "checkpoints" / "3"))
barrier("damaged")
with Checkpoints(workdir, CONFIG) as checkpoints:
    by_checksums = resume(checkpoints, DIGESTS.get)
    save(checkpoints, 3)
barrier("saved again")
with Checkpoints(workdir, CONFIG) as checkpoints:
    by_digest = resume(checkpoints, lambda step: "wrong" if (step, index) == (3, 1) else DIGESTS[step])
    save(checkpoints, 3)
print(json.dumps([by_checksums, by_digest]))
"""

FULL_DISK = """
import resource, signal
from deeplab_jax.runtime import hosts

with hosts.exit_on_error(), Checkpoints(workdir, CONFIG) as checkpoints:
    save(checkpoints, 1)
    checkpoints.add_scores(1, {"miou": 0.5}, Rank("miou", 0.5))
    if index == 0:  # the first process writes the files, and cannot write the arrays of step 2 any more
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    save(checkpoints, 2)
    checkpoints.add_scores(2, {"miou": 0.5}, Rank("miou", 0.5))
"""


def start_process(index, address, workdir, program=PROCESS):
    here = pathlib.Path(__file__).parent
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]), "JAX_NUM_CPU_DEVICES": "1"}
    arguments = [sys.executable, "-c", program, address, str(index), str(workdir)]
    return subprocess.Popen(arguments, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_two_processes(workdir, program):
    """Return (exit code, stdout, stderr) for each process."""
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(start_process(index, address, workdir, program)) for index in range(2)]
        for process in processes:
            stack.callback(process.kill)
        outputs = [process.communicate(timeout=240) for process in processes]
        return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


@pytest.mark.slow
def test_all_processes_resume_from_the_same_step_if_one_finds_damage(tmp_path):
    outputs = [output for _, output, _ in run_two_processes(tmp_path, PROCESS)]
    # Process 0 detects the flipped bit through the checksums. Later, only process 1 sees a wrong digest.
    assert [json.loads(text.splitlines()[-1]) for text in outputs] == [[[2, 1], [2, 1]]] * 2
    steps = sorted((tmp_path / "checkpoints").iterdir())
    assert [path.name for path in steps] == ["2", "3"]
    assert [find_changed_files(path) for path in steps] == [[], []]
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["3", "3.2"]


@pytest.mark.slow
def test_all_processes_report_the_error_of_the_process_that_cannot_write(tmp_path):
    start, _ = PROCESS.split("def resume")
    results = run_two_processes(tmp_path, start + FULL_DISK)
    lines = [[line for line in errors.splitlines() if line.startswith("error: ")] for _, _, errors in results]
    assert lines[0] == lines[1], results
    assert [line.startswith(f"error: Cannot write to {tmp_path}/checkpoints (") for line in lines[0]] == [True]
    assert "Traceback" not in "".join(errors for _, _, errors in results)
    assert [code for code, _, _ in results] == [2, 2]
