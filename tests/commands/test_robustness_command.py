import dataclasses
import json

import numpy as np
import pytest
from conftest import read_log_rows, run_cli
from etils import epath

from deeplab_jax.checkpoints.store import restore_model, save_model, stored_config
from deeplab_jax.commands.robustness import describe_settings
from deeplab_jax.config import Config
from deeplab_jax.data.image_files import ImageFiles
from deeplab_jax.data.samples import Samples
from deeplab_jax.evaluation.robustness import CLEAN, DIFFERENCES, read_results

# ml_collections uses a deprecated function to load recipes.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def test_clean_images_get_the_logged_score_and_finished_cells_are_kept(
    finished_run, street_scenes, tmp_path, monkeypatch, capsys
):
    def run(name):
        arguments = ("--root", street_scenes, "--out", tmp_path, "--severities", 5, "--corruptions", name)
        code, output = run_cli(monkeypatch, capsys, "robustness", finished_run, *arguments)
        assert code == 0, output
        return output

    output = run("contrast")
    assert "1/2 clean" in output
    assert "2/2 contrast, severity 5" in output
    path = tmp_path / "robustness.json"
    finished = read_results(epath.Path(tmp_path))
    clean, contrast = finished.cells[CLEAN], finished.cells["contrast", 5]
    assert clean["miou"] == read_log_rows(finished_run, "eval")[-1]["miou"]
    assert contrast["loss"] != clean["loss"]
    # An interrupted command has stored only a part of the scores.
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"scores": content["scores"][:1]}))
    output = run("contrast")
    assert "already has: 1\n" in output
    assert "1/1 contrast" in output
    assert read_results(epath.Path(tmp_path)) == finished
    # Scores of another checkpoint are kept, and the command stops before it evaluates anything.
    path.write_text(json.dumps(content | {"settings": content["settings"] | {"step": "1"}}))
    kept = path.read_bytes()
    code, output = run_cli(monkeypatch, capsys, "robustness", finished_run, "--root", street_scenes, "--out", tmp_path)
    assert code == 2
    assert "has scores of another checkpoint (step 1, not " in output
    assert "Compiling" not in output
    assert path.read_bytes() == kept


def test_logits_that_are_not_finite_are_reported(finished_run, street_scenes, tmp_path, monkeypatch, capsys):
    variables = restore_model(str(finished_run))
    variables["params"]["classifier"]["bias"][0] = np.nan
    save_model(str(tmp_path / "broken"), stored_config(str(finished_run)), variables)
    arguments = ("--root", street_scenes, "--out", tmp_path / "scores", "--severities", 5, "--corruptions", "contrast")
    code, output = run_cli(monkeypatch, capsys, "robustness", tmp_path / "broken", *arguments)
    assert code == 0, output
    assert output.count("WARNING: Some logits are infinite or not a number") == 2  # clean and corrupted images


def test_the_settings_have_whatever_changes_the_scores_and_nothing_else(tmp_path):
    for name in ("image", "label"):
        (tmp_path / name).write_bytes(b"")
    samples = Samples(str(tmp_path), ("image",), ("label",), "labelIds", "list", ImageFiles())

    def describe(**changes):
        config = Config()
        for section, fields in changes.items():
            config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **fields)})
        return describe_settings(config, {}, epath.Path("run/checkpoints/4"), samples)

    def changed(**changes):
        return [name for name, value in describe(**changes).items() if value != describe()[name]]

    assert changed(model={"align_corners": not Config().model.align_corners}) == ["model"]
    assert changed(labels={"names": Config().labels.names[::-1]}) == ["labels"]
    assert changed(data={"value_range": (0, 4095)}) == ["data"]
    assert changed(eval={"flip": True}) == ["eval"]
    assert changed(eval={"split": "test"}) == ["split"]
    assert changed(data={"root": "moved", "batch_size": 1}, optim={"lr": 7}, model={"pretrained": "", "remat": (1,)}) == []
    before = describe()
    assert before.keys() == DIFFERENCES.keys()
    assert json.loads(json.dumps(before)) == before
    (tmp_path / "label").write_bytes(b"corrected")
    assert [name for name, value in describe().items() if value != before[name]] == ["files"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corruptions", "rain"], "`--corruptions` (='rain') is not a corruption. Choose from gaussian_noise, shot_noise"),
        (["--severities", "1", "6"], "`--severities` (=6) is not from 1 to 5"),
        (["--split", "nowhere"], "nowhere"),
        (["--out", "{file}"], "is a file"),
    ],
)
def test_user_errors_print_one_line(finished_run, street_scenes, tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "file").write_text("")
    arguments = [word.format(file=tmp_path / "file") for word in arguments]
    code, output = run_cli(monkeypatch, capsys, "robustness", finished_run, "--root", street_scenes, *arguments)
    assert code == 2
    assert message in output
    assert output.splitlines()[-1].startswith("error: ")
    assert not (finished_run / "robustness").exists()
