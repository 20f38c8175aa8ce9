"""What a user types, as processes of their own: train, interrupt, resume, evaluate, and a mistake of each program."""

import json
import re
import signal
import subprocess

import numpy as np
import pytest
from conftest import ROOT, call, command, logged, pixels

import deeplab_jax as dl

SPEED = ("images_per_second", "seconds_per_step", "mfu", "data_wait", "seconds_to_first_step")


def test_a_run_leaves_what_it_should(finished_run):
    assert [row["step"] for row in logged(finished_run, "train")] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in logged(finished_run, "eval")] == [3, 6]
    assert all(np.isfinite(row["loss"]) for row in logged(finished_run, "train"))
    assert list((finished_run / "tensorboard").iterdir())
    assert (finished_run / "checkpoints" / "6").is_dir()


def test_ctrl_c_and_the_same_command_give_the_run_that_was_never_interrupted(finished_run, street_scenes, tmp_path):
    workdir = tmp_path / "tiny"
    words = command("train.py", f"--workdir={workdir}", root=street_scenes)
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("step      2"):
                process.send_signal(signal.SIGINT)
                break
        said = process.stdout.read()
        assert process.wait(timeout=300) == 0
    stopped = int(re.search(r"stopped after step (\d+) of 6", said).group(1))
    assert 2 <= stopped < 6
    assert f"resuming {workdir} after step {stopped}" in call("train.py", f"--workdir={workdir}", root=street_scenes)
    for kind in ("train", "eval"):
        for resumed, straight in zip(logged(workdir, kind), logged(finished_run, kind), strict=True):
            names = [name for name in straight if name not in SPEED]
            assert {name: resumed[name] for name in names} == {name: straight[name] for name in names}


def test_evaluation_scores_and_draws_and_its_submission_scores_the_same(finished_run, street_scenes, official, tmp_path):
    flags = (f"--checkpoint={finished_run}", f"--output={tmp_path}/o", f"--submission={tmp_path}/s")
    said = call("eval.py", *flags, root=street_scenes)
    scores = json.loads((tmp_path / "o" / "scores.json").read_text())
    assert scores["miou"] == logged(finished_run, "eval")[-1]["miou"]
    for part in (f"{100 * scores['miou']:.2f}", "motorcycle", "iIoU %", f"{tmp_path}/s/submission.zip"):
        assert part in said
    for kind in ("train_ids", "color", "overlay"):
        pictures = sorted((tmp_path / "o" / kind).rglob("*.png"))
        assert [pixels(path).shape[:2] for path in pictures] == [(64, 128)] * 3
    ids = pixels(next((tmp_path / "o" / "train_ids").rglob("*.png")))
    colors = pixels(next((tmp_path / "o" / "color").rglob("*.png")))
    np.testing.assert_array_equal(colors, dl.CITYSCAPES.palette()[ids])
    reference = official(tmp_path / "s", (street_scenes / "gtFine" / "val").rglob("*_labelIds.png"))
    assert len(scores["cityscapes"]) == 8
    for name, ours in scores["cityscapes"].items():
        for key, value in ours.items() if isinstance(ours, dict) else [(None, ours)]:
            expected = reference[name][key] if key else reference[name]
            assert (np.nan if value is None else value) == pytest.approx(expected, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize(
    ("program", "flags", "message"),
    [
        ("train.py", [], "`--workdir` is missing"),
        ("eval.py", ["--checkpoint=nowhere"], r"`checkpoint` \(='nowhere'\) is no run"),
    ],
)
def test_a_mistake_is_answered_with_one_line(program, flags, message):
    lines = [line for line in call(program, *flags, code=2).splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert re.search(message, lines[0])
