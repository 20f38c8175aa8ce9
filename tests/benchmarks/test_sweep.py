"""The study runner of the benchmarks, with a training that writes what train.py does."""

import json
import math
import pathlib
import runpy
import sys

import pytest
import sweep

from deeplab_jax.config import digest_of, to_dict

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # how ml_collections reads a file

STUDY = 'RECIPE = "configs/camvid_r18.py"\nROWS = {"base": "", "b4": "--config.data.batch_size=4", "other": ""}\n'


def log(workdir, miou, *, steps=20, end=20, seconds=(9.0, 3.0, 3.0)):
    """Of a run that was slow at first."""
    every = steps // max(1, len(seconds))
    rows = [{"step": (i + 1) * every, "kind": "train", "seconds_per_step": s} for i, s in enumerate(seconds)]
    rows.append({"step": steps, "kind": "eval", "miou": miou, "pixel_accuracy": 0.8})
    (workdir / "run.json").write_text(json.dumps({"starts": [{"steps": 9}, {"steps": end}]}))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def trained(monkeypatch):
    """The commands that were run; each leaves the log of a finished training, its mIoU by its batch size and seed."""
    commands = []

    class Run:
        returncode = 0

        def __init__(self, words, **_):
            workdir = pathlib.Path(words[-1].removeprefix("--workdir="))
            commands.append(words)
            seed = next(int(word.partition("=")[2]) for word in words if word.startswith("--config.seed="))
            log(workdir, 0.4 + 0.1 * ("--config.data.batch_size=4" in words) + 0.02 * seed)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def wait(self):
            pass

    monkeypatch.setattr(sweep.subprocess, "Popen", Run)
    return commands


def sweep_out(monkeypatch, tmp_path, *words):
    (tmp_path / "study.py").write_text(STUDY)
    out = ["--root", str(tmp_path), "--out", str(tmp_path / "runs"), "--table", str(tmp_path / "table.md")]
    monkeypatch.setattr(sys, "argv", ["sweep.py", str(tmp_path / "study.py"), *out, *words])
    sweep.main()
    return (tmp_path / "table.md").read_text().splitlines()


def test_every_row_is_trained_once_with_every_seed(monkeypatch, tmp_path, trained):
    table = sweep_out(monkeypatch, tmp_path, "--rows", "b*", "--seeds", "0", "1")
    assert len(trained) == 4
    assert f"--config.data.root={tmp_path}" in trained[0]
    assert table[2:] == [
        "| base |  | 2 | 20 | 1.0 | 41.0 (40.0 to 42.0) | 80.0 |",
        "| b4 | `data.batch_size=4` | 2 | 20 | 1.0 | **51.0 (50.0 to 52.0)** | 80.0 |",
    ]
    assert sweep_out(monkeypatch, tmp_path, "--rows", "b*", "--seeds", "0", "1") == table
    assert len(trained) == 4


def test_a_row_that_means_something_else_now_is_not_mixed_in(monkeypatch, tmp_path, trained):
    sweep_out(monkeypatch, tmp_path, "--rows", "base")
    monkeypatch.setattr("test_sweep.STUDY", STUDY.replace('"base": ""', '"base": "--config.optim.lr=1"'))
    with pytest.raises(SystemExit, match="name the row otherwise"):
        sweep_out(monkeypatch, tmp_path, "--rows", "base")
    table = sweep_out(monkeypatch, tmp_path, "--rows", "b4")
    assert [line.split(" | ")[0] for line in table[2:]] == ["| b4"]


def test_a_recipe_that_has_changed_is_another_run(monkeypatch, tmp_path, trained):
    recipe = tmp_path / "recipe.py"
    text = "from deeplab_jax.config import Config\n\ndef get_config():\n    return Config(seed=0)\n"
    recipe.write_text(text)
    monkeypatch.setattr("test_sweep.STUDY", STUDY.replace("configs/camvid_r18.py", str(recipe)))
    sweep_out(monkeypatch, tmp_path, "--rows", "base")
    recipe.write_text("# A comment is no change.\n" + text)
    sweep_out(monkeypatch, tmp_path, "--rows", "base")
    assert len(trained) == 1
    recipe.write_text(text.replace("seed=0", "seed=1"))
    with pytest.raises(SystemExit, match="name the row otherwise"):
        sweep_out(monkeypatch, tmp_path, "--rows", "base")


def test_a_run_that_was_stopped_is_no_result(tmp_path):
    (tmp_path / "run.json").write_text('{"starts": [{"steps": 20}]}')
    assert sweep.result(tmp_path) is None
    log(tmp_path, 0.4, steps=10)
    assert sweep.result(tmp_path) is None
    log(tmp_path, 0.5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2')  # a crash cut it short
    # The median of the time of a step: 20 x 3 s.
    assert sweep.result(tmp_path) == sweep.Result(steps=20, minutes=1.0, miou=0.5, pixel_accuracy=0.8)


def test_an_evaluation_without_a_score_is_told(tmp_path):
    log(tmp_path, None)
    with pytest.raises(SystemExit, match="no mIoU"):
        sweep.result(tmp_path)


def test_a_run_that_logs_no_steps_has_no_time(tmp_path):
    log(tmp_path, 0.5, seconds=())
    assert math.isnan(sweep.result(tmp_path).minutes)


def python_instead_of_training(monkeypatch, program):
    popen = sweep.subprocess.Popen
    monkeypatch.setattr(sweep.subprocess, "Popen", lambda words, **keywords: popen([words[0], "-c", program], **keywords))


def test_a_training_that_fails_ends_the_study(monkeypatch, tmp_path):
    python_instead_of_training(monkeypatch, "raise SystemExit(2)")
    with pytest.raises(SystemExit, match=r"log\.txt: train\.py ended with 2"):
        sweep_out(monkeypatch, tmp_path)


def test_an_interrupted_training_is_left_to_save(monkeypatch, tmp_path):
    # The terminal interrupts both processes: the training does so here, once it is ready to be interrupted itself.
    program = """
import os, signal, time
signal.signal(signal.SIGINT, lambda *_: print("stopping", flush=True))
os.kill(os.getppid(), signal.SIGINT)
os.kill(os.getpid(), signal.SIGINT)
time.sleep(1)
print("saved", flush=True)
"""
    python_instead_of_training(monkeypatch, program)
    with pytest.raises(SystemExit, match="was stopped: the same command goes on"):
        sweep_out(monkeypatch, tmp_path, "--rows", "base")
    assert (tmp_path / "runs" / "base" / "seed0" / "log.txt").read_text() == "stopping\nsaved\n"


def test_rows_that_name_nothing_are_told(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="base, b4, other"):
        sweep_out(monkeypatch, tmp_path, "--rows", "b5")


def test_a_row_that_never_began_may_be_corrected(monkeypatch, tmp_path):
    python_instead_of_training(monkeypatch, "print('error: mistaken'); raise SystemExit(2)")
    with pytest.raises(SystemExit, match="ended with 2: error: mistaken"):
        sweep_out(monkeypatch, tmp_path, "--rows", "base")
    monkeypatch.setattr("test_sweep.STUDY", STUDY.replace('"base": ""', '"base": "--config.optim.lr=1"'))
    with pytest.raises(SystemExit, match="ended with 2"):
        sweep_out(monkeypatch, tmp_path, "--rows", "base")
    assert "optim.lr=1" in (tmp_path / "runs" / "base" / "seed0" / "command.txt").read_text()


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("b", "--config.data.batchsize=4", "row 'b': `batchsize` is no field"),
        ("b", "--config.data.batch_size=0", "row 'b': `data.batch_size`"),
        ("b", "--config.seed=5", "`--config.seed=5` is no --config.FIELD=VALUE that a row may set"),
        ("b", "--workdir=elsewhere", "`--workdir=elsewhere` is no"),
        ("../b", "", "'../b' names a folder"),
    ],
)
def test_all_rows_are_checked_before_one_is_trained(name, flags, message, monkeypatch, tmp_path, trained):
    monkeypatch.setattr("test_sweep.STUDY", f'RECIPE = "configs/camvid_r18.py"\nROWS = {{"a": "", {name!r}: {flags!r}}}\n')
    with pytest.raises(SystemExit, match=message):
        sweep_out(monkeypatch, tmp_path)
    assert trained == []


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ('RECIPE = "configs/camvid_r18.py"', "lacks RECIPE, a config's file, or ROWS"),
        ('RECIPE = "configs/camvid.py"\nROWS = {"a": ""}', "row 'a': `--config` cannot be used"),
    ],
)
def test_a_study_that_is_none_is_told(study, message, monkeypatch, tmp_path):
    monkeypatch.setattr("test_sweep.STUDY", study)
    with pytest.raises(SystemExit, match=message):
        sweep_out(monkeypatch, tmp_path)


CAMVID_STUDY = sweep.opened(str(sweep.ROOT / "benchmarks" / "camvid_study.py"))


def test_every_row_of_the_study_can_be_trained_and_is_another_training():
    configs = [sweep.config_of(CAMVID_STUDY, row) for row in CAMVID_STUDY["ROWS"]]
    assert len({digest_of(to_dict(config)) for config in configs}) == len(configs)


def test_the_fast_camvid_recipe_is_the_chosen_row_of_the_study():
    recipe = runpy.run_path(str(sweep.ROOT / "configs" / "camvid_r18.py"))["get_config"]()
    recipe.train.eval_every = 0  # what is looked at on the way changes nothing
    assert sweep.config_of(CAMVID_STUDY, CAMVID_STUDY["CHOSEN"]) == recipe
