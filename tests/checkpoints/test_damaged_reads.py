"""Test how a checkpoint is read that is damaged, incomplete or from version 0.1."""

import pathlib
import re
import shutil
import zipfile

import numpy as np
import pytest
import saved_runs
from conftest import tiny_config, tiny_resnet18
from saved_runs import ABSTRACT, CONFIG, find_array_file, flip_bit, list_steps, make_state, remove_checksums, resume, truncate

from deeplab_jax.api import load
from deeplab_jax.checkpoints.folders import CHECKSUMS, SCORES, Rank, find_changed_files
from deeplab_jax.checkpoints.store import Checkpoints, resolve, restore_model, restore_variables, stored_config
from deeplab_jax.errors import CheckpointError
from deeplab_jax.training.state import to_trees
from deeplab_jax.weights.transfer import pretrained_variables

saved_run, run = saved_runs.saved_run, saved_runs.run  # fixtures


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


@pytest.mark.parametrize("obstacle", [pathlib.Path.mkdir, lambda path: path.symlink_to(path.name)], ids=["folder", "loop"])
def test_scores_that_cannot_be_read_are_neither_damaged_nor_missing(run, obstacle):
    path = run / "checkpoints" / "7" / SCORES
    path.unlink()
    obstacle(path)  # root can read any file, but no folder and no link to itself, which does not even seem to exist
    with Checkpoints(str(run), CONFIG) as checkpoints:
        for read in (lambda: checkpoints.needs_scores(7, is_due=True), lambda: resolve(str(run / "best"))):
            with pytest.raises(CheckpointError, match=rf"^{re.escape(str(path))} cannot be read \(.*\)\. Make it readable\.$"):
                read()


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
