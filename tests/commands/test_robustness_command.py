import json

import pytest
from conftest import read_log_rows, run_cli
from etils import epath

from deeplab_jax.evaluation import robustness
from deeplab_jax.evaluation.robustness import CLEAN, Robustness, read_results

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
    # Results of other weights are not continued.
    path.write_text(json.dumps(content | {"settings": content["settings"] | {"weights": "others"}}))
    given = []
    monkeypatch.setattr(robustness, "evaluate_corruptions", lambda results, *_: given.append(results) or finished)
    assert "have different weights, so they are replaced" in run("contrast")
    assert given == [Robustness(finished.settings)]


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
