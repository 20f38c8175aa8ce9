"""Train and evaluate the published quickstart recipe, which takes minutes on two cores."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.long
def test_the_quickstart_recipe_reaches_its_score(tmp_path):
    from deeplab_jax.scenes import dataset as synthetic

    synthetic.write(tmp_path / "scenes")
    flags = ["--config=configs/quickstart.py", f"--config.data.root={tmp_path / 'scenes'}"]
    run = [sys.executable, "train.py", *flags, f"--workdir={tmp_path / 'run'}"]
    subprocess.run(run, cwd=ROOT, check=True)
    score = [sys.executable, "eval.py", *flags, f"--checkpoint={tmp_path / 'run'}", f"--output={tmp_path / 'val'}"]
    subprocess.run(score, cwd=ROOT, check=True)
    assert json.loads((tmp_path / "val" / "scores.json").read_text())["miou"] >= 0.55
