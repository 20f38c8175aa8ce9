"""Run train.py and eval.py as separate processes, as users do.

The tests cover training, interruption, resuming and evaluation, as well as common user mistakes.
"""

import json
import re
import signal
import subprocess

import numpy as np
import pytest
from conftest import ROOT, make_command, read_log_rows, read_pixels, run_program

import deeplab_jax as dl

# Fields that depend on the machine, or on when a run was interrupted.
CHANGING = (
    "time",
    "images_per_second",
    "seconds_per_step",
    "mfu",
    "data_wait",
    "seconds_to_first_step",
    "mean_loss",
    "mean_accuracy",
)


def test_a_run_writes_its_log_events_and_checkpoints(finished_run):
    assert [row["step"] for row in read_log_rows(finished_run, "train")] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in read_log_rows(finished_run, "eval")] == [3, 6]
    assert all(np.isfinite(row["loss"]) for row in read_log_rows(finished_run, "train"))
    assert list((finished_run / "tensorboard").iterdir())
    assert (finished_run / "checkpoints" / "6").is_dir()


@pytest.mark.slow
def test_a_run_resumed_after_ctrl_c_equals_an_uninterrupted_run(finished_run, street_scenes, tmp_path):
    workdir = tmp_path / "tiny"
    arguments = make_command("train.py", f"--workdir={workdir}", root=street_scenes)
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("step      2"):
                process.send_signal(signal.SIGINT)
                break
        output = process.stdout.read()
        assert process.wait(timeout=300) == 75
    stopped = int(re.search(r"Stopped after step (\d+) of 6", output).group(1))
    assert 2 <= stopped < 6
    assert f"resuming {workdir} after step {stopped}" in run_program("train.py", f"--workdir={workdir}", root=street_scenes)
    for kind in ("train", "eval"):
        for resumed, straight in zip(read_log_rows(workdir, kind), read_log_rows(finished_run, kind), strict=True):
            names = [name for name in straight if name not in CHANGING]
            assert {name: resumed[name] for name in names} == {name: straight[name] for name in names}


@pytest.mark.slow
def test_evaluation_writes_scores_images_and_a_submission(finished_run, street_scenes, official_evaluation, tmp_path):
    flags = (f"--checkpoint={finished_run}", f"--output={tmp_path}/o", f"--submission={tmp_path}/s")
    output = run_program("eval.py", *flags, root=street_scenes)
    scores = json.loads((tmp_path / "o" / "scores.json").read_text())
    assert scores["miou"] == read_log_rows(finished_run, "eval")[-1]["miou"]
    for part in (
        f"{100 * scores['miou']:.2f}",
        "motorcycle",
        "iIoU",
        f"{tmp_path}/s/submission.zip",
        f"Output: {tmp_path}/o",
    ):
        assert part in output
    for kind in ("train_ids", "color", "overlay"):
        pictures = sorted((tmp_path / "o" / kind).rglob("*.png"))
        assert [read_pixels(path).shape[:2] for path in pictures] == [(64, 128)] * 3
    ids = read_pixels(next((tmp_path / "o" / "train_ids").rglob("*.png")))
    colors = read_pixels(next((tmp_path / "o" / "color").rglob("*.png")))
    np.testing.assert_array_equal(colors, dl.CITYSCAPES.palette()[ids])
    reference = official_evaluation(tmp_path / "s", (street_scenes / "gtFine" / "val").rglob("*_labelIds.png"))
    assert len(scores["cityscapes"]) == 8
    for name, score in scores["cityscapes"].items():
        for key, value in score.items() if isinstance(score, dict) else [(None, score)]:
            expected = reference[name][key] if key else reference[name]
            assert (np.nan if value is None else value) == pytest.approx(expected, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize(
    ("program", "flags", "message"),
    [
        ("train.py", [], "`--workdir` is missing"),
        ("eval.py", ["--checkpoint=nowhere"], r"`checkpoint` \(='nowhere'\) does not exist"),
    ],
)
def test_a_mistake_gives_a_one_line_error(program, flags, message):
    lines = [line for line in run_program(program, *flags, code=2).splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert re.search(message, lines[0])
