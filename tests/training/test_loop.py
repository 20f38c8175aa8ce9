"""Test the training loop's safeguards by calling `train` in this process."""

import dataclasses
import io
import json

import numpy as np
import pytest
from conftest import tiny_config
from rich.console import Console

from deeplab_jax.commands.datasets import open_training_data
from deeplab_jax.errors import TrainingError
from deeplab_jax.training.loop import train
from deeplab_jax.training.verify import verify


def train_with_overflow(root, workdir, nonfinite):
    """Train for four steps with a learning rate so high that the first update overflows."""
    config = tiny_config(root)
    config = dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, lr=1e38),
        train=dataclasses.replace(config.train, nonfinite=nonfinite),
    )
    data, steps = open_training_data(config, lambda line: None)
    state = train(config, str(workdir), steps=steps, data=data, console=Console(file=io.StringIO()))
    return state, data


def read_train_rows(workdir):
    return [row for row in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()) if row["kind"] == "train"]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(street_scenes, tmp_path):
    with pytest.raises(TrainingError, match=r"Step [23] has a loss of .*Last good checkpoint: .*leftImg8bit/train/") as error:
        train_with_overflow(street_scenes, tmp_path / "run", "stop")
    assert "\n" not in str(error.value)


def test_updates_that_are_not_finite_are_skipped_counted_and_verified(street_scenes, tmp_path):
    state, data = train_with_overflow(street_scenes, tmp_path / "run", "skip")
    rows = read_train_rows(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert int(state.step) == 4
    assert [row["step"] for row in rows if "seconds_to_first_step" in row] == [1]
    assert all(0 < row["mfu"] < 1 for row in rows)
    assert rows[-1]["skipped"] == int(state.skipped) >= 2
    assert rows[-1]["loss"] is None or rows[-1]["grad_norm"] is None
    findings = list(verify(str(tmp_path / "run"), 2, 2, data, lambda i: ""))
    assert [finding.text for finding in findings if finding.agrees is False] == [
        text for text in (finding.text for finding in findings) if text.startswith("images and labels")
    ]
    assert np.isfinite([row["lr"] for row in rows]).all()
