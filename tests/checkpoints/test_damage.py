"""Checkpoints that are damaged, incomplete or without checksums: what a run does about them, and what their readers do."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config, tiny_resnet18

from deeplab_jax.api import load
from deeplab_jax.checkpoints.folders import CHECKSUMS, find_changed_files
from deeplab_jax.checkpoints.store import Checkpoints, resolve, restore_model, restore_variables, save_model, stored_config
from deeplab_jax.errors import CheckpointError, ConfigError
from deeplab_jax.train.begin import require_expected
from deeplab_jax.train.state import TrainState, from_trees, state_digest, to_trees
from deeplab_jax.weights.transfer import pretrained_variables

CONFIG = tiny_config(model=tiny_resnet18())  # that of version_0_1.zip


def state_at(step):
    """A state of that step with arrays of its own."""
    params = {"classifier": {"kernel": jnp.arange(1000.0) + step}}
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        params=params,
        batch_stats={"mean": jnp.full(3, 0.5 + step)},
        opt_state={"momentum": jax.tree.map(jnp.negative, params)},
        skipped=jnp.asarray(0, jnp.int32),
    )


DIGESTS = {step: state_digest(state_at(step)) for step in range(10)}
ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), to_trees(state_at(0)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    with Checkpoints(str(workdir), CONFIG) as checkpoints:
        for step, miou in ((5, 0.9), (6, 0.1), (7, 0.2)):
            checkpoints.save(to_trees(state_at(step)), step, {"miou": miou})
    return workdir


@pytest.fixture
def run(saved, tmp_path):
    """A run with the steps 5 (its best), 6 and 7, with checksums."""
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def steps(run, folder="checkpoints"):
    return sorted(path.name for path in (run / folder).iterdir()) if (run / folder).exists() else []


def restore(checkpoints, warn, expected=DIGESTS.get, abstract=ABSTRACT):
    """The state that the run resumes from."""
    step, trees = checkpoints.restore(abstract, lambda step, trees: require_expected(trees, step, expected(step)), warn)
    state = from_trees(trees)
    assert int(state.step) == step == checkpoints.latest_step()
    return state


def resume(run, expected=DIGESTS.get, config=CONFIG):
    """The step that the run resumes from, and the warnings; the state must be that step's."""
    warnings = []
    with Checkpoints(str(run), config) as checkpoints:
        state = restore(checkpoints, warnings.append, expected)
    assert state_digest(state) == DIGESTS[int(state.step)]
    return int(state.step), warnings


def array_file(step):
    """The file with the values of the model's arrays."""
    return max((step / "model").rglob("d/*"), key=lambda path: path.stat().st_size)


def flip(path, position=0.5):
    content = bytearray(path.read_bytes())
    content[int((len(content) - 1) * position)] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


def replace_by_6(step):
    shutil.rmtree(step)
    shutil.copytree(step.parent / "6", step)


def remove_checksums(step):
    (step / CHECKSUMS).unlink(missing_ok=True)


# What is done to step 7, and what is said of it.
WITH_CHECKSUMS = {
    "an empty folder": (empty, "its config is missing"),
    "a flipped bit": (lambda step: flip(array_file(step)), f"1 of its files do not match {CHECKSUMS}, as model/"),
    "arrays cut short": (lambda step: truncate(array_file(step)), f"1 of its files do not match {CHECKSUMS}, as model/"),
    "no metadata": (lambda step: (step / "_CHECKPOINT_METADATA").unlink(), "as _CHECKPOINT_METADATA"),
    "no commit marker": (lambda step: (step / "commit_success.txt").unlink(), "as commit_success.txt"),
    "metadata cut short": (lambda step: truncate(step / "_CHECKPOINT_METADATA"), "as _CHECKPOINT_METADATA"),
    "metrics cut short": (lambda step: truncate(step / "metrics" / "metrics"), "as metrics/metrics"),
    "no training": (lambda step: shutil.rmtree(step / "training"), "as training/"),
    "sums cut short": (lambda step: truncate(step / CHECKSUMS), f"as {CHECKSUMS}"),
}
# What orbax, or the digest, notices without sums.
WITHOUT_CHECKSUMS = {
    "a flipped bit": (lambda step: flip(array_file(step)), "another digest"),
    "no metadata": (lambda step: (step / "_CHECKPOINT_METADATA").unlink(), "its config is missing"),
    "metadata cut short": (lambda step: truncate(step / "_CHECKPOINT_METADATA"), "its config is missing"),
    "metadata that are a list": (lambda step: (step / "_CHECKPOINT_METADATA").write_text("[]"), "its config is missing"),
    "metrics cut short": (lambda step: truncate(step / "metrics" / "metrics"), "line 1 column"),
    "a part's metadata cut short": (lambda step: truncate(step / "training" / "_METADATA"), "line 1 column"),
    "another step's files": (replace_by_6, "it holds the state after step 6"),
}


def check_set_aside(run, reason):
    """Resumes from 6 although 7 is there, and saves 7 again."""
    warnings = []
    with Checkpoints(str(run), CONFIG) as checkpoints:
        state = restore(checkpoints, warnings.append)
        assert state_digest(state) == DIGESTS[6]
        checkpoints.save(to_trees(state_at(7)), 7, None)
    (warning,) = warnings
    assert warning.startswith(f"{run / 'checkpoints' / '7'} is left out, since it is damaged: ")
    assert reason in warning
    assert len(warning.splitlines()) == 1
    assert steps(run, "damaged") == ["7"]
    assert steps(run) == ["5", "6", "7"]
    assert find_changed_files(run / "checkpoints" / "7") == []
    assert resume(run) == (7, [])


@pytest.mark.parametrize("name", WITH_CHECKSUMS)
def test_a_damaged_step_is_set_aside_and_can_be_saved_again(run, name):
    damage, reason = WITH_CHECKSUMS[name]
    damage(run / "checkpoints" / "7")
    check_set_aside(run, reason)


@pytest.mark.parametrize("name", WITHOUT_CHECKSUMS)
def test_damage_is_found_without_checksums(run, name):
    damage, reason = WITHOUT_CHECKSUMS[name]
    damage(run / "checkpoints" / "7")
    remove_checksums(run / "checkpoints" / "7")
    check_set_aside(run, reason)


def test_without_sums_and_digest_a_flipped_bit_goes_unnoticed(run):
    flip(array_file(run / "checkpoints" / "7"))
    remove_checksums(run / "checkpoints" / "7")
    with Checkpoints(str(run), CONFIG) as checkpoints:
        step, trees = checkpoints.restore(ABSTRACT)
    assert step == 7
    assert state_digest(from_trees(trees)) != DIGESTS[7]


def test_a_state_that_is_not_the_expected_one_is_left_out_though_its_files_are_whole(run):
    step, (warning,) = resume(run, lambda step: DIGESTS[step] if step == 6 else DIGESTS[0])
    assert step == 6
    assert "another digest" in warning


def test_what_was_damaged_before_is_kept(run):
    for _ in range(3):
        flip(array_file(run / "checkpoints" / "7"))
        with Checkpoints(str(run), CONFIG) as checkpoints:
            checkpoints.restore(ABSTRACT, warn=lambda line: None)
            checkpoints.save(to_trees(state_at(7)), 7, None)
    assert steps(run, "damaged") == ["7", "7.2", "7.3"]
    assert all(find_changed_files(path) for path in (run / "damaged").iterdir())


def test_several_damaged_steps_are_left_out(run):
    flip(array_file(run / "checkpoints" / "7"))
    empty(run / "checkpoints" / "6")
    step, warnings = resume(run)
    assert step == 5
    assert [warning.split(" is left out")[0] for warning in warnings] == [str(run / "checkpoints" / n) for n in "76"]
    assert steps(run, "damaged") == ["6", "7"]


def test_an_older_step_that_orbax_cannot_list_keeps_no_run_from_saving(run):
    truncate(run / "checkpoints" / "5" / "metrics" / "metrics")
    warnings = []
    with Checkpoints(str(run), CONFIG) as checkpoints:
        state = restore(checkpoints, warnings.append)
        checkpoints.save(to_trees(state_at(8)), 8, None)
    assert state_digest(state) == DIGESTS[7]
    assert [("checkpoints/5 is left out" in warning) for warning in warnings] == [True]
    assert steps(run, "damaged") == ["5"]
    assert resume(run) == (8, [])


def test_if_no_step_is_whole_all_stay_and_the_folder_is_named(run):
    for name in steps(run):
        flip(array_file(run / "checkpoints" / name))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"run/checkpoints holds no whole checkpoint \(damaged: 7, 6, 5\)"):
            resume(run)
    assert steps(run) == ["5", "6", "7"]
    assert not (run / "damaged").exists()


def test_a_run_without_checkpoints_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"checkpoints holds no checkpoint:"):
        resume(tmp_path)


def test_another_network_is_no_damage(run):
    with pytest.raises(CheckpointError, match=r"`model.width` \(=16\) is 8 in .*checkpoints/7"):
        resume(run, config=tiny_config(model=tiny_resnet18(width=16)))
    assert steps(run) == ["5", "6", "7"]


def test_another_network_is_found_behind_a_damaged_step(run):
    empty(run / "checkpoints" / "7")
    with pytest.raises(CheckpointError, match=r"`model.width` \(=16\) is 8 in .*checkpoints/6"):
        resume(run, config=tiny_config(model=tiny_resnet18(width=16)))
    assert steps(run) == ["5", "6", "7"]


def test_a_config_of_another_version_is_no_damage_but_a_changed_one_is(run):
    path = run / "checkpoints" / "7" / "_CHECKPOINT_METADATA"
    metadata = json.loads(path.read_text())
    metadata["custom_metadata"]["config"]["sead"] = metadata["custom_metadata"]["config"].pop("seed")
    path.write_text(json.dumps(metadata))
    sums = (path.parent / CHECKSUMS).read_bytes()
    remove_checksums(path.parent)
    with pytest.raises(ConfigError, match="`sead` is no field of this version's config"):
        resume(run)
    (path.parent / CHECKSUMS).write_bytes(sums)
    assert resume(run)[0] == 6


def test_a_state_of_another_version_is_no_damage(run):
    training = ABSTRACT["training"]
    later = ABSTRACT | {"training": training | {"clipped": training["skipped"]}}
    message = (
        r"checkpoints/7 does not hold the arrays of this run's state \(training/clipped\): use the optimizer and the version "
    )
    with Checkpoints(str(run), CONFIG) as checkpoints, pytest.raises(CheckpointError, match=message):
        restore(checkpoints, print, abstract=later)
    assert steps(run) == ["5", "6", "7"]


def test_weights_without_a_training_are_no_damage(tmp_path):
    save_model(str(tmp_path), CONFIG, {"params": {"kernel": np.ones(2)}, "batch_stats": {}})
    assert find_changed_files(tmp_path / "checkpoints" / "0") == []
    with pytest.raises(CheckpointError, match="holds weights without a training"):
        resume(tmp_path)


def test_a_note_in_a_step_is_found_but_keeps_no_run_from_resuming(run):
    (run / "checkpoints" / "7" / "notes.txt").write_text("the best one")
    assert find_changed_files(run / "checkpoints" / "7") == ["notes.txt"]
    assert resume(run) == (7, [])


def test_a_good_step_without_checksums_gets_them(run):
    remove_checksums(run / "checkpoints" / "7")
    assert find_changed_files(run / "checkpoints" / "7") is None
    assert resume(run) == (7, [])
    assert find_changed_files(run / "checkpoints" / "7") == []


# Where a bit is flipped that whoever reads the model reads.
READ = {
    "the first byte of the arrays": lambda step: flip(array_file(step), 0),
    "the middle of the arrays": lambda step: flip(array_file(step)),
    "the last byte of the arrays": lambda step: flip(array_file(step), 1),
    "the metadata": lambda step: flip(step / "_CHECKPOINT_METADATA"),
    "the model's metadata": lambda step: flip(step / "model" / "_METADATA"),
    "the manifest": lambda step: flip(step / "model" / "manifest.ocdbt"),
    "the checksums": lambda step: flip(step / CHECKSUMS, 0),
}


@pytest.mark.parametrize("place", READ)
def test_a_flipped_bit_is_refused_by_all_who_read_the_model(run, place):
    READ[place](run / "checkpoints" / "7")
    message = rf"checkpoints/7 cannot be read \(1 of its files do not match {CHECKSUMS}, as .*\): it is damaged"
    readers = [lambda run: restore_model(run, CONFIG), load, lambda run: pretrained_variables(starting_from(run))]
    for read in readers:
        with pytest.raises(CheckpointError, match=message) as error:
            read(str(run))
        assert len(str(error.value).splitlines()) == 1


def starting_from(run):
    return tiny_config(model=tiny_resnet18(pretrained=run))


def test_a_flipped_bit_of_the_metadata_is_refused_by_who_reads_the_config_alone(run):
    flip(run / "checkpoints" / "7" / "_CHECKPOINT_METADATA")
    with pytest.raises(CheckpointError, match="as _CHECKPOINT_METADATA"):
        stored_config(str(run))


def test_a_flipped_bit_of_the_metrics_chooses_no_best(run):
    flip(run / "checkpoints" / "5" / "metrics" / "metrics", 0.8)
    with pytest.raises(CheckpointError, match=r"checkpoints/5 cannot be read .* as metrics/metrics"):
        resolve(str(run / "best"))


def test_whoever_reads_the_model_alone_does_not_mind_the_training(run):
    shutil.rmtree(run / "checkpoints" / "7" / "training")
    variables = restore_model(str(run), CONFIG)
    np.testing.assert_array_equal(variables["params"]["classifier"]["kernel"], np.arange(1000.0) + 7)
    remove_checksums(run / "checkpoints" / "7")
    restore_model(str(run), CONFIG)


def test_a_checkpoint_of_version_0_1_is_read_and_resumed(tmp_path):
    with zipfile.ZipFile(pathlib.Path(__file__).parent / "version_0_1.zip") as archive:
        archive.extractall(tmp_path)
    assert find_changed_files(tmp_path / "checkpoints" / "7") == []
    assert stored_config(str(tmp_path)) == CONFIG
    np.testing.assert_array_equal(restore_variables(str(tmp_path))["batch_stats"]["mean"], np.full(3, 7.5))
    assert resume(tmp_path) == (7, [])


def test_the_files_of_a_checkpoint_are_those_of_version_0_1(run):
    with zipfile.ZipFile(pathlib.Path(__file__).parent / "version_0_1.zip") as archive:
        then = {re.sub("[0-9a-f]{32}", "HASH", name) for name in archive.namelist()}
    step = run / "checkpoints" / "7"
    now = {re.sub("[0-9a-f]{32}", "HASH", str(path.relative_to(run))) for path in step.rglob("*") if path.is_file()}
    assert now == then


@pytest.mark.parametrize("rest", ["a whole folder", "an empty folder"])
def test_what_a_killed_save_left_is_no_checkpoint_and_goes_with_the_next_save(run, rest):
    left = run / "checkpoints" / "7.orbax-checkpoint-tmp"
    (run / "checkpoints" / "7").rename(left)
    if rest == "an empty folder":
        empty(left)
    other = shutil.copytree(left, left.with_name("9.orbax-checkpoint-tmp"))
    with Checkpoints(str(run), CONFIG) as checkpoints:
        assert checkpoints.latest_step() == 6
        assert int(restore(checkpoints, print).step) == 6
        assert other.exists()
        checkpoints.save(to_trees(state_at(7)), 7, None)
    assert steps(run) == ["5", "6", "7"]
    assert resume(run) == (7, [])


KILLED = """
import os, signal, sys, time
from test_damage import CONFIG, Checkpoints, state_at, to_trees
checkpoints = Checkpoints(sys.argv[1], CONFIG)
checkpoints.save(to_trees(state_at(8)), 8, None)
time.sleep(float(sys.argv[2]))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("seconds", [0, 0.03])
def test_a_run_that_is_killed_while_it_saves_goes_on(run, seconds):
    here = pathlib.Path(__file__).parent
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(run), str(seconds)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])},
        check=False,
    )
    assert process.returncode == -signal.SIGKILL
    reached, warnings = resume(run)
    assert reached in (7, 8)
    assert warnings == []
    with Checkpoints(str(run), CONFIG) as checkpoints:
        checkpoints.save(to_trees(state_at(8)), 8, None)
        checkpoints.save(to_trees(state_at(9)), 9, None)
    assert steps(run) == ["5", "8", "9"]
    assert [find_changed_files(run / "checkpoints" / name) for name in steps(run)] == [[], [], []]
    assert resume(run) == (9, [])


def test_a_save_that_fails_is_told_by_the_next_one(run):
    def save_nowhere():
        with Checkpoints(str(run), CONFIG) as checkpoints:
            shutil.rmtree(run / "checkpoints")
            (run / "checkpoints").write_text("")
            checkpoints.save(to_trees(state_at(8)), 8, None)
            checkpoints.save(to_trees(state_at(9)), 9, None)

    with pytest.raises(CheckpointError, match="checkpoints cannot be written"):
        save_nowhere()
