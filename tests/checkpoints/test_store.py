import dataclasses
import errno
import shutil
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import smallest_model, tiny_config

from deeplab_jax.checkpoints.folders import Rank, find_changed_files
from deeplab_jax.checkpoints.store import Checkpoints, find_config_changes, resolve, restore_model, stored_config
from deeplab_jax.config import MeshConfig
from deeplab_jax.errors import CheckpointError
from deeplab_jax.labels import LabelSet
from deeplab_jax.models import DeepLabV3
from deeplab_jax.runtime.mesh import make_mesh, replicated_sharding
from deeplab_jax.training.optimizer import make_optimizer
from deeplab_jax.training.state import from_trees, init_state, state_digest, to_trees

CONFIG = tiny_config()


@pytest.fixture(scope="module")
def state():
    optimizer = make_optimizer(CONFIG.optim, 10)
    return jax.jit(lambda: init_state(DeepLabV3(CONFIG.model, 19), optimizer, 0))()


@pytest.fixture(scope="module")
def run(tmp_path_factory, state):
    """Return a run that saved steps 1 to 5. Step 2 is the best and step 5 the latest."""
    workdir = tmp_path_factory.mktemp("run")
    with Checkpoints(str(workdir), CONFIG) as checkpoints:
        for step, miou in ((1, 0.1), (2, 0.9), (3, 0.2), (4, None), (5, None)):
            checkpoints.save(to_trees(make_numbered_state(state, step)), step)
            if miou is not None:
                checkpoints.add_scores(step, {"miou": miou}, Rank("miou", miou))
    return workdir


def make_numbered_state(state, step):
    """Return a state for `step`, with the step number added to every parameter."""
    return state.replace(step=jnp.asarray(step, jnp.int32), params=jax.tree.map(lambda x: x + step, state.params))


def make_abstract(state):
    trees = to_trees(state)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), trees)


def test_the_two_latest_steps_and_the_best_are_kept(run):
    assert sorted(int(path.name) for path in (run / "checkpoints").iterdir()) == [2, 4, 5]


def test_a_save_from_several_devices_compiles_nothing(state, tmp_path, caplog):
    """orbax would compile a program for each shape of an array, to slice it."""
    trees = jax.device_put(to_trees(state), replicated_sharding(make_mesh(MeshConfig(data=4))))
    with Checkpoints(str(tmp_path), CONFIG) as checkpoints, jax.log_compiles():
        checkpoints.save(trees, 1)
    assert not [record.message for record in caplog.records if "Compiling" in record.message]
    restored = restore_model(str(tmp_path / "checkpoints/1"))
    jax.tree.map(np.testing.assert_array_equal, restored["params"], state.params)


def test_a_link_to_a_step_on_another_disk_is_kept(run, state, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/checkpoints/4").rename(tmp_path / "4")
    (tmp_path / "run/checkpoints/4").symlink_to(tmp_path / "4")
    with Checkpoints(str(tmp_path / "run"), CONFIG) as checkpoints:
        checkpoints.restore(make_abstract(make_numbered_state(state, 5)))
        for step in (6, 7):
            checkpoints.save(to_trees(make_numbered_state(state, step)), step)
    assert sorted(int(path.name) for path in (tmp_path / "run/checkpoints").iterdir()) == [2, 4, 6, 7]
    assert find_changed_files(tmp_path / "run/checkpoints/4") == []


@pytest.mark.slow
def test_runs_in_several_threads_save_and_load_at_the_same_time(run, tmp_path):
    def save(name):
        trees = {"model": {f"x{i}": jnp.full((50, 50), i) for i in range(20)}, "training": {"step": jnp.asarray(1)}}
        with Checkpoints(str(tmp_path / name), CONFIG) as checkpoints:
            for step in range(1, 6):
                checkpoints.save(trees, step)
        return find_changed_files(tmp_path / name / "checkpoints/5")

    with ThreadPoolExecutor() as pool:
        saves = [pool.submit(save, name) for name in "abc"]
        loads = [pool.submit(restore_model, str(run)) for _ in range(5)]
        assert [task.result() for task in saves] == [[], [], []]
        assert all("classifier" in task.result()["params"] for task in loads)


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/5"])
def test_a_link_to_a_disk_that_is_not_mounted_is_named(run, tmp_path, name):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / name).rename(tmp_path / "moved")
    (tmp_path / "run" / name).symlink_to("/missing/disk")
    message = f"^{tmp_path}/run/{name} is a link to /missing/disk, which does not exist. Create or mount that folder"
    for path in ("run", "run/best"):  # not an earlier step, and not "without a complete checkpoint"
        with pytest.raises(CheckpointError, match=message):
            resolve(str(tmp_path / path))
    with pytest.raises(CheckpointError, match=message):
        Checkpoints(str(tmp_path / "run"), CONFIG)


@pytest.mark.parametrize(("name", "step"), [("", 5), ("latest", 5), ("best", 2), ("checkpoints/4", 4)])
def test_resolve_finds_a_run_its_best_step_or_a_step(run, name, step):
    assert resolve(str(run / name)).name == str(step)


def test_the_model_is_restored_as_it_was_saved(run, state):
    variables = restore_model(str(run / "best"), CONFIG)
    expected = {"params": jax.tree.map(lambda x: x + 2, state.params), "batch_stats": state.batch_stats}
    jax.tree.map(np.testing.assert_array_equal, variables, jax.device_get(expected))


def test_the_state_is_restored_in_the_requested_sharding(run, state):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[2])
    with Checkpoints(str(run), CONFIG) as checkpoints:
        step, trees = checkpoints.restore(make_abstract(jax.device_put(state, sharding)))
    assert step == 5
    restored = from_trees(trees)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(restored))
    np.testing.assert_array_equal(
        restored.params["classifier"]["kernel"], jax.device_get(state.params["classifier"]["kernel"]) + 5
    )
    assert state_digest(restored) == state_digest(make_numbered_state(state, 5))


def test_any_existing_step_can_be_loaded(run, state):
    with Checkpoints(str(run), CONFIG) as checkpoints:
        config, trees = checkpoints.load(4, make_abstract(state))
        assert config == CONFIG
        assert state_digest(from_trees(trees)) == state_digest(make_numbered_state(state, 4))
        with pytest.raises(CheckpointError, match=r"Cannot read .*checkpoints/3"):
            checkpoints.load(3, make_abstract(state))


def test_every_step_has_checksums_before_the_next_save_and_at_the_end(state, tmp_path):
    folder = tmp_path / "checkpoints"
    with Checkpoints(str(tmp_path), CONFIG) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(to_trees(make_numbered_state(state, step)), step)
            assert step == 1 or find_changed_files(folder / str(step - 1)) == []
    assert {path.name: find_changed_files(path) for path in folder.iterdir()} == {"2": [], "3": []}


@pytest.fixture(scope="module")
def averaged_state(state):
    """Return a state whose moving average is a tenth of its parameters, and its config."""
    config = dataclasses.replace(CONFIG, optim=dataclasses.replace(CONFIG.optim, ema_decay=0.99))
    return state.replace(ema_params=jax.tree.map(lambda x: x / 10, state.params)), config


@pytest.fixture(scope="module")
def averaged_run(averaged_state, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("averaged")
    with Checkpoints(str(workdir), averaged_state[1]) as checkpoints:
        checkpoints.save(to_trees(averaged_state[0]), 0)
    return workdir


def test_inference_uses_the_average_and_training_restores_both(averaged_state, averaged_run):
    state, config = averaged_state
    variables = restore_model(str(averaged_run), CONFIG)
    jax.tree.map(np.testing.assert_array_equal, variables["params"], jax.device_get(state.ema_params))
    with Checkpoints(str(averaged_run), config) as checkpoints:
        restored = from_trees(checkpoints.restore(make_abstract(state))[1])
    jax.tree.map(np.testing.assert_array_equal, restored.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, restored.ema_params, state.ema_params)
    assert state_digest(restored) == state_digest(state)


def test_a_resumed_run_cannot_start_or_stop_averaging(averaged_state, averaged_run, run, state):
    cases = ((averaged_run, CONFIG, state, 0, 0.0, 0.99), (run, averaged_state[1], averaged_state[0], 5, 0.99, 0.0))
    for workdir, config, wanted, step, now, then in cases:
        message = rf"checkpoints/{step} do not match the state of this run \(optim.ema_decay: {then} -> {now}; training/"
        with Checkpoints(str(workdir), config) as checkpoints:
            with pytest.raises(CheckpointError, match=message):
                checkpoints.restore(make_abstract(wanted))
            with pytest.raises(CheckpointError, match=message):
                checkpoints.load(step, make_abstract(wanted))
        assert (workdir / "checkpoints" / str(step)).exists()
        assert find_config_changes(str(workdir), config) == [f"optim.ema_decay: {then} -> {now}"]
    slower = dataclasses.replace(CONFIG, optim=dataclasses.replace(CONFIG.optim, ema_decay=0.999))
    with Checkpoints(str(averaged_run), slower) as checkpoints:
        assert checkpoints.find_config_changes(0) == ["optim.ema_decay: 0.99 -> 0.999"]
        checkpoints.restore(make_abstract(averaged_state[0]))


def make_config(**fields):
    return dataclasses.replace(CONFIG, optim=dataclasses.replace(CONFIG.optim, **fields))


@pytest.mark.parametrize(
    ("config", "optimizer", "message"),
    [
        (
            make_config(name="adamw", lr=0.1),
            None,
            r"checkpoints/5 do not match the state of this run \(optim.name: 'sgd' -> 'adamw'; optim.lr: 0.05 -> "
            r"0.1; training/opt_state/.* and [0-9]+ more\)\. Undo these changes, or "
            r"start a new run from these weights with a different --workdir and --config.model.pretrained=.*run",
        ),
        (CONFIG, optax.sgd(0.1), r"training/opt_state/0.*\)\. Use the package version that wrote them, or"),
    ],
)
def test_a_different_optimizer_is_not_damage(run, config, optimizer, message):
    optimizer = optimizer or make_optimizer(config.optim, 10)
    state = jax.eval_shape(lambda: init_state(DeepLabV3(CONFIG.model, 19), optimizer, 0))
    warnings = []
    with Checkpoints(str(run), config) as checkpoints, pytest.raises(CheckpointError, match=message) as error:
        checkpoints.restore(to_trees(state), warn=warnings.append)
    assert len(str(error.value).splitlines()) == 1
    assert not warnings
    assert sorted(int(path.name) for path in (run / "checkpoints").iterdir()) == [2, 4, 5]
    assert not (run / "damaged").exists()


def test_the_config_is_restored(run):
    assert stored_config(str(run)) == CONFIG


def test_changed_fields_are_returned(run):
    changed = dataclasses.replace(CONFIG, seed=3, optim=dataclasses.replace(CONFIG.optim, lr=0.5))
    assert find_config_changes(str(run), changed) == ["seed: 0 -> 3", "optim.lr: 0.05 -> 0.5"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": LabelSet("pets", ("cat", "dog"), ((1, 1, 1), (2, 2, 2)))}, r"'pets', 2 classes.*19 classes"),
        (
            {"model": smallest_model(backbone="resnet34")},
            r"`model.backbone` \(='resnet34'\) is 'four_convolutions'",
        ),
        ({"model": smallest_model(width=16)}, r"`model.width` \(=16\) is 8"),
    ],
)
def test_a_different_network_or_label_set_is_rejected(run, fields, message):
    with pytest.raises(CheckpointError, match=message):
        restore_model(str(run), dataclasses.replace(CONFIG, **fields))


def test_an_error_for_a_missing_step_lists_the_existing_steps(run):
    with pytest.raises(CheckpointError, match=r"does not exist\. The checkpoints in \S+ are 2, 4, 5\."):
        resolve(str(run / "checkpoints" / "3"))


def test_a_missing_run_and_an_empty_run_are_reported(tmp_path):
    with pytest.raises(CheckpointError, match=r"`checkpoint` \(='.*nowhere'\) does not exist"):
        resolve(str(tmp_path / "nowhere"))
    with Checkpoints(str(tmp_path), CONFIG) as checkpoints:
        assert checkpoints.latest_step() is None
    with pytest.raises(CheckpointError, match="is a run without a complete checkpoint"):
        resolve(str(tmp_path))


def test_a_run_without_evaluations_has_no_best_step(averaged_run):
    with pytest.raises(CheckpointError, match=r"/best'\) does not exist, because no step of the run has a score\. Use "):
        resolve(str(averaged_run / "best"))


def test_a_run_may_be_called_latest_and_have_a_relative_path(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoints("runs/latest", CONFIG) as checkpoints:
        checkpoints.save(to_trees(state), 3)
    assert resolve("runs/latest") == tmp_path / "runs" / "latest" / "checkpoints" / "3"
    assert resolve("runs/latest/latest").name == "3"
    assert stored_config("runs/latest") == CONFIG


@pytest.mark.parametrize("content", ["", '{"custom_metadata": {}}'])
def test_damaged_metadata_is_reported(state, tmp_path, content):
    with Checkpoints(str(tmp_path), CONFIG) as checkpoints:
        checkpoints.save(to_trees(state), 7)
    (tmp_path / "checkpoints" / "7" / "_CHECKPOINT_METADATA").write_text(content)
    with pytest.raises(CheckpointError, match=r"Cannot read .*checkpoints/7"):
        stored_config(str(tmp_path))


def test_fields_that_do_not_affect_the_arrays_may_change(run):
    changed = dataclasses.replace(CONFIG, model=smallest_model(output_stride=8, dtype="bfloat16"))
    restore_model(str(run), changed)
    assert find_config_changes(str(run), changed) == ["model.output_stride: 16 -> 8", "model.dtype: 'float32' -> 'bfloat16'"]


def test_a_damaged_step_is_reported(run, state, tmp_path):
    with Checkpoints(str(tmp_path), CONFIG) as checkpoints:
        checkpoints.save(to_trees(state), 7)
    for path in (tmp_path / "checkpoints" / "7" / "model").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(CheckpointError, match=r"Cannot read .*checkpoints/7"):
        restore_model(str(tmp_path), CONFIG)


def test_damaged_metrics_of_one_step_do_not_hide_other_steps(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "4" / "metrics").mkdir()
    (tmp_path / "run" / "checkpoints" / "4" / "metrics" / "metrics").write_text("{")
    assert stored_config(str(tmp_path / "run")) == CONFIG
    assert resolve(str(tmp_path / "run")).name == "5"
    with pytest.raises(CheckpointError, match=r"Cannot read .*checkpoints/4"):
        resolve(str(tmp_path / "run" / "best"))


def test_a_checkpoints_folder_that_may_not_be_listed_is_one_line(tmp_path, monkeypatch):
    def fail(folder):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr("deeplab_jax.checkpoints.store.list_steps", fail)
    with pytest.raises(CheckpointError, match=r"^Cannot write to .*checkpoints \(.*Permission denied.*\)\. Fix this"):
        Checkpoints(str(tmp_path), CONFIG)
