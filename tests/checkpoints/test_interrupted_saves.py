"""Test saves that are killed or fail."""

import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest
import saved_runs
from saved_runs import CONFIG, list_steps, make_empty, make_state, restore, resume

from deeplab_jax.checkpoints import manager
from deeplab_jax.checkpoints.faults import report_save_errors
from deeplab_jax.checkpoints.folders import find_changed_files
from deeplab_jax.checkpoints.store import Checkpoints
from deeplab_jax.errors import CheckpointError
from deeplab_jax.training.state import to_trees

saved_run, run = saved_runs.saved_run, saved_runs.run  # fixtures


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
from saved_runs import CONFIG, Checkpoints, make_state, to_trees
checkpoints = Checkpoints(sys.argv[1], CONFIG)
checkpoints.save(to_trees(make_state(8)), 8)
time.sleep(float(sys.argv[2]))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
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


def test_a_run_that_is_killed_while_it_removes_a_step_resumes_without_a_word(run, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("absl"), "filters", [])  # as in a process that has saved nothing yet
    manager.hide_messages.cache_clear()
    (run / "checkpoints" / "6" / "_CHECKPOINT_METADATA").unlink()
    assert resume(run) == (7, [])
    assert caplog.messages == []


@pytest.mark.parametrize("steps", [[], [8, 10]])
def test_the_advice_after_a_failed_save_names_the_step_to_resume_from(tmp_path, steps):
    for step in steps:
        (tmp_path / str(step)).mkdir()
    (tmp_path / "12.orbax-checkpoint-tmp").mkdir()
    outcome = "resume from step 10" if steps else "start from the beginning, because no step was saved"
    for code, reason, fix in ((28, "No space left on device", "Free some disk space"), (5, "Input/output error", "Fix this")):
        with pytest.raises(CheckpointError) as caught, report_save_errors(tmp_path):
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
