import dataclasses

import jax
import numpy as np
import pytest
from conftest import tiny_config, tiny_model

from deeplab_jax.config import ModelConfig
from deeplab_jax.errors import CheckpointError
from deeplab_jax.labels import LabelSet
from deeplab_jax.models import DeepLabV3
from deeplab_jax.train.checkpoint import Checkpoints, differences, resolve, restore_model, stored_config
from deeplab_jax.train.optimizer import make_optimizer
from deeplab_jax.train.state import init_state

CONFIG = tiny_config()


@pytest.fixture(scope="module")
def state():
    optimizer = make_optimizer(CONFIG.optim, 10)
    return jax.jit(lambda: init_state(DeepLabV3(CONFIG.model, 19), optimizer, 0))()


@pytest.fixture(scope="module")
def run(tmp_path_factory, state):
    """Steps 1 to 5; 2 is the best, 5 the latest."""
    workdir = tmp_path_factory.mktemp("run")
    with Checkpoints(str(workdir), CONFIG) as checkpoints:
        for step, miou in ((1, 0.1), (2, 0.9), (3, 0.2), (4, None), (5, None)):
            numbered = state.replace(params=jax.tree.map(lambda x, step=step: x + step, state.params))
            checkpoints.save(numbered, step, None if miou is None else {"miou": miou})
    return workdir


def test_the_two_latest_and_the_best_are_kept(run):
    assert sorted(int(path.name) for path in (run / "checkpoints").iterdir()) == [2, 4, 5]


@pytest.mark.parametrize(("name", "step"), [("", 5), ("latest", 5), ("best", 2), ("checkpoints/4", 4)])
def test_a_run_its_best_or_a_step_is_found(run, name, step):
    assert resolve(str(run / name)).name == str(step)


def test_the_model_comes_back_as_it_was_saved(run, state):
    variables = restore_model(str(run / "best"), CONFIG)
    expected = {"params": jax.tree.map(lambda x: x + 2, state.params), "batch_stats": state.batch_stats}
    jax.tree.map(np.testing.assert_array_equal, variables, jax.device_get(expected))


def test_the_whole_state_comes_back_in_the_sharding_asked_for(run, state):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[2])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)
    with Checkpoints(str(run), CONFIG) as checkpoints:
        restored = checkpoints.restore(abstract)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(restored))
    np.testing.assert_array_equal(
        restored.params["classifier"]["kernel"], jax.device_get(state.params["classifier"]["kernel"]) + 5
    )


def test_the_config_comes_back(run):
    assert stored_config(str(run)) == CONFIG


def test_changed_fields_are_told(run):
    changed = dataclasses.replace(CONFIG, seed=3, optim=dataclasses.replace(CONFIG.optim, lr=0.5))
    assert differences(str(run), changed) == ["seed: 0 -> 3", "optim.lr: 0.05 -> 0.5"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": LabelSet("pets", ("cat", "dog"), ((1, 1, 1), (2, 2, 2)))}, r"'pets', 2 classes.*19 classes"),
        ({"model": ModelConfig(backbone="resnet34", width=8, aspp_width=8)}, r"`model.backbone` \(='resnet34'\) is 'resnet18'"),
        ({"model": tiny_model(width=16)}, r"`model.width` \(=16\) is 8"),
    ],
)
def test_another_network_or_label_set_is_refused(run, fields, message):
    with pytest.raises(CheckpointError, match=message):
        restore_model(str(run), dataclasses.replace(CONFIG, **fields))


def test_a_step_that_is_not_there_names_those_that_are(run):
    with pytest.raises(CheckpointError, match="has the steps 2, 4, 5"):
        resolve(str(run / "checkpoints" / "3"))


def test_no_run_and_an_empty_run_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"`checkpoint` \(='.*nowhere'\) is no run"):
        resolve(str(tmp_path / "nowhere"))
    with Checkpoints(str(tmp_path), CONFIG) as checkpoints:
        assert checkpoints.latest_step() is None
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        resolve(str(tmp_path))


def test_a_run_may_be_called_latest_and_its_path_may_be_relative(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoints("runs/latest", CONFIG) as checkpoints:
        checkpoints.save(state, 3, None)
    assert resolve("runs/latest") == tmp_path / "runs" / "latest" / "checkpoints" / "3"
    assert resolve("runs/latest/latest").name == "3"
    assert stored_config("runs/latest") == CONFIG


@pytest.mark.parametrize("content", ["", '{"custom_metadata": {}}'])
def test_damaged_metadata_are_named(state, tmp_path, content):
    with Checkpoints(str(tmp_path), CONFIG) as checkpoints:
        checkpoints.save(state, 7, None)
    (tmp_path / "checkpoints" / "7" / "_CHECKPOINT_METADATA").write_text(content)
    with pytest.raises(CheckpointError, match=r"checkpoints/7 cannot be read"):
        stored_config(str(tmp_path))


def test_switches_that_leave_the_arrays_as_they_are_may_change(run):
    changed = dataclasses.replace(CONFIG, model=tiny_model(output_stride=8, dtype="bfloat16"))
    restore_model(str(run), changed)
    assert differences(str(run), changed) == ["model.output_stride: 16 -> 8", "model.dtype: 'float32' -> 'bfloat16'"]


def test_a_damaged_step_is_named(run, state, tmp_path):
    with Checkpoints(str(tmp_path), CONFIG) as checkpoints:
        checkpoints.save(state, 7, None)
    for path in (tmp_path / "checkpoints" / "7" / "model").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(CheckpointError, match=r"checkpoints/7 cannot be read"):
        restore_model(str(tmp_path), CONFIG)
