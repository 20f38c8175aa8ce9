"""What a user types, as processes of their own: train, interrupt, resume, evaluate, load, and every mistake of one line."""

import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import pixels
from PIL import Image

import deeplab_jax as dl
from deeplab_jax.checkpoints.store import restore_variables

ROOT = pathlib.Path(__file__).parent.parent
SPEED = ("images_per_second", "seconds_per_step", "mfu", "data_wait", "seconds_to_first_step")
# configs/quickstart.py, shrunk.
TINY = [
    f"--config={ROOT / 'configs' / 'quickstart.py'}",
    "--config.model.width=8",
    "--config.model.aspp_width=8",
    "--config.data.batch_size=4",
    "--config.data.crop_size=(32,64)",
    "--config.train.steps=6",
    "--config.train.log_every=1",
    "--config.train.eval_every=3",
    "--config.train.save_every=2",
]


def command(program, *flags, root=None):
    data = [f"--config.data.root={root}"] if root else []
    return [sys.executable, str(ROOT / program), *TINY, *data, *flags]


def call(program, *flags, root=None, cwd=ROOT):
    words = command(program, *flags, root=root)
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def rows(workdir, kind):
    table = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in table if row["kind"] == kind]


@pytest.fixture(scope="module")
def run(street_scenes, tmp_path_factory):
    """A finished run, in a folder named as people do: from where they stand."""
    folder = tmp_path_factory.mktemp("there")
    result = call("train.py", "--workdir=runs/tiny", root=street_scenes, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "runs" / "tiny"


def test_a_run_leaves_what_it_should(run):
    assert [row["step"] for row in rows(run, "train")] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows(run, "eval")] == [3, 6]
    assert all(np.isfinite(row["loss"]) for row in rows(run, "train"))
    assert list((run / "tensorboard").iterdir())
    assert (run / "checkpoints" / "6").is_dir()


def test_ctrl_c_and_the_same_command_give_the_run_that_was_never_interrupted(run, street_scenes, tmp_path):
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
    result = call("train.py", f"--workdir={workdir}", root=street_scenes)
    assert f"resuming {workdir} after step {stopped}" in result.stdout
    for kind in ("train", "eval"):
        for resumed, straight in zip(rows(workdir, kind), rows(run, kind), strict=True):
            names = [name for name in straight if name not in SPEED]
            assert {name: resumed[name] for name in names} == {name: straight[name] for name in names}


def test_a_finished_run_says_so_and_goes_on_where_steps_were_raised(run, street_scenes, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(run, workdir)
    again = call("train.py", f"--workdir={workdir}", root=street_scenes)
    assert again.returncode == 0
    assert "already at step 6 of 6" in again.stdout
    longer = call("train.py", f"--workdir={workdir}", "--config.train.steps=7", root=street_scenes)
    assert "train.steps: 6 -> 7" in longer.stdout
    assert [row["step"] for row in rows(workdir, "train")] == [1, 2, 3, 4, 5, 6, 7]


def test_a_training_starts_from_given_weights_and_resumes_without_them(run, street_scenes, tmp_path):
    given, workdir = tmp_path / "given", tmp_path / "tiny"
    shutil.copytree(run, given)
    flags = (f"--workdir={workdir}", f"--config.model.pretrained={given}", "--config.optim.lr=1e-9")
    first = call("train.py", *flags, "--config.train.steps=1", root=street_scenes)
    assert first.returncode == 0, first.stderr
    assert re.search(rf"(\d+) of \1 variables start from {given}", first.stdout)
    # At this rate nothing is learned, and BatchNorm's statistics move by a tenth.
    before, after = (restore_variables(str(folder))["params"] for folder in (given, workdir))
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-6)
    shutil.rmtree(given)
    second = call("train.py", *flags, "--config.train.steps=2", root=street_scenes)
    assert f"resuming {workdir} after step 1" in second.stdout, second.stderr


def test_the_stored_config_evaluates_like_the_recipe(run, street_scenes, tmp_path):
    config = f"--config={ROOT / 'configs' / 'stored.py'}:{run}"
    words = [sys.executable, "eval.py", config, f"--checkpoint={run}", f"--config.data.root={street_scenes}"]
    result = subprocess.run([*words, f"--output={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "scores.json").read_text())["miou"] == rows(run, "eval")[-1]["miou"]


def test_evaluation_prints_what_training_measured_and_writes_pictures(run, street_scenes, tmp_path):
    result = call("eval.py", f"--checkpoint={run}", f"--output={tmp_path}", root=street_scenes)
    assert result.returncode == 0, result.stderr
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["miou"] == rows(run, "eval")[-1]["miou"]
    assert f"{100 * scores['miou']:.2f}" in result.stdout
    assert "motorcycle" in result.stdout
    for kind in ("train_ids", "color", "overlay"):
        pictures = sorted((tmp_path / kind).rglob("*.png"))
        assert [pixels(path).shape[:2] for path in pictures] == [(64, 128)] * 3
    ids = pixels(next((tmp_path / "train_ids").rglob("*.png")))
    colors = pixels(next((tmp_path / "color").rglob("*.png")))
    np.testing.assert_array_equal(colors, dl.CITYSCAPES.palette()[ids])


def test_scores_are_the_official_ones_of_the_submission(run, street_scenes, official, tmp_path):
    result = call("eval.py", f"--checkpoint={run}", f"--output={tmp_path}/o", f"--submission={tmp_path}/s", root=street_scenes)
    assert result.returncode == 0, result.stderr
    assert f"{tmp_path}/s/submission.zip" in result.stdout
    assert "iIoU %" in result.stdout
    reference = official(tmp_path / "s", (street_scenes / "gtFine" / "val").rglob("*_labelIds.png"))
    scores = json.loads((tmp_path / "o" / "scores.json").read_text())["cityscapes"]
    assert len(scores) == 8
    for name, ours in scores.items():
        for key, value in ours.items() if isinstance(ours, dict) else [(None, ours)]:
            expected = reference[name][key] if key else reference[name]
            assert (np.nan if value is None else value) == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_without_instances_the_reason_is_said_and_other_names_are_not_submitted(run, street_scenes, tmp_path):
    copied = tmp_path / "set"
    shutil.copytree(street_scenes, copied)
    next((copied / "gtFine" / "val").rglob("*instanceIds.png")).unlink()
    result = call("eval.py", f"--checkpoint={run}", root=copied)
    assert "iIoU is left out: 1 of 3 instanceIds files are missing" in result.stdout
    assert "category mIoU" in result.stdout
    image = next((copied / "leftImg8bit" / "test").rglob("*.png"))
    image.rename(image.with_name("a.png"))
    (copied / "list" / "test.lst").unlink()
    refused = call("eval.py", f"--checkpoint={run}", "--config.eval.split=test", f"--submission={tmp_path}/s", root=copied)
    assert "a.png cannot be submitted" in one_line(refused)
    assert not (tmp_path / "s").exists()


def test_a_list_without_labels_gives_pictures_alone(run, street_scenes, tmp_path):
    flags = [f"--checkpoint={run}/best", "--config.eval.split=test", "--config.eval.output_stride=16"]
    result = call("eval.py", *flags, f"--output={tmp_path}", f"--submission={tmp_path}/ids", root=street_scenes)
    assert result.returncode == 0, result.stderr
    assert "mIoU" not in result.stdout
    assert len(list((tmp_path / "overlay").rglob("*.png"))) == 2
    assert len(list((tmp_path / "ids").glob("canvasdorf_*_pred_labelIds.png"))) == 2
    refused = call("eval.py", *flags, root=street_scenes)
    assert refused.returncode == 2
    assert "give --output" in refused.stderr


def test_the_segmenter_is_nchw_and_agrees_with_evaluation(run, street_scenes, tmp_path):
    call("eval.py", f"--checkpoint={run}", f"--output={tmp_path}", root=street_scenes)
    segmenter = dl.load(str(run))
    path = next((street_scenes / "leftImg8bit" / "val").rglob("*.png"))
    image = pixels(path).transpose(2, 0, 1)[None]
    labels = segmenter.predict(image)
    written = tmp_path / "train_ids" / path.relative_to(street_scenes)
    np.testing.assert_array_equal(labels[0], pixels(written))
    logits = segmenter.logits(image)
    assert logits.shape == (1, 19, 64, 128)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits.argmax(1), labels)
    assert segmenter.label_set.names[13] == "car"
    assert segmenter.predict(np.zeros((2, 3, 1, 7), np.uint8)).shape == (2, 1, 7)
    with pytest.raises(dl.DataError, match=r"`images` \(=float32 \[1, 3, 4, 4\]\) must be uint8"):
        segmenter.predict(np.zeros((1, 3, 4, 4), np.float32))


MISTAKES = {
    "near a field": ("train.py", ["--workdir=x", "--config.model.decoderwidth=3"], "did you mean decoder_width"),
    "unknown field": ("train.py", ["--workdir=x", "--config.data.crop=3"], r"`crop` is no field.*crop_size"),
    "not a number": ("train.py", ["--workdir=x", "--config.optim.lr=fast"], "optim.lr=fast"),
    "one window number": ("train.py", ["--workdir=x", "--config.eval.window=512"], r"`eval.window` \(=\(512,\)\)"),
    "unknown flag": ("train.py", ["--workdirs=x"], "workdirs"),
    "unknown section": ("train.py", ["--workdir=x", "--config.date.root=3"], r"`date` is no field.*data"),
    "workdir is a file": ("train.py", [f"--workdir={__file__}"], r"`--workdir` \(='.*'\) is a file"),
    "tuple given twice": (
        "train.py",
        ["--workdir=x", "--config.model.multi_grid=(1,2)", "--config.model.multi_grid=(1,1)"],
        "`--config.model.multi_grid` is given 2 times: give it once",
    ),
    "word without dashes": ("train.py", ["--workdir=x", "config.seed=1"], "`config.seed=1` is no flag"),
    "no workdir": ("train.py", [], "`--workdir` is missing"),
    "no such config": ("train.py", ["--workdir=x", "--config=nowhere.py"], "nowhere.py"),
    "no such root": ("train.py", ["--workdir=x", "--config.data.root=nowhere"], r"`data.root` \(='nowhere'\)"),
    "no checkpoint": ("eval.py", [], "`--checkpoint` is missing"),
    "pictures in a submission": (
        "eval.py",
        ["--checkpoint=x", "--output=a/b", "--submission=a"],
        r"`--output` \(='a/b'\) lies in --submission",
    ),
    "no such checkpoint": ("eval.py", ["--checkpoint=nowhere"], r"`checkpoint` \(='nowhere'\) is no run"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_with_one_line(mistake):
    program, flags, message = MISTAKES[mistake]
    assert re.search(message, one_line(call(program, *flags)))


def one_line(result):
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert result.returncode == 2
    assert len(lines) == 1, result.stderr
    return lines[0]


RECIPES = {
    "def get_config(:": "invalid syntax",
    "import nothere": "No module named 'nothere'",
    "x = 1": "get_config",
    "def get_config(): return 3": "holds a int",
    "from deeplab_jax.config import *\ndef get_config(): return DataConfig(batchsize=3)": "batchsize",
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_that_cannot_be_read_is_answered_with_one_line(recipe, tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(recipe)
    words = [sys.executable, str(ROOT / "train.py"), f"--config={path}", "--workdir=x"]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert RECIPES[recipe] in one_line(result)


def test_mistakes_about_a_run_are_answered_with_one_line(run, street_scenes, tmp_path):
    other = call("train.py", f"--workdir={run}", "--config.model.width=16", root=street_scenes)
    assert re.search(r"`model.width` \(=16\) is 8", one_line(other))
    devices = call("train.py", f"--workdir={tmp_path}", "--config.mesh.data=64", root=street_scenes)
    assert "needs 64 devices" in one_line(devices)
    batch = call("train.py", f"--workdir={tmp_path}", "--config.data.batch_size=6", root=street_scenes)
    assert "`data.batch_size` (=6) does not divide over 4 devices: use 4 or 8" in one_line(batch)
    words = [f"--config={ROOT / 'configs' / 'camvid_r18.py'}", f"--config.data.root={street_scenes}", f"--checkpoint={run}"]
    classes = subprocess.run(
        [sys.executable, str(ROOT / "eval.py"), *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert re.search(r"11 classes.*19 classes", one_line(classes))


def test_mistakes_in_the_data_are_answered_with_one_line(street_scenes, tmp_path):
    broken = tmp_path / "set"
    shutil.copytree(street_scenes, broken)
    listing = broken / "list" / "train.lst"
    lines = listing.read_text()
    listing.write_text("")
    assert "no samples of split 'train'" in one_line(call("train.py", f"--workdir={tmp_path}", root=broken))
    listing.write_text(lines.replace("_gtFine_", "_gtfine_"))
    assert "6 of 12 files" in one_line(call("train.py", f"--workdir={tmp_path}", root=broken))


@pytest.mark.parametrize("split", ["train", "val"])
def test_data_that_breaks_in_the_middle_of_a_run_is_named(split, street_scenes, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(street_scenes, broken)
    victim = next((broken / "gtFine" / split).rglob("*labelIds.png"))
    Image.new("L", (128, 64), 99).save(victim)
    result = call("train.py", f"--workdir={tmp_path / 'run'}", "--config.train.eval_every=1", root=broken)
    assert re.search(rf"{victim.name} holds the value 99 \(8192 pixels\)", one_line(result))
