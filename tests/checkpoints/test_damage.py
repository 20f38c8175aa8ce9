"""Test that a run resumes from its newest intact checkpoint, and moves damaged ones aside."""

import json
import shutil

import numpy as np
import pytest
import saved_runs
from conftest import tiny_config, tiny_resnet18
from saved_runs import (
    ABSTRACT,
    CONFIG,
    DIGESTS,
    find_array_file,
    flip_bit,
    list_steps,
    make_empty,
    make_state,
    remove_checksums,
    restore,
    resume,
    truncate,
)

from deeplab_jax.checkpoints.folders import CHECKSUMS, find_changed_files
from deeplab_jax.checkpoints.store import Checkpoints, save_model
from deeplab_jax.errors import CheckpointError, ConfigError
from deeplab_jax.training.state import from_trees, state_digest, to_trees

saved_run, run = saved_runs.saved_run, saved_runs.run  # fixtures


def add_damaged_metrics(step):
    (step / "metrics").mkdir()
    (step / "metrics" / "metrics").write_text("{")


def replace_with_step_6(step):
    shutil.rmtree(step)
    shutil.copytree(step.parent / "6", step)


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
