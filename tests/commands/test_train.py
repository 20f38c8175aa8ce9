import re
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import load_tiny_recipe, read_log_rows, train
from PIL import Image
from rich.console import Console

import deeplab_jax as dl
from deeplab_jax.checkpoints.store import restore_variables
from deeplab_jax.config import ModelConfig
from deeplab_jax.errors import CheckpointError, ConfigError, DataError
from deeplab_jax.evaluation.evaluate import StoppedError
from deeplab_jax.training import loop, scoring

pytestmark = [
    pytest.mark.usefixtures("plain_convolutions", "shared_step"),
    pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),  # raised by ml_collections
]


@pytest.mark.slow
def test_a_finished_run_only_continues_with_more_steps(finished_run, street_scenes, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished_run, workdir)
    again = train(street_scenes, workdir)
    assert "already at step 6 of 6" in again
    assert "Compiling" not in again
    assert "train.steps: 6 -> 7" in train(street_scenes, workdir, "train.steps=7")
    assert [row["step"] for row in read_log_rows(workdir, "train")] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.slow
def test_training_starts_from_pretrained_weights_and_resumes_without_them(finished_run, street_scenes, tmp_path):
    pretrained, workdir = tmp_path / "pretrained", tmp_path / "tiny"
    shutil.copytree(finished_run, pretrained)
    fields = (f"model.pretrained={pretrained}", "optim.lr=1e-9", "optim.schedule=constant")
    first = train(street_scenes, workdir, *fields, "train.steps=1")
    assert re.search(rf"(\d+) of \1 variables were loaded from {pretrained}", first)
    # Compare only the parameters. The learning rate is too small to change them, but each step moves the running statistics a
    # tenth of the way to the batch statistics.
    before, after = (restore_variables(str(folder))["params"] for folder in (pretrained, workdir))
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-6)
    shutil.rmtree(pretrained)
    assert f"resuming {workdir} after step 1" in train(street_scenes, workdir, *fields, "train.steps=2")


@pytest.mark.parametrize("workdir", [None, 3, b"run"])
def test_a_workdir_that_is_not_a_path_is_refused(workdir):
    with pytest.raises(ConfigError, match=re.escape(f"`workdir` (={workdir!r}) is not a path. Give a folder")):
        dl.train(load_tiny_recipe("data"), workdir, console=Console(quiet=True))


def test_a_workdir_in_which_checkpoints_would_be_lost_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^`workdir` \(='.*\[512,1024\]'\) cannot hold checkpoints"):
        dl.train(load_tiny_recipe("data"), tmp_path / "size=[512,1024]", console=Console(quiet=True))


def test_the_home_folder_is_expanded_in_a_workdir(street_scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    workdirs = []

    def note_workdir(config, workdir, **_):
        workdirs.append(workdir)
        return loop.Result(SimpleNamespace(step=0), False)

    monkeypatch.setattr(loop, "train", note_workdir)
    dl.train(load_tiny_recipe(street_scenes), "~/run", console=Console(quiet=True))
    dl.train(load_tiny_recipe(street_scenes), tmp_path / "other", console=Console(quiet=True))
    assert workdirs == [str(tmp_path / "run"), str(tmp_path / "other")]
    with pytest.raises(ConfigError, match="`workdir` is missing"):
        dl.train(load_tiny_recipe(street_scenes), "")


@pytest.mark.parametrize(
    ("field", "error", "message"),
    [
        ("model.width=16", CheckpointError, r"`model.width` \(=16\) is 8"),
        ("mesh.data=64", ConfigError, "needs 64 devices"),
        ("data.batch_size=6", ConfigError, r"`data.batch_size` \(=6\) cannot be split evenly over 4 devices. Use 4 or 8"),
        ("data.root=nowhere", DataError, r"`data.root` \(='nowhere'\)"),
    ],
)
def test_user_errors_in_a_run_are_reported_on_one_line(field, error, message, finished_run, street_scenes):
    with pytest.raises(error, match=message) as caught:
        train(street_scenes, finished_run, field)
    assert "\n" not in str(caught.value)


def test_errors_in_the_data_set_are_reported_on_one_line(street_scenes, tmp_path):
    broken = tmp_path / "set"
    shutil.copytree(street_scenes, broken)
    listing = broken / "list" / "train.lst"
    lines = listing.read_text()
    for content, message in (("", "no samples of split 'train'"), (lines.replace("_gtFine_", "_gtfine_"), "6 of 12 files")):
        listing.write_text(content)
        with pytest.raises(DataError, match=message) as caught:
            train(broken, tmp_path / "run")
        assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_label_that_breaks_during_a_run_is_reported_by_name(split, street_scenes, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(street_scenes, broken)
    victim = next((broken / "gtFine" / split).rglob("*labelIds.png"))
    Image.new("L", (128, 64), 99).save(victim)
    with pytest.raises(DataError, match=rf"{victim.name} holds the value 99 \(8192 pixels\)") as caught:
        train(broken, tmp_path / "run", "train.eval_every=1")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_training_from_python_returns_scores_and_can_be_pruned(street_scenes, tmp_path):
    class PrunedError(Exception):
        pass

    def prune(step, scores):
        raise PrunedError(f"{step} {0 <= scores['miou'] <= 1}")

    config = load_tiny_recipe(street_scenes, "train.eval_every=3")
    console = Console(quiet=True)
    with pytest.raises(PrunedError, match="3 True"):
        dl.train(config, str(tmp_path), on_evaluation=prune, console=console)
    steps = []
    scores = dl.train(config, str(tmp_path), on_evaluation=lambda step, _: steps.append(step), console=console)
    assert steps == [6]
    assert scores["step"] == 6
    assert scores["is_finished"]
    assert scores["iou"].keys() == set(config.labels.names)
    assert dl.train(config, str(tmp_path), console=console) == scores


@pytest.mark.slow
def test_a_run_stopped_during_its_last_evaluation_is_not_finished(street_scenes, tmp_path, monkeypatch):
    config, console = load_tiny_recipe(street_scenes, "train.steps=1"), Console(quiet=True)

    def stop(*_):
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "score", stop)
        assert dl.train(config, str(tmp_path), console=console) == {"step": 1, "is_finished": False}
        # The next start is stopped as well, and finds damaged scores.
        (tmp_path / "checkpoints" / "1" / "scores.json").write_text("{")
        assert dl.train(config, str(tmp_path), console=console) == {"step": 1, "is_finished": False}
    scores = dl.train(config, str(tmp_path), console=console)
    assert scores["is_finished"]
    assert 0 <= scores["miou"] <= 1


def test_training_from_python_validates_the_config(tmp_path):
    with pytest.raises(ConfigError, match=r"`model.backbone`"):
        dl.train(dl.Config(model=ModelConfig(backbone="resnet1")), str(tmp_path))
