import dataclasses
import json

import numpy as np
import pytest
from conftest import random_variables, run_cli, tiny_config

from deeplab_jax.checkpoints.store import restore_model, save_model, stored_config
from deeplab_jax.config import Config, to_dict
from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.evaluation.evaluate import EvaluatedImage
from deeplab_jax.labels import LabelSet
from deeplab_jax.models import DeepLabV3
from deeplab_jax.pages import comparison
from deeplab_jax.pages.comparison import Run, Split
from deeplab_jax.pages.disagreements import Disagreements
from deeplab_jax.training.receipt import Start, write_start

LABELS = LabelSet(name="three", names=("road", "sky", "<sign>"), colors=((128, 64, 128), (70, 130, 180), (220, 220, 0)))
OTHERS = LabelSet(name="two", names=("sky", "tree"), colors=((70, 130, 180), (0, 99, 0)))
IGNORED = 255


def find(count, *runs):
    """Return the images disagreements for each run, given its predictions. Every label is 0 0 1 1 and an ignored pixel."""
    label = np.array([[0, 0, 1, 1, IGNORED]], np.uint8)
    disagreements = Disagreements(["a", "b", "c", "d"], LABELS, len(runs), count)
    for predictions in runs:
        for index, prediction in enumerate(predictions):
            image = np.full((1, 5, 3), 100, np.uint8)
            disagreements.add(EvaluatedImage(index, image, np.array([[*prediction, 0]], np.uint8), label))
    return disagreements.by_winner()


def test_images_are_listed_for_the_run_that_predicts_them_better_the_largest_difference_first():
    right, wrong = [0, 0, 1, 1], [1, 1, 0, 0]
    better, worse = find(4, [right, right, right, wrong], [right, [0, 0, 1, 0], wrong, [0, 0, 0, 0]])
    assert [each.name for each in better] == ["c", "b"]
    assert [each.name for each in worse] == ["d"]
    assert better[0].miou == [1, 0]
    assert better[1].accuracy == [1, 0.75]
    assert better[1].miou[1] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert [len(each) for each in find(3, [right, right, right, right], [wrong, wrong, wrong, wrong])] == [3, 0]
    assert [len(each) for each in find(2, [right, right, right, wrong], [wrong, wrong, wrong, right])] == [1, 1]


def test_differences_have_the_colour_of_the_run_that_is_right():
    ((first,), _) = find(2, [[0, 0, 1, 0]], [[0, 1, 0, 1]])
    grey, blue, orange = [50, 50, 50], [31, 111, 235], [230, 145, 56]
    np.testing.assert_array_equal(first.differences, [[grey, blue, blue, orange, grey]])
    np.testing.assert_array_equal(first.predictions[1][0, 1], LABELS.colors[1])


def test_pixels_that_some_of_three_runs_predict_correctly_are_orange():
    (first,), *_ = find(3, [[0, 0, 1, 1]], [[0, 0, 1, 0]], [[1, 0, 1, 0]])
    grey, orange = [50, 50, 50], [230, 145, 56]
    np.testing.assert_array_equal(first.differences, [[orange, grey, grey, orange, grey]])


def make_run(name, config=None, **fields):
    scores = {"miou": 0.5, "pixel_accuracy": 0.75, "loss": 1.5, "iou": {"road": 0.5, "sky": None}}
    train = [{"step": step, "kind": "train", "loss": 1 / step, "lr": 0.1} for step in (1, 2)]
    run = Run(name, config or Config(labels=LABELS), None, scores, train, [{"step": 2, "kind": "eval", "miou": 0.5}], None)
    return dataclasses.replace(run, **fields)


def test_scores_are_shown_with_their_difference_to_the_first_run():
    a, b = make_run("a"), make_run("b", scores={"miou": 0.55, "loss": 1.25, "iou": {"road": 0.25, "sky": 0.5}})
    html = comparison.render_page([a, b], [], "")
    for text in ("50.00", "55.00 (+5.00)", "1.2500 (-0.2500)", "25.00 (-25.00)", "75.00", "&lt;sign&gt;"):
        assert (text in html) == (text != "&lt;sign&gt;")  # there are no images, and thus no legend
    assert comparison.class_scores([a, b])["sky"] == [None, 0.5]
    assert comparison.scalar_scores([a, b])["pixel_accuracy"] == [0.75, None]


def test_only_config_fields_that_differ_are_shown():
    other = Config(labels=LABELS)
    other.optim.lr, other.model.multi_grid = 0.5, (1, 2, 1)
    runs = [make_run("a"), make_run("b", other)]
    assert comparison.format_differences(runs) == {
        "model.multi_grid": [", ".join(map(str, Config().model.multi_grid)), "1, 2, 1"],
        "optim.lr": [str(Config().optim.lr), "0.5"],
    }
    assert "The configs are equal." in comparison.render_page([runs[0], make_run("c")], [], "")


def test_runs_with_different_classes_are_compared_only_by_the_classes_of_both():
    runs = [make_run("a"), make_run("b", Config(labels=OTHERS), scores={"miou": 0.4, "iou": {"sky": 0.3, "tree": 0.1}})]
    assert comparison.class_scores(runs) == {"sky": [None, 0.3]}
    assert comparison.format_differences(runs) == {"labels.name": ["three", "two"]}
    assert comparison.list_notes(runs)[0].startswith("The runs have different classes (a 3, b 2)")
    checkpoints = [dataclasses.replace(run, checkpoint="somewhere") for run in runs]
    with pytest.raises(ConfigError, match=r"a has 3 \(three\), and b has 2 \(two\)\. Use --images 0"):
        comparison.require_same_classes(checkpoints, 12)
    with pytest.raises(ConfigError, match="a has none yet"):
        comparison.require_same_classes(runs, 12)


def test_runs_on_different_images_are_not_evaluated():
    splits = [Split(Config(labels=LABELS), names, list) for names in (["1", "2"], ["1", "3", "4"])]
    with pytest.raises(DataError, match=r"'val' of b has other images \(3\) than that of a \(2\).*--root"):
        comparison.evaluate_runs([make_run("a"), make_run("b")], splits, 2, None)


def test_names_are_as_short_as_they_can_be():
    assert comparison._shorten(["/runs/a", "/runs/b"]) == ["a", "b"]
    assert comparison._shorten(["/x/run/best", "/y/run/best"]) == ["x/run/best", "y/run/best"]
    assert comparison._shorten(["/x/run/checkpoints/2", "/x/run/latest"]) == ["run/2", "run/latest"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN"], "cannot be compared. Give 2 to 8 runs"),
        (["RUN", "RUN/"], "is given twice"),
        (["RUN", "nowhere"], "`RUN` (='nowhere') does not exist"),
        (["RUN", "RUN/latest", "--images", "-1"], "`--images` (=-1)"),
        (["RUN", "RUN/latest", "--out", "."], "is a folder. Give a file path"),
    ],
)
def test_user_errors_are_reported(stored_run, monkeypatch, capsys, arguments, message):
    words = [word.replace("RUN", str(stored_run)) for word in arguments]
    code, output = run_cli(monkeypatch, capsys, "compare", *words)
    assert code == 2
    assert message in output
    assert output.count("error") == 1


def test_a_run_that_has_just_started_is_compared_without_an_evaluation(stored_run, tmp_path, monkeypatch, capsys):
    config = tiny_config()
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    start = Start(0, "", to_dict(config), "", 40, {}, {})
    write_start(str(tmp_path / "new"), start)
    (tmp_path / "new" / "metrics.jsonl").write_text(json.dumps({"step": 3, "kind": "train", "loss": 1.0}) + '\n{"step": 4, "ki')
    monkeypatch.setattr(comparison, "evaluate", None)
    page = tmp_path / "page.html"
    code, output = run_cli(monkeypatch, capsys, "compare", stored_run, tmp_path / "new", "--images", 0, "--out", page)
    assert code == 0, output
    for text in ("3 of 40", "50.00", "model.backbone", "new has no checkpoint yet", "run has no log"):
        assert text in output
    assert "training loss" in page.read_text()
    code, output = run_cli(monkeypatch, capsys, "compare", stored_run, tmp_path / "new", "--out", tmp_path / "none.html")
    assert code == 2
    assert "new has none yet. Use --images 0" in output
    assert not (tmp_path / "none.html").exists()


def test_the_images_are_introduced_once_and_logits_that_are_not_finite_reported(stored_run, tmp_path, monkeypatch, capsys):
    variables = restore_model(str(stored_run))
    variables["params"]["classifier"]["bias"][0] = np.nan
    save_model(str(tmp_path / "broken"), stored_config(str(stored_run)), variables)
    page = tmp_path / "page.html"
    code, output = run_cli(monkeypatch, capsys, "compare", stored_run, tmp_path / "broken", "--out", page)
    assert code == 0, output
    assert output.count("val: 3 samples from ") == 1
    assert output.count("WARNING: Some logits are infinite or not a number") == 1


def test_the_page_works_in_a_browser(chromium, stored_run, tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.html"
    config = stored_config(str(stored_run))
    save_model(str(tmp_path / "other"), config, random_variables(DeepLabV3(config.model, config.labels.num_classes)))
    code, output = run_cli(monkeypatch, capsys, "compare", stored_run, tmp_path / "other", "--out", page, "--images", 2)
    assert code == 0, output
    assert "Evaluating other, step 0, on val (3 images)" in output
    for scheme, width in (("light", 1200), ("dark", 390)):
        tab = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        requests, messages = [], []
        tab.on("request", lambda request, to=requests: to.append(request.url))
        tab.on("console", lambda message, to=messages: to.append(message.text))
        tab.goto(f"file://{page}")
        assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
        assert messages == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= width  # nothing overflows the viewport
        assert tab.locator("h1").inner_text() == "Comparison of run, other"
        assert tab.locator("table.classes tr").count() == 20
        assert tab.locator(".images img").count() % 5 == 0
        assert tab.locator(".images figure").count() >= 1
        assert tab.evaluate("[...document.images].every(x => x.naturalWidth > 0)")
        tab.close()
