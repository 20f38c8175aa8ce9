import csv
import dataclasses
import json
import re

import numpy as np
import pytest
from etils import epath
from rich.console import Console

from deeplab_jax.config import Config
from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.evaluation import robustness
from deeplab_jax.evaluation.corruptions import corrupt
from deeplab_jax.evaluation.metrics import empty_totals
from deeplab_jax.evaluation.robustness import (
    CLEAN,
    SEED,
    Robustness,
    add_results,
    corrupt_batches,
    read_results,
    tables,
    write_results,
)
from deeplab_jax.labels import LabelSet

LABELS = LabelSet(name="two", names=("road", "sky"), colors=((128, 64, 128), (70, 130, 180)))


def make_scores(road, sky):
    return {"miou": (road + (sky or 0)) / 2, "iou": {"road": road, "sky": sky}}


RESULTS = Robustness(
    {"step": "4"},
    {
        CLEAN: make_scores(0.8, 0.4),
        ("fog", 1): make_scores(0.6, 0.4),
        ("fog", 5): make_scores(0.2, 0.0),
        ("snow", 1): make_scores(0.4, 0.2),
        ("snow", 5): make_scores(0.4, None),
    },
)


def test_means_are_over_severities_and_then_over_corruptions():
    # Fog has (0.5 + 0.1) / 2, snow has (0.3 + 0.2) / 2, and clean images have 0.6.
    summary = RESULTS.summary()
    assert summary["corruptions"] == pytest.approx({"fog": 0.3, "snow": 0.25})
    assert summary["mean"] == pytest.approx(0.275)
    assert summary["relative"] == pytest.approx(0.275 / 0.6)
    assert RESULTS.class_iou("fog", "road") == pytest.approx(0.4)
    assert RESULTS.class_iou("snow", "sky") is None


def test_means_are_over_the_severities_that_all_corruptions_have():
    more = dataclasses.replace(RESULTS, cells={**RESULTS.cells, ("fog", 3): make_scores(0.0, 0.0)})
    assert more.summary() == RESULTS.summary()
    assert more.summary()["severities"] == [1, 5]
    assert more.class_iou("fog", "road") == RESULTS.class_iou("fog", "road")
    by_corruption, by_class = tables(more, LABELS)
    assert by_corruption.title == "mIoU in %, mean over severities 1 and 5"
    assert by_class.title == "IoU by class in %, mean over severities 1 and 5"
    assert [list(column.cells) for column in by_corruption.columns][2] == ["", "0.00", "-", "-"]  # severity 3


def test_there_are_no_means_without_a_common_severity():
    apart = Robustness({}, {cell: RESULTS.cells[cell] for cell in (CLEAN, ("fog", 1), ("snow", 5))})
    corruptions = {"fog": None, "snow": None}
    assert apart.summary() == {
        "severities": [],
        "clean": pytest.approx(0.6),
        "mean": None,
        "relative": None,
        "corruptions": corruptions,
    }
    assert tables(apart, LABELS)[0].title == "mIoU in %, no mean, because the corruptions have no severity in common"
    empty = Robustness({}, {CLEAN: make_scores(0.0, 0.0)})
    assert empty.summary() == {"severities": [], "clean": 0, "mean": None, "relative": None, "corruptions": {}}
    assert tables(empty, LABELS)[0].title == "mIoU in %"


def test_results_are_the_same_after_writing_and_reading(tmp_path):
    tmp_path = epath.Path(tmp_path)
    assert read_results(tmp_path) is None
    write_results(tmp_path, Robustness({}))
    assert read_results(tmp_path) == Robustness({})
    write_results(tmp_path, RESULTS)
    assert read_results(tmp_path) == RESULTS
    with (tmp_path / "robustness.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "corruption": "clean",
        "severity": "0",
        "miou": str(0.6000000000000001),
        "iou/road": "0.8",
        "iou/sky": "0.4",
    }
    assert len(rows) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["robustness.csv", "robustness.json"]


def test_two_commands_keep_each_others_scores(tmp_path):
    folder = epath.Path(tmp_path)
    one, other = (Robustness(RESULTS.settings, {cell: RESULTS.cells[cell]}) for cell in (CLEAN, ("fog", 1)))
    assert add_results(folder, one) == one
    both = add_results(folder, other)
    assert both.cells == {**one.cells, **other.cells}
    assert read_results(folder) == both


def test_scores_that_another_command_stores_meanwhile_are_not_computed_again(monkeypatch):
    evaluated = []

    def score(*_, **__):
        evaluated.append(None)
        return empty_totals(2)._replace(confusion=np.eye(2, dtype=np.int64))

    def save(results):
        return dataclasses.replace(results, cells={("fog", 1): RESULTS.cells["fog", 1], **results.cells})

    monkeypatch.setattr(robustness, "open_evaluator", lambda *_: (None, {}))
    monkeypatch.setattr(robustness, "score", score)
    config, console = Config(labels=LABELS), Console(quiet=True)
    cells = [CLEAN, ("fog", 1), ("snow", 1)]
    results = robustness.evaluate_corruptions(Robustness({}), config, {}, lambda: iter(()), [], cells, save, console)
    assert set(results.cells) == set(cells)
    assert results.miou("fog", 1) == RESULTS.miou("fog", 1)
    assert len(evaluated) == 2
    monkeypatch.setattr(robustness, "score", lambda *_, **__: empty_totals(2))
    with pytest.raises(DataError, match=r"`eval.split` \(='val'\) has no labels"):
        robustness.evaluate_corruptions(Robustness({}), config, {}, lambda: iter(()), [], [CLEAN], save, console)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"step": "8", "weights": "2"}, "another checkpoint (step 4, not 8)."),
        ({"weights": "2"}, "other weights."),
        ({"split": "test"}, "other images (split val, not test)."),
        ({"eval": {"flip": True}}, "another evaluation protocol (flip False, not True)."),
        ({"versions": {"numpy": "2.1", "scipy": "1.0"}}, "other library versions (numpy 2.0, not 2.1)."),
        ({"files": "2"}, "other images or labels."),
        (
            {"split": "test", "files": "2", "seed": 1},
            "other images (split val, not test) and other random numbers (seed 0, not 1).",
        ),
        ({"new": 1}, "another version of this command."),
    ],
)
def test_scores_of_anything_else_are_refused_and_kept(tmp_path, changes, text):
    folder = epath.Path(tmp_path)
    settings = {"step": "4", "weights": "1", "split": "val", "files": "1", "eval": {"flip": False}, "seed": 0}
    settings |= {"versions": {"numpy": "2.0", "scipy": "1.0"}}
    finished = Robustness(settings, RESULTS.cells)
    write_results(folder, finished)
    with pytest.raises(ConfigError, match=re.escape(text)) as error:
        add_results(folder, Robustness(settings | changes))
    assert str(error.value).startswith(f"`--out` (={str(folder)!r}) has scores of ")
    assert str(error.value).endswith(". Choose another --out, or delete the folder.")
    assert read_results(folder) == finished
    write_results(folder, Robustness(settings))  # without scores, there is nothing to lose
    assert add_results(folder, Robustness(settings | changes)).settings == settings | changes


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"settings": {}, "scores": [{"severity": 1}]})])
def test_a_damaged_file_is_reported(tmp_path, text):
    (tmp_path / "robustness.json").write_text(text)
    with pytest.raises(DataError, match=re.escape(f"Cannot read {tmp_path / 'robustness.json'}")):
        read_results(epath.Path(tmp_path))


def test_the_table_names_the_corruption_that_costs_a_class_the_most():
    _, by_class = tables(RESULTS, LABELS)
    cells = [list(column.cells) for column in by_class.columns]
    assert cells == [["road", "sky"], ["80.00", "40.00"], ["40.00", "-"], ["40.00", "20.00"], ["fog", "fog"]]


def test_batches_keep_their_margins_padding_rows_and_order():
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (5, 2, 16, 24, 3), np.uint8)
    size, names = np.array([[16, 24], [10, 12]]), [f"{i}.png" for i in range(10)]
    batches = [
        {"image": x, "size": size, "valid": np.array([True, i < 4]), "index": np.array([2 * i, 2 * i + 1])}
        for i, x in enumerate(images)
    ]
    seen = list(corrupt_batches(batches, "gaussian_noise", 1, names, threads=3))
    assert len(seen) == 5
    for i, (batch, x) in enumerate(zip(seen, images, strict=True)):
        np.testing.assert_array_equal(batch["image"][0], corrupt(x[0], "gaussian_noise", 1, SEED, f"{2 * i}.png"))
        expected = x[1].copy()
        if i < 4:
            expected[:10, :12] = corrupt(x[1, :10, :12], "gaussian_noise", 1, SEED, f"{2 * i + 1}.png")
        np.testing.assert_array_equal(batch["image"][1], expected)
        assert batch["index"] is batches[i]["index"]
