"""Test two processes that save and resume one run in a shared folder."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys

from deeplab_jax.checkpoints.folders import find_changed_files

PROCESS = """
import json, pathlib, sys
import jax
address, index, workdir = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(address, 2, index)

import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from deeplab_jax.runtime.hosts import barrier
from test_damage import ABSTRACT, CONFIG, DIGESTS, Checkpoints, state_digest, to_trees
from test_damage import find_array_file, flip_bit, make_state, restore

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


def start_process(index, address, workdir):
    here = pathlib.Path(__file__).parent
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]), "JAX_NUM_CPU_DEVICES": "1"}
    arguments = [sys.executable, "-c", PROCESS, address, str(index), str(workdir)]
    return subprocess.Popen(arguments, env=env, stdout=subprocess.PIPE, text=True)


def test_all_processes_resume_from_the_same_step_if_one_finds_damage(tmp_path):
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(start_process(index, address, tmp_path)) for index in range(2)]
        for process in processes:
            stack.callback(process.kill)
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    # Process 0 detects the flipped bit through the checksums. Later, only process 1 sees a wrong digest.
    assert [json.loads(text.splitlines()[-1]) for text in outputs] == [[[2, 1], [2, 1]]] * 2
    steps = sorted((tmp_path / "checkpoints").iterdir())
    assert [path.name for path in steps] == ["2", "3"]
    assert [find_changed_files(path) for path in steps] == [[], []]
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["3", "3.2"]
