"""Tests for the study runner, using a stand-in for train.py that writes the same files."""

import dataclasses
import json
import math
import pathlib
import runpy
import sys

import pytest
import sweep

from deeplab_jax.config import digest_of, to_dict

# ml_collections uses a deprecated API to load config files.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

STUDY = 'RECIPE = "configs/camvid_r18.py"\nROWS = {"base": "", "b4": "--config.data.batch_size=4", "other": ""}\n'


def write_log(workdir, miou, *, steps=20, end=20, seconds=(9.0, 3.0, 3.0)):
    """Write the receipt and metrics log of a run whose first steps were slow."""
    every = steps // max(1, len(seconds))
    rows = [{"step": (i + 1) * every, "kind": "train", "seconds_per_step": s} for i, s in enumerate(seconds)]
    rows.append({"step": steps, "kind": "eval", "miou": miou, "pixel_accuracy": 0.8})
    (workdir / "run.json").write_text(json.dumps({"starts": [{"steps": 9}, {"steps": end}]}))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def trained(monkeypatch):
    """Replace train.py with a stand-in, and return a list that records its commands.

    Each command writes the log of a finished run, whose mIoU depends on the batch size and seed.
    """
    commands = []

    class Run:
        returncode = 0

        def __init__(self, words, **_):
            workdir = pathlib.Path(words[-1].removeprefix("--workdir="))
            commands.append(words)
            seed = next(int(word.partition("=")[2]) for word in words if word.startswith("--config.seed="))
            write_log(workdir, 0.4 + 0.1 * ("--config.data.batch_size=4" in words) + 0.02 * seed)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def wait(self):
            pass

    monkeypatch.setattr(sweep.subprocess, "Popen", Run)
    return commands


def run_sweep(monkeypatch, tmp_path, *arguments):
    (tmp_path / "study.py").write_text(STUDY)
    out = ["--root", str(tmp_path), "--out", str(tmp_path / "runs"), "--table", str(tmp_path / "table.md")]
    monkeypatch.setattr(sys, "argv", ["sweep.py", str(tmp_path / "study.py"), *out, *arguments])
    sweep.main()
    return (tmp_path / "table.md").read_text().splitlines()


def test_every_row_is_trained_once_with_every_seed(monkeypatch, tmp_path, trained):
    table = run_sweep(monkeypatch, tmp_path, "--rows", "b*", "--seeds", "0", "1")
    assert len(trained) == 4
    assert f"--config.data.root={tmp_path}" in trained[0]
    assert table[2:] == [
        "| base |  | 2 | 20 | 1.0 | 41.0 (40.0 to 42.0) | 80.0 |",
        "| b4 | `data.batch_size=4` | 2 | 20 | 1.0 | **51.0 (50.0 to 52.0)** | 80.0 |",
    ]
    (tmp_path / "runs" / "base" / "seed0_old").mkdir()  # a run that the user has moved away
    assert run_sweep(monkeypatch, tmp_path, "--rows", "b*", "--seeds", "0", "1") == table
    assert len(trained) == 4


def test_a_run_with_other_flags_is_not_included(monkeypatch, tmp_path, trained):
    run_sweep(monkeypatch, tmp_path, "--rows", "base")
    monkeypatch.setattr("test_sweep.STUDY", STUDY.replace('"base": ""', '"base": "--config.optim.lr=1"'))
    with pytest.raises(SystemExit, match="Rename the row"):
        run_sweep(monkeypatch, tmp_path, "--rows", "base")
    table = run_sweep(monkeypatch, tmp_path, "--rows", "b4")
    assert [line.split(" | ")[0] for line in table[2:]] == ["| b4"]


def test_a_run_with_a_changed_recipe_is_not_reused(monkeypatch, tmp_path, trained):
    recipe = tmp_path / "recipe.py"
    text = "from deeplab_jax.config import Config\n\ndef get_config():\n    return Config(seed=0)\n"
    recipe.write_text(text)
    monkeypatch.setattr("test_sweep.STUDY", STUDY.replace("configs/camvid_r18.py", str(recipe)))
    run_sweep(monkeypatch, tmp_path, "--rows", "base")
    recipe.write_text("# A comment does not change the config.\n" + text)
    run_sweep(monkeypatch, tmp_path, "--rows", "base")
    assert len(trained) == 1
    recipe.write_text(text.replace("seed=0", "seed=1"))
    with pytest.raises(SystemExit, match="Rename the row"):
        run_sweep(monkeypatch, tmp_path, "--rows", "base")


def test_an_unfinished_run_has_no_result(tmp_path):
    (tmp_path / "run.json").write_text('{"starts": [{"steps": 20}]}')
    assert sweep.read_result(tmp_path) is None
    write_log(tmp_path, 0.4, steps=10)
    assert sweep.read_result(tmp_path) is None
    write_log(tmp_path, 0.5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2')  # a line cut off by a crash
    # 20 steps at a median of 3 s per step take 1 minute.
    assert sweep.read_result(tmp_path) == sweep.Result(steps=20, minutes=1.0, miou=0.5, pixel_accuracy=0.8)


def test_an_evaluation_without_a_miou_is_an_error(tmp_path):
    write_log(tmp_path, None)
    with pytest.raises(SystemExit, match="no mIoU"):
        sweep.read_result(tmp_path)


def test_a_run_without_logged_steps_has_no_training_time(tmp_path):
    write_log(tmp_path, 0.5, seconds=())
    assert math.isnan(sweep.read_result(tmp_path).minutes)


def run_program_instead_of_training(monkeypatch, program):
    popen = sweep.subprocess.Popen
    monkeypatch.setattr(sweep.subprocess, "Popen", lambda words, **kwargs: popen([words[0], "-c", program], **kwargs))


def test_a_failed_training_run_ends_the_study(monkeypatch, tmp_path):
    run_program_instead_of_training(monkeypatch, "raise SystemExit(2)")
    with pytest.raises(SystemExit, match=r"train\.py exited with code 2\. The last line of .*log\.txt is: "):
        run_sweep(monkeypatch, tmp_path)


def test_an_interrupted_training_run_can_still_save(monkeypatch, tmp_path):
    # Ctrl-C in a terminal interrupts both processes. This program imitates that by sending both signals, after it has installed
    # its own handler.
    program = """
import os, signal, time
signal.signal(signal.SIGINT, lambda *_: print("stopping", flush=True))
os.kill(os.getppid(), signal.SIGINT)
os.kill(os.getpid(), signal.SIGINT)
time.sleep(1)
print("saved", flush=True)
raise SystemExit(75)
"""
    run_program_instead_of_training(monkeypatch, program)
    with pytest.raises(SystemExit, match=r"was stopped\. Run the same command again"):
        run_sweep(monkeypatch, tmp_path, "--rows", "base")
    assert (tmp_path / "runs" / "base" / "seed0" / "log.txt").read_text() == "stopping\nsaved\n"


def test_a_pattern_that_matches_no_row_is_an_error(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="base, b4, other"):
        run_sweep(monkeypatch, tmp_path, "--rows", "b5")


def test_a_row_whose_run_never_started_can_be_changed(monkeypatch, tmp_path):
    run_program_instead_of_training(monkeypatch, "print('error: a mistake'); raise SystemExit(2)")
    with pytest.raises(SystemExit, match=r"code 2\..* is: error: a mistake"):
        run_sweep(monkeypatch, tmp_path, "--rows", "base")
    monkeypatch.setattr("test_sweep.STUDY", STUDY.replace('"base": ""', '"base": "--config.optim.lr=1"'))
    with pytest.raises(SystemExit, match="exited with code 2"):
        run_sweep(monkeypatch, tmp_path, "--rows", "base")
    assert "optim.lr=1" in (tmp_path / "runs" / "base" / "seed0" / "command.txt").read_text()


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("b", "--config.data.batchsize=4", "row 'b': `batchsize` is not a field"),
        ("b", "--config.data.batch_size=0", "row 'b': `data.batch_size`"),
        ("b", "--config.seed=5", "`--config.seed=5` cannot be set by a row"),
        ("b", "--workdir=elsewhere", "`--workdir=elsewhere` cannot be set by a row"),
        ("../b", "", "'../b' cannot be used as a folder name"),
    ],
)
def test_all_rows_are_checked_before_the_first_is_trained(name, flags, message, monkeypatch, tmp_path, trained):
    monkeypatch.setattr("test_sweep.STUDY", f'RECIPE = "configs/camvid_r18.py"\nROWS = {{"a": "", {name!r}: {flags!r}}}\n')
    with pytest.raises(SystemExit, match=message):
        run_sweep(monkeypatch, tmp_path)
    assert trained == []


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ('RECIPE = "configs/camvid_r18.py"', "must define RECIPE, the path of a config, and ROWS"),
        (
            'RECIPE = "configs/camvid.py"\nROWS = {"a": ""}',
            r"row 'a': `--config` \(='.*camvid.py'\) does not exist. Did you mean .*/configs/camvid",
        ),
    ],
)
def test_an_invalid_study_is_an_error(study, message, monkeypatch, tmp_path):
    monkeypatch.setattr("test_sweep.STUDY", study)
    with pytest.raises(SystemExit, match=message):
        run_sweep(monkeypatch, tmp_path)


STUDIES = {
    name: sweep.open_study(str(sweep.ROOT / "benchmarks" / f"{name}.py")) for name in ("camvid_study", "camvid_lite0_study")
}


@pytest.mark.parametrize("name", STUDIES)
def test_every_row_of_a_study_has_a_valid_and_different_config(name):
    configs = [sweep.load_row(STUDIES[name], row) for row in STUDIES[name]["ROWS"]]
    assert len({digest_of(to_dict(config)) for config in configs}) == len(configs)


def test_the_chosen_rows_of_the_studies_are_the_recipes():
    study = STUDIES["camvid_study"]
    recipe = runpy.run_path(str(sweep.ROOT / "configs" / "camvid_r18.py"))["get_config"]()
    recipe.train.eval_every = 0  # evaluations during training do not change the result
    assert sweep.load_row(study, study["CHOSEN"]) == recipe
    recipe = runpy.run_path(str(sweep.ROOT / "configs" / "camvid_lite0.py"))["get_config"]()
    recipe.data.train_split = "without0006"
    recipe.train = dataclasses.replace(recipe.train, steps=360, epochs=0.0, eval_every_epochs=0.0)
    assert sweep.load_row(STUDIES["camvid_lite0_study"], "chosen") == recipe
