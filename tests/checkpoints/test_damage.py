"""Tests for checkpoints that are damaged, incomplete or missing their checksums."""

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
from deeplab_jax.checkpoints.faults import report_write_errors
from deeplab_jax.checkpoints.folders import CHECKSUMS, SCORES, Rank, find_changed_files
from deeplab_jax.checkpoints.store import Checkpoints, resolve, restore_model, restore_variables, save_model, stored_config
from deeplab_jax.errors import CheckpointError, ConfigError
from deeplab_jax.training.begin import check_restored_state
from deeplab_jax.training.state import TrainState, from_trees, state_digest, to_trees
from deeplab_jax.weights.transfer import pretrained_variables

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


def add_damaged_metrics(step):
    (step / "metrics").mkdir()
    (step / "metrics" / "metrics").write_text("{")


def replace_with_step_6(step):
    shutil.rmtree(step)
    shutil.copytree(step.parent / "6", step)


def remove_checksums(step):
    (step / CHECKSUMS).unlink(missing_ok=True)


MODEL_CHANGED = f"1 of its files do not match {CHECKSUMS}, for example model/"
# Ways to damage step 7, each with part of the expected warning.
WITH_CHECKSUMS = {
    "an empty folder": (make_empty, "its config is missing"),
    "a flipped bit": (lambda step: flip_bit(find_array_file(step)), MODEL_CHANGED),
    "truncated arrays": (lambda step: truncate(find_array_file(step)), MODEL_CHANGED),
    "no metadata": (lambda step: (step / "_CHECKPOINT_METADATA").unlink(), "for example _CHECKPOINT_METADATA"),
    "no commit marker": (lambda step: (step / "commit_success.txt").unlink(), "for example commit_success.txt"),
    "truncated metadata": (lambda step: truncate(step / "_CHECKPOINT_METADATA"), "for example _CHECKPOINT_METADATA"),
    "no training": (lambda step: shutil.rmtree(step / "training"), "for example training/"),
    "truncated checksums": (lambda step: truncate(step / CHECKSUMS), f"for example {CHECKSUMS}"),
}
# Damage that orbax or the state digest detects without checksums.
WITHOUT_CHECKSUMS = {
    "a flipped bit": (lambda step: flip_bit(find_array_file(step)), "does not match the receipt"),
    "no metadata": (lambda step: (step / "_CHECKPOINT_METADATA").unlink(), "its config is missing"),
    "truncated metadata": (lambda step: truncate(step / "_CHECKPOINT_METADATA"), "its config is missing"),
    "metadata with a list": (lambda step: (step / "_CHECKPOINT_METADATA").write_text("[]"), "its config is missing"),
    "damaged metrics of version 0.1": (add_damaged_metrics, "its metrics are damaged: Expecting"),
    "truncated metadata of a tree": (lambda step: truncate(step / "training" / "_METADATA"), "line 1 column"),
    "the files of a different step": (replace_with_step_6, "it holds the state of step 6"),
}


def check_step_7_is_moved_away(run, reason):
    """Check that the run resumes from step 6, moves step 7 away, and can save step 7 again."""
    warnings = []
    with Checkpoints(str(run), CONFIG) as checkpoints:
        state = restore(checkpoints, warnings.append)
        assert state_digest(state) == DIGESTS[6]
        checkpoints.save(to_trees(make_state(7)), 7)
    (warning,) = warnings
    assert warning.startswith(f"skipping the damaged checkpoint {run / 'checkpoints' / '7'}: ")
    assert reason in warning
    assert len(warning.splitlines()) == 1
    assert list_steps(run, "damaged") == ["7"]
    assert list_steps(run) == ["5", "6", "7"]
    assert find_changed_files(run / "checkpoints" / "7") == []
    assert resume(run) == (7, [])


@pytest.mark.parametrize("name", WITH_CHECKSUMS)
def test_a_damaged_step_is_moved_away_and_can_be_saved_again(run, name):
    damage, reason = WITH_CHECKSUMS[name]
    damage(run / "checkpoints" / "7")
    check_step_7_is_moved_away(run, reason)


@pytest.mark.parametrize("name", WITHOUT_CHECKSUMS)
def test_damage_is_found_without_checksums(run, name):
    damage, reason = WITHOUT_CHECKSUMS[name]
    damage(run / "checkpoints" / "7")
    remove_checksums(run / "checkpoints" / "7")
    check_step_7_is_moved_away(run, reason)


def test_a_flipped_bit_is_not_detected_without_checksums_and_digest(run):
    flip_bit(find_array_file(run / "checkpoints" / "7"))
    remove_checksums(run / "checkpoints" / "7")
    with Checkpoints(str(run), CONFIG) as checkpoints:
        step, trees = checkpoints.restore(ABSTRACT)
    assert step == 7
    assert state_digest(from_trees(trees)) != DIGESTS[7]


def test_a_state_with_a_wrong_digest_is_skipped_even_if_its_files_are_intact(run):
    step, (warning,) = resume(run, lambda step: DIGESTS[step] if step == 6 else DIGESTS[0])
    assert step == 6
    assert "does not match the receipt" in warning


def test_steps_damaged_earlier_are_kept(run):
    for _ in range(3):
        flip_bit(find_array_file(run / "checkpoints" / "7"))
        with Checkpoints(str(run), CONFIG) as checkpoints:
            checkpoints.restore(ABSTRACT, warn=lambda line: None)
            checkpoints.save(to_trees(make_state(7)), 7)
    assert list_steps(run, "damaged") == ["7", "7.2", "7.3"]
    assert all(find_changed_files(path) for path in (run / "damaged").iterdir())


def test_several_damaged_steps_are_skipped(run):
    flip_bit(find_array_file(run / "checkpoints" / "7"))
    make_empty(run / "checkpoints" / "6")
    step, warnings = resume(run)
    assert step == 5
    assert [warning.split(": ")[0].split()[-1] for warning in warnings] == [str(run / "checkpoints" / n) for n in "76"]
    assert list_steps(run, "damaged") == ["6", "7"]


def test_an_older_step_that_orbax_cannot_list_does_not_prevent_saving(run):
    add_damaged_metrics(run / "checkpoints" / "5")
    warnings = []
    with Checkpoints(str(run), CONFIG) as checkpoints:
        state = restore(checkpoints, warnings.append)
        checkpoints.save(to_trees(make_state(8)), 8)
    assert state_digest(state) == DIGESTS[7]
    assert [("checkpoints/5: " in warning) for warning in warnings] == [True]
    assert list_steps(run, "damaged") == ["5"]
    assert resume(run) == (8, [])


def test_no_step_is_moved_if_all_are_damaged(run):
    for name in list_steps(run):
        flip_bit(find_array_file(run / "checkpoints" / name))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"run/checkpoints contains no intact checkpoint \(damaged: 7, 6, 5\)"):
            resume(run)
    assert list_steps(run) == ["5", "6", "7"]
    assert not (run / "damaged").exists()


def test_a_step_that_may_not_be_read_is_neither_skipped_nor_moved(run, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("deeplab_jax.checkpoints.folders._digest_file", refuse)
    with pytest.raises(
        CheckpointError, match=r"A checkpoint cannot be read \(\[Errno 13\] Permission denied: '.*/checkpoints/7/"
    ):
        resume(run)
    assert list_steps(run) == ["5", "6", "7"]
    assert not (run / "damaged").exists()


def test_restoring_without_checkpoints_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"checkpoints contains no checkpoint\."):
        resume(tmp_path)


def test_a_different_network_is_not_damage(run):
    with pytest.raises(CheckpointError, match=r"`model.width` \(=16\) is 8 in .*checkpoints/7"):
        resume(run, config=tiny_config(model=tiny_resnet18(width=16)))
    assert list_steps(run) == ["5", "6", "7"]


def test_a_different_network_is_detected_behind_a_damaged_step(run):
    make_empty(run / "checkpoints" / "7")
    with pytest.raises(CheckpointError, match=r"`model.width` \(=16\) is 8 in .*checkpoints/6"):
        resume(run, config=tiny_config(model=tiny_resnet18(width=16)))
    assert list_steps(run) == ["5", "6", "7"]


def test_a_config_of_a_different_version_is_not_damage_but_a_changed_one_is(run):
    path = run / "checkpoints" / "7" / "_CHECKPOINT_METADATA"
    metadata = json.loads(path.read_text())
    metadata["custom_metadata"]["config"]["sead"] = metadata["custom_metadata"]["config"].pop("seed")
    path.write_text(json.dumps(metadata))
    sums = (path.parent / CHECKSUMS).read_bytes()
    remove_checksums(path.parent)
    with pytest.raises(ConfigError, match="`sead` is not a config field in this version"):
        resume(run)
    (path.parent / CHECKSUMS).write_bytes(sums)
    assert resume(run)[0] == 6


def test_a_state_of_a_different_version_is_not_damage(run):
    training = ABSTRACT["training"]
    later = ABSTRACT | {"training": training | {"clipped": training["skipped"]}}
    message = r"The arrays in .*checkpoints/7 do not match the state of this run \(training/clipped\)\. Use the package version"
    with Checkpoints(str(run), CONFIG) as checkpoints, pytest.raises(CheckpointError, match=message):
        restore(checkpoints, print, abstract=later)
    assert list_steps(run) == ["5", "6", "7"]


def test_weights_without_training_state_are_not_damage(tmp_path):
    save_model(str(tmp_path), CONFIG, {"params": {"kernel": np.ones(2)}, "batch_stats": {}})
    assert find_changed_files(tmp_path / "checkpoints" / "0") == []
    with pytest.raises(CheckpointError, match="contains only weights, so it cannot be resumed"):
        resume(tmp_path)


def test_an_extra_file_is_detected_but_does_not_prevent_resuming(run):
    (run / "checkpoints" / "7" / "notes.txt").write_text("the best one")
    assert find_changed_files(run / "checkpoints" / "7") == ["notes.txt"]
    assert resume(run) == (7, [])


def test_a_good_step_without_checksums_gets_them(run):
    remove_checksums(run / "checkpoints" / "7")
    assert find_changed_files(run / "checkpoints" / "7") is None
    assert resume(run) == (7, [])
    assert find_changed_files(run / "checkpoints" / "7") == []


# Places where every reader of the model must detect a flipped bit.
FLIPS = {
    "the first byte of the arrays": lambda step: flip_bit(find_array_file(step), 0),
    "the middle of the arrays": lambda step: flip_bit(find_array_file(step)),
    "the last byte of the arrays": lambda step: flip_bit(find_array_file(step), 1),
    "the metadata": lambda step: flip_bit(step / "_CHECKPOINT_METADATA"),
    "the model's metadata": lambda step: flip_bit(step / "model" / "_METADATA"),
    "the manifest": lambda step: flip_bit(step / "model" / "manifest.ocdbt"),
    "a checksum": lambda step: flip_checksum(step, b"0123456789"),
    "a checksum, which is then not hexadecimal": lambda step: flip_checksum(step, b"af"),
}


def flip_checksum(step, digits):
    """Flip the lowest bit of the first hexadecimal digit that is one of `digits`."""
    content = (step / CHECKSUMS).read_bytes()
    index = min(content.index(digit) for digit in digits if digit in content[:64])
    (step / CHECKSUMS).write_bytes(content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :])


@pytest.mark.parametrize("place", FLIPS)
def test_a_flipped_bit_is_rejected_by_every_reader_of_the_model(run, place):
    FLIPS[place](run / "checkpoints" / "7")
    # A checksum that is not hexadecimal affects two files: the one it belongs to and the checksum file itself.
    count = 2 if "not hexadecimal" in place else 1
    message = rf"Cannot read .*checkpoints/7 \({count} of its files do not match {CHECKSUMS}, for example .*\)\. It is damaged"
    readers = [lambda run: restore_model(run, CONFIG), load, lambda run: pretrained_variables(config_with_pretrained(run))]
    for read in readers:
        with pytest.raises(CheckpointError, match=message) as error:
            read(str(run))
        assert len(str(error.value).splitlines()) == 1


def config_with_pretrained(run):
    return tiny_config(model=tiny_resnet18(pretrained=run))


def test_a_flipped_bit_in_the_metadata_is_rejected_when_reading_the_config(run):
    flip_bit(run / "checkpoints" / "7" / "_CHECKPOINT_METADATA")
    with pytest.raises(CheckpointError, match="for example _CHECKPOINT_METADATA"):
        stored_config(str(run))


@pytest.mark.parametrize("damage", [flip_bit, truncate, lambda path: path.write_text("[]")])
def test_damaged_scores_prevent_choosing_the_best_step_but_not_resuming(run, damage):
    damage(run / "checkpoints" / "7" / SCORES)
    with pytest.raises(CheckpointError, match=r"Cannot read .*checkpoints/7 \(its scores.json has changed"):
        resolve(str(run / "best"))
    assert find_changed_files(run / "checkpoints" / "7") == [SCORES]
    assert resume(run) == (7, [])
    with Checkpoints(str(run), CONFIG) as checkpoints:
        assert checkpoints.needs_scores(7, is_due=False)


def test_no_step_is_deleted_while_the_best_one_is_unknown(run):
    truncate(run / "checkpoints" / "5" / SCORES)
    with Checkpoints(str(run), CONFIG) as checkpoints:
        checkpoints.restore(ABSTRACT)
        checkpoints.save(to_trees(make_state(8)), 8)
    assert list_steps(run) == ["5", "6", "7", "8"]


def test_a_step_can_be_scored_again_after_its_scores_were_damaged(run):
    truncate(run / "checkpoints" / "7" / SCORES)
    with Checkpoints(str(run), CONFIG) as checkpoints:
        checkpoints.restore(ABSTRACT)
        checkpoints.add_scores(7, {"miou": 0.95, "iou": {"road": None}}, Rank("miou", 0.95))
        assert not checkpoints.needs_scores(7, is_due=True)
    assert resolve(str(run / "best")).name == "7"
    assert find_changed_files(run / "checkpoints" / "7") == []


def test_the_model_can_be_read_without_the_training_state(run):
    shutil.rmtree(run / "checkpoints" / "7" / "training")
    variables = restore_model(str(run), CONFIG)
    np.testing.assert_array_equal(variables["params"]["classifier"]["kernel"], np.arange(1000.0) + 7)
    remove_checksums(run / "checkpoints" / "7")
    restore_model(str(run), CONFIG)


def test_a_checkpoint_of_version_0_1_can_be_read_and_resumed(tmp_path):
    with zipfile.ZipFile(pathlib.Path(__file__).parent / "version_0_1.zip") as archive:
        archive.extractall(tmp_path)
    assert find_changed_files(tmp_path / "checkpoints" / "7") == []
    assert stored_config(str(tmp_path)) == CONFIG
    np.testing.assert_array_equal(restore_variables(str(tmp_path))["batch_stats"]["mean"], np.full(3, 7.5))
    assert resume(tmp_path) == (7, [])


def test_a_checkpoint_has_the_same_files_as_in_version_0_1_except_for_its_scores(run):
    with zipfile.ZipFile(pathlib.Path(__file__).parent / "version_0_1.zip") as archive:
        then = {re.sub("[0-9a-f]{32}", "HASH", name) for name in archive.namelist()}
    step = run / "checkpoints" / "7"
    now = {re.sub("[0-9a-f]{32}", "HASH", str(path.relative_to(run))) for path in step.rglob("*") if path.is_file()}
    assert now - then == {"checkpoints/7/scores.json"}
    assert then - now == {"checkpoints/7/metrics/metrics", "checkpoints/7/metrics/commit_success.txt"}


@pytest.mark.parametrize("leftover", ["a full folder", "an empty folder"])
def test_leftovers_of_a_killed_save_are_ignored_and_removed_by_the_next_save(run, leftover):
    temporary = run / "checkpoints" / "7.orbax-checkpoint-tmp"
    (run / "checkpoints" / "7").rename(temporary)
    if leftover == "an empty folder":
        make_empty(temporary)
    other = shutil.copytree(temporary, temporary.with_name("9.orbax-checkpoint-tmp"))
    with Checkpoints(str(run), CONFIG) as checkpoints:
        assert checkpoints.latest_step() == 6
        assert int(restore(checkpoints, print).step) == 6
        assert other.exists()
        checkpoints.save(to_trees(make_state(7)), 7)
    assert list_steps(run) == ["5", "6", "7"]
    assert resume(run) == (7, [])


SAVE_AND_KILL = """
import os, signal, sys, time
from test_damage import CONFIG, Checkpoints, make_state, to_trees
checkpoints = Checkpoints(sys.argv[1], CONFIG)
checkpoints.save(to_trees(make_state(8)), 8)
time.sleep(float(sys.argv[2]))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("seconds", [0, 0.03])
def test_a_run_that_is_killed_during_a_save_can_resume(run, seconds):
    here = pathlib.Path(__file__).parent
    process = subprocess.run(
        [sys.executable, "-c", SAVE_AND_KILL, str(run), str(seconds)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])},
        check=False,
    )
    assert process.returncode == -signal.SIGKILL
    reached, warnings = resume(run)
    assert reached in (7, 8)
    assert warnings == []
    with Checkpoints(str(run), CONFIG) as checkpoints:
        checkpoints.save(to_trees(make_state(8)), 8)
        checkpoints.save(to_trees(make_state(9)), 9)
    assert list_steps(run) == ["5", "8", "9"]
    assert [find_changed_files(run / "checkpoints" / name) for name in list_steps(run)] == [[], [], []]
    assert resume(run) == (9, [])


@pytest.mark.parametrize("steps", [[], [8, 10]])
def test_the_advice_after_a_failed_save_names_the_step_to_resume_from(tmp_path, steps):
    for step in steps:
        (tmp_path / str(step)).mkdir()
    (tmp_path / "12.orbax-checkpoint-tmp").mkdir()
    outcome = "resume from step 10" if steps else "start from the beginning, because no step was saved"
    for code, reason, fix in ((28, "No space left on device", "Free some disk space"), (5, "Input/output error", "Fix this")):
        with pytest.raises(CheckpointError) as caught, report_write_errors(tmp_path):
            raise OSError(code, reason)
        assert reason in str(caught.value)
        assert str(caught.value).endswith(f"). {fix}, then run the same command to {outcome}.")


def test_a_failed_save_is_reported_by_the_next_save(run):
    def save_to_a_file():
        with Checkpoints(str(run), CONFIG) as checkpoints:
            shutil.rmtree(run / "checkpoints")
            (run / "checkpoints").write_text("")
            checkpoints.save(to_trees(make_state(8)), 8)
            checkpoints.save(to_trees(make_state(9)), 9)

    with pytest.raises(CheckpointError, match=r"Cannot write to .*checkpoints"):
        save_to_a_file()
