"""Test the training loop's safeguards by calling `train` in this process."""

import dataclasses
import io
import json
import math
import signal
import threading
import time
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from conftest import tiny_config
from rich.console import Console

from deeplab_jax.checkpoints.store import resolve
from deeplab_jax.commands.datasets import open_training_data
from deeplab_jax.errors import DataError, OutOfMemoryError, TrainingError
from deeplab_jax.training import loop, speed
from deeplab_jax.training.loop import _average, _describe_overflow, train
from deeplab_jax.training.verify import verify

pytestmark = pytest.mark.usefixtures("shared_step")


def train_with_overflow(root, workdir, nonfinite):
    """Train for four steps with a learning rate so high that the first update overflows."""
    config = tiny_config(root)
    config = dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, lr=1e38),
        train=dataclasses.replace(config.train, nonfinite=nonfinite),
    )
    data, steps = open_training_data(config, lambda line: None)
    state, _ = train(config, str(workdir), steps=steps, data=data, console=Console(file=io.StringIO()))
    return state, data


def read_train_rows(workdir):
    return [row for row in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()) if row["kind"] == "train"]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(street_scenes, tmp_path):
    with pytest.raises(TrainingError, match=r"Step [23] has a loss of .*Last checkpoint: .*leftImg8bit/train/") as error:
        train_with_overflow(street_scenes, tmp_path / "run", "stop")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("step", "advice"),
    [
        (5, "step 4. A lower optim.lr is too late for that one. Move runs/r50/checkpoints/4 away to resume from an earlier"),
        (6, "step 4. Lower optim.lr, set train.nonfinite=skip, or inspect the samples of this step: a.png"),
    ],
)
def test_a_checkpoint_that_leads_to_a_loss_that_is_not_finite_is_named(step, advice):
    tools = Mock(spec=loop._Tools, workdir="runs/r50")
    tools.receipts.consumed.latest_names.return_value = ["a.png"]
    tools.checkpoints.latest_step.return_value = 4
    assert f"Last checkpoint: {advice}" in str(_describe_overflow({"loss": math.nan, "grad_norm": 1.0}, step, tools))


@pytest.mark.slow
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


def open_data(root, eval_every=2):
    config = tiny_config(root)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, eval_every=eval_every, save_every=0))
    return config, *open_training_data(config, lambda line: None)


def run(config, data, steps, workdir, **kwargs):
    text = io.StringIO()
    state, _ = train(config, str(workdir), steps=steps, data=data, console=Console(file=text, soft_wrap=True), **kwargs)
    return int(state.step), text.getvalue()


def read_rows(workdir):
    return [(row["kind"], row["step"]) for row in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())]


def fail_after_one(batches):
    yield next(iter(batches()))
    raise DataError("Cannot read val/b.png.")


def signal_after_one(batches, number):
    yield from batches()
    signal.raise_signal(number)  # `os.kill` can return before Python has noticed the signal, if other threads are busy
    yield from batches()


ROWS = [("train", 1), ("train", 2), ("eval", 2), ("train", 3), ("train", 4), ("eval", 4)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [None, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_failed_or_interrupted_evaluation_loses_no_step_and_is_repeated(street_scenes, tmp_path, number):
    config, data, steps = open_data(street_scenes)
    workdir = tmp_path / "run"
    if number is None:
        broken = dataclasses.replace(data, eval_batches=lambda: fail_after_one(data.eval_batches))
        with pytest.raises(DataError, match=r"^Cannot read val/b.png. Step 2 is saved.$"):
            run(config, broken, steps, workdir)
    else:
        stopping = dataclasses.replace(data, eval_batches=lambda: signal_after_one(data.eval_batches, number))
        step, text = run(config, stopping, steps, workdir)
        assert step == 2
        assert "The evaluation of step 2 was interrupted." in text
        assert f"Stopped after step 2 of 4. Saved in {workdir}." in text
    assert resolve(str(workdir)).name == "2"
    assert read_rows(workdir) == ROWS[:2]
    scores = {}
    step, _ = run(config, data, steps, workdir, on_evaluation=scores.__setitem__)
    assert step == 4
    assert read_rows(workdir) == ROWS
    assert list(scores) == [2, 4]
    assert resolve(str(workdir / "best")).name == str(max(scores, key=lambda step: (scores[step]["miou"], -step)))


@pytest.mark.slow
def test_an_evaluation_whose_scores_were_not_saved_is_not_logged_twice(street_scenes, tmp_path):
    config, data, steps = open_data(street_scenes, eval_every=0)
    assert run(config, data, steps, tmp_path)[0] == 4
    (resolve(str(tmp_path)) / "scores.json").unlink()
    step, text = run(config, data, steps, tmp_path)
    assert "is already at step 4 of 4" in text
    assert step == 4
    assert read_rows(tmp_path) == [*(("train", step) for step in (1, 2, 3, 4)), ("eval", 4)]


@pytest.mark.slow
@pytest.mark.parametrize("steps", [4, 3])  # with 3, the run is longer than its config
def test_damaged_scores_of_a_finished_run_are_replaced(street_scenes, tmp_path, steps):
    config, data, _ = open_data(street_scenes, eval_every=0)
    assert run(config, data, 4, tmp_path)[0] == 4
    path = resolve(str(tmp_path)) / "scores.json"
    text = path.read_text()
    path.write_text(text.replace("miou", "mioU"))
    step, output = run(config, data, steps, tmp_path)
    assert step == 4
    assert "The scores of step 4 are missing or damaged, so it is evaluated now." in output
    assert json.loads(path.read_text()) == json.loads(text)


@pytest.mark.slow
def test_a_writer_that_fails_does_not_stop_the_run(street_scenes, tmp_path):
    (tmp_path / "tensorboard").write_text("not a folder")
    config, data, steps = open_data(street_scenes)
    step, text = run(config, data, steps, tmp_path)
    assert step == 4
    assert text.count(f"warning: {tmp_path / 'tensorboard'} cannot be written") == 1
    assert read_rows(tmp_path) == ROWS


@pytest.mark.slow
def test_a_run_in_a_thread_leaves_signals_alone(street_scenes, tmp_path):
    config, data, steps = open_data(street_scenes)
    handlers, results = [], []

    def note_handler(step, scores):
        handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=lambda: results.append(run(config, data, steps, tmp_path, on_evaluation=note_handler)[0]))
    thread.start()
    thread.join()
    assert results == [4]
    assert handlers == [signal.SIG_DFL] * 2


@pytest.mark.slow
def test_log_txt_has_the_lines_of_the_console_with_their_date(street_scenes, tmp_path):
    config, data, steps = open_data(street_scenes)
    _, text = run(config, data, steps, tmp_path)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line[21:] for line in lines] == text.splitlines()
    assert all(line[:2] == "20" for line in lines)
    assert "Training on 4 x cpu" in lines[0]
    assert any("Compiling the training step" in line for line in lines)


def test_a_run_whose_pixels_are_all_ignored_stops(street_scenes, tmp_path):
    config, data, steps = open_data(street_scenes)

    def ignore_all(first, end):
        return ({**batch, "label": np.full_like(batch["label"], 255)} for batch in data.train_batches(first, end))

    unlabelled = dataclasses.replace(data, train_batches=ignore_all)
    with pytest.raises(TrainingError, match="None of the 4 batches since step 1 has a labelled pixel"):
        run(config, unlabelled, steps, tmp_path)


def replace_labels(data, step):
    """Return the data, but ignore all pixels of the batch of a step."""

    def ignore(first, end):
        for number, batch in enumerate(data.train_batches(first, end), start=first + 1):
            yield batch | {"label": np.full_like(batch["label"], 255)} if number == step else batch

    return dataclasses.replace(data, train_batches=ignore)


@pytest.mark.slow
def test_the_last_steps_of_a_resumed_run_need_no_labelled_pixels(street_scenes, tmp_path):
    config, data, steps = open_data(street_scenes, eval_every=3)
    data = replace_labels(data, steps)

    def stop(step, scores):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        run(config, data, steps, tmp_path, on_evaluation=stop)
    assert resolve(str(tmp_path)).name == "3"
    assert run(config, data, steps, tmp_path)[0] == steps
    last = read_train_rows(tmp_path)[-1]
    assert (last["loss"], last["mean_loss"], last["mean_accuracy"]) == (0, None, None)


@pytest.mark.slow
def test_a_batch_that_cannot_be_read_loses_no_step(street_scenes, tmp_path):
    config, data, steps = open_data(street_scenes, eval_every=0)

    def fail_in_last(first, end):
        yield from data.train_batches(first, end - 1)
        raise DataError("Cannot read train/b.png.")

    broken = dataclasses.replace(data, train_batches=fail_in_last)
    # Two batches are read ahead.
    with pytest.raises(DataError, match=r"^Cannot read train/b.png. Step 2 is saved.$"):
        run(config, broken, steps, tmp_path)
    assert resolve(str(tmp_path)).name == "2"
    assert run(config, data, steps, tmp_path)[0] == steps
    assert read_rows(tmp_path) == [*(("train", step) for step in (1, 2, 3, 4)), ("eval", 4)]
    findings = verify(str(tmp_path), 0, 4, data, lambda i: "")  # which cannot read the samples
    assert [each.text.partition(":")[0] for each in findings if each.agrees is False] == ["images and labels"]


def test_compilation_does_not_count_towards_the_speed(street_scenes, tmp_path, monkeypatch):
    config, data, steps = open_data(street_scenes, eval_every=0)
    compile_step, hours = loop._compile, []

    def compile_for_an_hour(*args):
        hours.append(3600)
        return compile_step(*args)

    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: time.perf_counter() + sum(hours)))
    monkeypatch.setattr(loop, "_compile", compile_for_an_hour)
    run(config, data, steps, tmp_path)
    assert read_train_rows(tmp_path)[0]["seconds_per_step"] < 3600


def test_a_step_that_does_not_fit_in_memory_is_explained_in_one_line(street_scenes, tmp_path, monkeypatch):
    config, data, steps = open_data(street_scenes)
    monkeypatch.setattr("deeplab_jax.runtime.memory.free_bytes", lambda device: 1000)
    with pytest.raises(OutOfMemoryError, match=r"The training step needs about .* Lower data.batch_size") as error:
        run(config, data, steps, tmp_path)
    assert "\n" not in str(error.value)


def test_an_evaluation_that_does_not_fit_in_memory_says_that_the_step_is_saved(street_scenes, tmp_path, monkeypatch):
    def refuse(program, devices, what, advice):
        raise OutOfMemoryError("The evaluation is too large.", "Lower something.")

    config, data, steps = open_data(street_scenes)
    monkeypatch.setattr("deeplab_jax.evaluation.inference.require_memory", refuse)
    with pytest.raises(OutOfMemoryError, match=r"^The evaluation is too large. Lower something. Step \d+ is saved.$"):
        run(config, data, steps, tmp_path)


def test_steps_without_a_finite_loss_do_not_count_in_the_mean():
    rows = [
        {"loss": loss, "accuracy": accuracy} for loss, accuracy in ((1.0, 0.5), (math.nan, 0.0), (math.inf, 0.0), (3.0, 0.25))
    ]
    assert _average(rows) == {"mean_loss": 2.0, "mean_accuracy": 0.375}
    assert all(map(math.isnan, _average(rows[1:3]).values()))
