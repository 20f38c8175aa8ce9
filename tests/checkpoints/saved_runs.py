"""A run with three small checkpoints, and ways to damage them."""

import shutil

import jax
import jax.numpy as jnp
import pytest
from conftest import tiny_config, tiny_resnet18

from deeplab_jax.checkpoints.folders import CHECKSUMS, Rank
from deeplab_jax.checkpoints.store import Checkpoints
from deeplab_jax.training.begin import check_restored_state
from deeplab_jax.training.state import TrainState, from_trees, state_digest, to_trees

CONFIG = tiny_config(model=tiny_resnet18())  # the config stored in version_0_1.zip


def make_state(step):
    """Return a state whose arrays are different for every step."""
    params = {"classifier": {"kernel": jnp.arange(1000.0) + step}}
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        params=params,
        batch_stats={"mean": jnp.full(3, 0.5 + step)},
        opt_state={"momentum": jax.tree.map(jnp.negative, params)},
        skipped=jnp.asarray(0, jnp.int32),
    )


DIGESTS = {step: state_digest(make_state(step)) for step in range(10)}
ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), to_trees(make_state(0)))


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    with Checkpoints(str(workdir), CONFIG) as checkpoints:
        for step, miou in ((5, 0.9), (6, 0.1), (7, 0.2)):
            checkpoints.save(to_trees(make_state(step)), step)
            checkpoints.add_scores(step, {"miou": miou}, Rank("miou", miou))
    return workdir


@pytest.fixture
def run(saved_run, tmp_path):
    """Return a run with checkpoints at steps 5 (the best), 6 and 7, all with checksums."""
    shutil.copytree(saved_run, tmp_path / "run")
    return tmp_path / "run"


def list_steps(run, folder="checkpoints"):
    return sorted(path.name for path in (run / folder).iterdir()) if (run / folder).exists() else []


def restore(checkpoints, warn, expected=DIGESTS.get, abstract=ABSTRACT):
    """Return the state that the run resumes from."""
    step, trees = checkpoints.restore(abstract, lambda step, trees: check_restored_state(trees, step, expected(step)), warn)
    state = from_trees(trees)
    assert int(state.step) == step == checkpoints.latest_step()
    return state


def resume(run, expected=DIGESTS.get, config=CONFIG):
    """Return the step that the run resumes from, and the warnings. Check that the restored state matches the saved one."""
    warnings = []
    with Checkpoints(str(run), config) as checkpoints:
        state = restore(checkpoints, warnings.append, expected)
    assert state_digest(state) == DIGESTS[int(state.step)]
    return int(state.step), warnings


def find_array_file(step):
    """Return the file with the model's array values."""
    return max((step / "model").rglob("d/*"), key=lambda path: path.stat().st_size)


def flip_bit(path, position=0.5):
    content = bytearray(path.read_bytes())
    content[int((len(content) - 1) * position)] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def make_empty(step):
    shutil.rmtree(step)
    step.mkdir()


def remove_checksums(step):
    (step / CHECKSUMS).unlink(missing_ok=True)
