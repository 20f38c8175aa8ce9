"""The loop's guards, through `train` in this process."""

import dataclasses
import io
import json

import numpy as np
import pytest
from conftest import tiny_config
from rich.console import Console

from deeplab_jax.commands.datasets import training_data
from deeplab_jax.errors import TrainingError
from deeplab_jax.train.loop import train
from deeplab_jax.train.verify import verify


def run(root, workdir, nonfinite):
    """Four steps at a rate at which the first update already overflows."""
    config = tiny_config(root)
    config = dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, lr=1e38),
        train=dataclasses.replace(config.train, nonfinite=nonfinite),
    )
    data, steps = training_data(config, lambda line: None)
    state = train(config, str(workdir), steps=steps, data=data, console=Console(file=io.StringIO()))
    return state, data


def rows(workdir):
    return [row for row in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()) if row["kind"] == "train"]


def test_numbers_that_are_not_finite_stop_the_run_and_name_the_samples(street_scenes, tmp_path):
    with pytest.raises(TrainingError, match=r"step [23] has the loss .*last good checkpoint: .*leftImg8bit/train/") as caught:
        run(street_scenes, tmp_path / "run", "stop")
    assert "\n" not in str(caught.value)


def test_they_are_skipped_counted_and_logged_and_verify_follows(street_scenes, tmp_path):
    state, data = run(street_scenes, tmp_path / "run", "skip")
    logged = rows(tmp_path / "run")
    assert [row["step"] for row in logged] == [1, 2, 3, 4]
    assert int(state.step) == 4
    assert [row["step"] for row in logged if "seconds_to_first_step" in row] == [1]
    assert all(0 < row["mfu"] < 1 for row in logged)
    assert logged[-1]["skipped"] == int(state.skipped) >= 2
    assert logged[-1]["loss"] is None or logged[-1]["grad_norm"] is None
    found = list(verify(str(tmp_path / "run"), 2, 2, data, lambda i: ""))
    assert [finding.text for finding in found if finding.agrees is False] == [
        text for text in (finding.text for finding in found) if text.startswith("images and labels")
    ]
    assert np.isfinite([row["lr"] for row in logged]).all()
