"""Run the code on the page about training from Python, without training and without Optuna."""

import re
import sys
import types

from conftest import ROOT

import deeplab_jax as dl
from deeplab_jax.labels import CAMVID
from deeplab_jax.labels.files import write_labels

PAGE = ROOT / "docs" / "how-to" / "train-from-python.md"


def make_optuna():
    """Return a stand-in for Optuna that runs one trial."""
    study = types.SimpleNamespace(study_name="search")
    trial = types.SimpleNamespace(study=study, number=0, suggest_float=lambda name, low, high, log: low)
    trial.report, trial.should_prune = (lambda value, step: None), (lambda: False)
    study.optimize = lambda objective, n_trials: setattr(study, "best_value", objective(trial))
    return types.SimpleNamespace(create_study=lambda direction: study, TrialPruned=RuntimeError)


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    runs = {}

    def train(config, workdir, on_evaluation=lambda step, scores: None):
        runs[workdir] = config
        on_evaluation(1, {"miou": 0.5})
        return {"step": 1, "miou": 0.5, "iou": {"road": 0.5}, "is_finished": True}

    monkeypatch.setattr(dl, "train", train)
    monkeypatch.setattr("deeplab_jax.runtime.machine.reuse_step_memory", lambda: None)
    monkeypatch.setitem(sys.modules, "optuna", make_optuna())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "scenes").mkdir()
    write_labels("scenes/labels.json", CAMVID)
    monkeypatch.syspath_prepend(str(ROOT))
    variables = {}
    for code in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(code, PAGE.name, "exec"), variables)
    assert runs["runs/lr_0.02"].optim.lr == 0.02
    assert runs["runs/search/0"].optim.lr == 1e-3
    assert variables["study"].best_value == 0.5
