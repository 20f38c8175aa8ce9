import dataclasses
import io
import json
import signal

import pytest
from conftest import tiny_config
from rich.console import Console

from deeplab_jax.checkpoints.store import resolve
from deeplab_jax.commands.datasets import open_training_data
from deeplab_jax.config import Config, TrainConfig
from deeplab_jax.errors import ConfigError, TrainingError
from deeplab_jax.evaluation.evaluate import StoppedError
from deeplab_jax.evaluation.metrics import OVERALL_METRICS
from deeplab_jax.labels import CAMVID
from deeplab_jax.models import validate
from deeplab_jax.training import loop
from deeplab_jax.training.stopping import LearningCheck, check_metric, compute_rank, evaluation_interval, is_stalled

pytestmark = pytest.mark.usefixtures("shared_step")

MIOU = {1: 0.1, 2: 0.5, 3: 0.4, 4: 0.3, 5: 0.2, 6: 0.9}


def make_scores(step):
    miou = MIOU[step]
    return dict.fromkeys(OVERALL_METRICS, 0.5) | {"miou": miou, "loss": miou, "iou": {"road": -(miou or 0)}}


class InterruptedRunError(Exception):
    pass


@pytest.fixture
def run(street_scenes, tmp_path, monkeypatch):
    """Return a function that runs six steps, with an evaluation after each whose scores are made up.

    It returns whether the run is finished, its last step, the log and the checkpoints.
    """

    def make_evaluate(*_):
        def evaluate(state):
            return make_scores(int(state.step)), []

        return evaluate

    monkeypatch.setattr(loop, "make_evaluate", make_evaluate)

    def run(stop_at=0, **fields):
        def interrupt(step, scores):
            if step == stop_at:
                raise InterruptedRunError

        config = tiny_config(street_scenes)
        settings = {"steps": 6, "eval_every": 1, "save_every": 1} | fields
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, **settings))
        data, steps = open_training_data(validate(config), lambda line: None)
        log = Console(file=io.StringIO(), soft_wrap=True)
        outcome = loop.train(config, str(tmp_path), steps=steps, data=data, console=log, on_evaluation=interrupt)
        kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
        return outcome.is_finished, int(outcome.state.step), log.file.getvalue(), kept

    return run


@pytest.mark.slow
def test_a_run_ends_after_as_many_evaluations_without_a_better_score_as_its_patience(run, tmp_path):
    is_finished, step, log, kept = run(patience=2)
    assert (is_finished, step, kept) == (True, 4, [2, 3, 4])
    assert f"Finished at step 4 of 6, because of train.patience. {tmp_path}/best is its best step." in log
    is_finished, step, log, _ = run(patience=2)  # the same command again
    assert (is_finished, step) == (True, 4)
    assert "because of train.patience" in log
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "eval"] == [1, 2, 3, 4]


@pytest.mark.slow
def test_an_interrupted_run_stops_at_the_same_step(run):
    with pytest.raises(InterruptedRunError):
        run(stop_at=3, patience=2)
    assert run(patience=2)[:2] == (True, 4)


@pytest.mark.slow
def test_the_best_step_follows_the_metric(run, tmp_path):
    assert run(best_metric="loss", keep_last=1)[3] == [1, 6]
    assert resolve(str(tmp_path / "best")).name == "1"


def test_of_two_equal_steps_the_earlier_one_is_the_best(run, tmp_path, monkeypatch):
    monkeypatch.setitem(MIOU, 4, MIOU[2])
    assert run(patience=2)[:2] == (True, 4)
    assert resolve(str(tmp_path / "best")).name == "2"


@pytest.mark.slow
def test_more_checkpoints_are_kept_on_request(run):
    assert run(keep_last=1, keep_every=2, best_metric="iou/road")[3] == [1, 2, 4, 6]


@pytest.mark.slow
def test_a_run_without_evaluations_needs_no_split(run, tmp_path):
    is_finished, step, log, kept = run(evaluate=False)
    assert (is_finished, step, kept) == (True, 6, [5, 6])
    assert "step      6  evaluation" not in log
    assert not list(tmp_path.glob("checkpoints/*/scores.json"))


@pytest.mark.slow
def test_a_run_whose_last_step_is_lowered_below_its_current_one_ends_with_an_evaluation(run, tmp_path):
    run(evaluate=False)
    is_finished, step, log, _ = run(steps=4, eval_every=0)
    assert (is_finished, step) == (True, 6)
    assert "step      6  evaluation" in log
    assert "step      6  evaluation" not in run(steps=4, eval_every=0)[2]


@pytest.mark.parametrize(
    ("ranks", "patience", "expected"),
    [
        ([0.1, 0.5, 0.4], 2, False),
        ([0.1, 0.5, 0.4, 0.3], 2, True),
        ([0.1, 0.5, 0.4, 0.3, 0.6], 2, False),
        ([0.5, 0.5, 0.5], 2, True),  # an equal score is not a better one
        ([0.5, 0.4], 0, False),
        ([None, None, None], 2, False),
        ([None, None, 0.1], 2, False),
        ([], 1, False),
        ([0.3], 1, False),
    ],
)
def test_a_run_stalls_after_as_many_evaluations_as_its_patience(ranks, patience, expected):
    assert is_stalled(ranks, patience) == expected


def test_a_run_stops_after_100_updates_in_a_row_that_are_not_finite():
    learning = LearningCheck(first=11, steps=1000)
    for step in range(11, 310):
        learning.check(step, is_labelled=True, is_finite=step in (110, 210))
    assert learning.skipped == 99
    learning.check(310, is_labelled=False, is_finite=True)  # says nothing
    with pytest.raises(TrainingError, match=r"^The last 100 updates, up to step 311, were not finite"):
        learning.check(311, is_labelled=True, is_finite=False)


@pytest.mark.parametrize(("steps", "last"), [(1000, 110), (4, 14)])
def test_a_run_without_labels_stops_after_100_steps_or_at_its_end(steps, last):
    learning = LearningCheck(first=11, steps=steps)
    for step in range(11, last):
        learning.check(step, is_labelled=False, is_finite=True)
    with pytest.raises(TrainingError, match=r"^None of the \d+ batches since step 11 has a labelled pixel"):
        learning.check(last, is_labelled=False, is_finite=True)
    learning = LearningCheck(first=11, steps=steps)
    for step in range(11, 200):
        learning.check(step, is_labelled=step == 12, is_finite=True)  # one batch is enough


@pytest.mark.slow
def test_an_interrupted_evaluation_does_not_end_the_run(run, monkeypatch):
    def make_stopping_evaluate(*_):
        def evaluate(state):
            if int(state.step) == 4:
                signal.raise_signal(signal.SIGTERM)
                raise StoppedError
            return make_scores(int(state.step)), []

        return evaluate

    with monkeypatch.context() as context:
        context.setattr(loop, "make_evaluate", make_stopping_evaluate)
        is_finished, step, log, _ = run(patience=2)
    assert (is_finished, step) == (False, 4)
    assert "The evaluation of step 4 was interrupted" in log
    assert run(patience=2)[:2] == (True, 4)


@pytest.mark.slow
def test_a_metric_without_a_value_is_reported(run, monkeypatch):
    monkeypatch.setitem(MIOU, 1, None)
    _, _, log, _ = run(steps=1)
    assert "warning: step 1 has no miou, so it cannot be the best step." in log
    assert "WARNING: Some logits are infinite or not a number" in log  # the made-up loss equals the mIoU


@pytest.mark.slow
def test_a_changed_metric_ranks_the_kept_steps_again(run, tmp_path):
    with pytest.raises(InterruptedRunError):
        run(stop_at=4, keep_last=4)
    assert resolve(str(tmp_path / "best")).name == "2"
    assert run(best_metric="loss", keep_last=1)[3] == [1, 6]
    assert resolve(str(tmp_path / "best")).name == "1"


@pytest.mark.slow
def test_more_patience_continues_a_run(run):
    assert run(patience=2)[:2] == (True, 4)
    assert run(patience=4)[:2] == (True, 6)


@pytest.mark.parametrize(("epochs", "interval"), [(0.0, 7), (1.0, 25), (0.5, 12), (0.001, 1)])
def test_an_interval_in_epochs_is_rounded_to_steps(epochs, interval):
    config = Config(train=TrainConfig(eval_every=7, eval_every_epochs=epochs))
    config.data.batch_size = 4
    assert evaluation_interval(config, 100) == interval


def test_an_epoch_is_a_pass_over_the_first_of_mixed_splits():
    config = Config(train=TrainConfig(eval_every_epochs=0.5))
    config.data.batch_size, config.data.train_split, config.data.mix = 8, "train+pseudo", (1, 3)
    assert evaluation_interval(config, 100) == 25


def test_lower_losses_have_higher_ranks():
    scores = {"miou": None, "loss": 0.5, "iou": {"road": 0.25, "sky": float("nan")}}
    metrics = ("miou", "loss", "iou/road", "iou/sky")
    assert [compute_rank(scores, metric) for metric in metrics] == [None, -0.5, 0.25, None]


@pytest.mark.parametrize("name", ["mIoU", "iou/rode", "iou", "iou/"])
def test_an_unknown_metric_is_refused(name):
    check_metric(TrainConfig(best_metric="iou/road"), CAMVID)
    with pytest.raises(ConfigError, match=r"`train.best_metric` \(=.*Use one of miou.*iou/sky"):
        check_metric(TrainConfig(best_metric=name), CAMVID)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patience": 2, "eval_every": 0}, r"`train.patience` \(=2\).*train.eval_every"),
        ({"patience": 2, "evaluate": False}, r"`train.patience`.*train.evaluate"),
        ({"best_metric": "loss", "evaluate": False}, r"`train.best_metric`.*train.evaluate"),
        ({"eval_every_epochs": 2.0, "evaluate": False}, "`train.eval_every_epochs`"),
        ({"keep_last": 0}, "`train.keep_last`"),
    ],
)
def test_settings_that_cannot_work_together_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        validate(Config(train=TrainConfig(steps=1, **fields)))
