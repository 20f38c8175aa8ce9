import json

import numpy as np
import pytest
from conftest import read_pixels, run_cli
from etils import epath
from rich.console import Console

from deeplab_jax.checkpoints.store import restore_model, save_model, stored_config
from deeplab_jax.config import Config
from deeplab_jax.errors import DataError
from deeplab_jax.evaluation.evaluate import EvaluatedImage
from deeplab_jax.evaluation.metrics import empty_totals
from deeplab_jax.evaluation.robustness import CLEAN, Robustness
from deeplab_jax.labels import LabelSet
from deeplab_jax.pages import charts, report
from deeplab_jax.pages.examples import WorstImages, list_confusions

LABELS = LabelSet(name="three", names=("road", "sky", "<sign>"), colors=((128, 64, 128), (70, 130, 180), (220, 220, 0)))
IGNORED = 255


def evaluated_image(index, label, prediction):
    """Return an evaluated image that is one pixel high."""
    label, prediction = np.array([label], np.uint8), np.array([prediction], np.uint8)
    return EvaluatedImage(index, np.full((*label.shape, 3), 100, np.uint8), prediction, label)


def test_only_the_requested_number_of_images_is_kept_worst_first():
    worst = WorstImages(["right", "half", "ignored", "wrong", "as wrong"], LABELS, 3)
    worst.add(evaluated_image(0, [0, 1], [0, 1]))
    worst.add(evaluated_image(1, [0, 1], [0, 0]))  # the two classes have IoUs of 1/2 and 0
    worst.add(evaluated_image(2, [IGNORED, IGNORED], [0, 1]))
    worst.add(evaluated_image(3, [0, 1], [1, 0]))
    worst.add(evaluated_image(4, [0, 1], [2, 2]))
    assert [(each.name, each.miou, each.pixel_accuracy) for each in worst.examples()] == [
        ("wrong", 0, 0),
        ("as wrong", 0, 0),
        ("half", 0.25, 0.5),
    ]
    assert worst.examples()[2].worst == 1


def test_a_class_that_is_only_predicted_does_not_count_in_the_miou():
    worst = WorstImages(["image"], LABELS, 1)
    worst.add(evaluated_image(0, [0, 0], [0, 2]))
    assert worst.examples()[0].miou == 0.5


def test_errors_are_red_and_ignored_pixels_are_black():
    worst = WorstImages(["image"], LABELS, 1)
    worst.add(evaluated_image(0, [0, 0, IGNORED], [0, 1, 1]))
    (example,) = worst.examples()
    np.testing.assert_array_equal(example.errors, [[[50, 50, 50], [255, 59, 48], [0, 0, 0]]])
    np.testing.assert_array_equal(example.truth[0, 0], LABELS.colors[0])
    np.testing.assert_array_equal(example.prediction[0, 1], LABELS.colors[1])


def test_confusions_are_given_as_shares_of_the_true_class():
    counts = np.array([[6, 2, 0], [10, 10, 0], [0, 0, 0]])
    assert list_confusions(counts, 5) == [(1, 0, 0.5), (0, 1, 0.25)]
    assert list_confusions(counts, 1) == [(1, 0, 0.5)]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1.7, [0, 0.5, 1, 1.5, 2]),
        (0, 918, [0, 250, 500, 750, 1000]),
        (0, 0, [0, 0.25, 0.5, 0.75, 1]),
        (3, 3, [3, 3.75, 4.5, 5.25, 6]),
    ],
)
def test_ticks_are_round_and_cover_the_values(low, high, expected):
    ticks = charts.choose_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 6
    if low != high:
        assert ticks == expected


def test_a_long_line_is_downsampled_to_means():
    points = [(step, float(step % 2)) for step in range(1, 1001)]
    assert charts.downsample(points, 100) == [(10 * i, 0.5) for i in range(1, 101)]
    assert charts.downsample(points[:3], 100) == points[:3]


def test_a_page_without_a_log_or_errors_says_so():
    totals = empty_totals(3)._replace(confusion=np.diag([4, 4, 0]))
    html = report.render_report("weights", Config(labels=LABELS), [], [], totals, 1, [], {})
    assert "There is no training log." in html
    assert "Every labelled pixel is predicted correctly." in html
    assert "&lt;sign&gt;" in html
    assert "<sign>" not in html


def test_scores_on_corrupted_images_are_shown_if_there_are_any():
    def scores(*iou):
        return {"miou": sum(iou) / 3, "iou": dict(zip(LABELS.names, iou, strict=True))}

    def render(results):
        totals = empty_totals(3)._replace(confusion=np.diag([4, 4, 0]))
        shown = report.describe_robustness(results, LABELS)
        return report.render_report("run", Config(labels=LABELS), [], [], totals, 1, [], {}, shown)

    settings = {"step": "4", "split": "val", "images": 2}
    cells = {CLEAN: scores(0.9, 0.6, 0.0), ("shot_noise", 1): scores(0.6, 0.6, 0.0), ("shot_noise", 3): scores(0.0, 0.3, 0.0)}
    html = render(Robustness(settings, cells))
    assert "step 4 on val, 2 images" in html
    assert "IoU of each class in per cent, mean over severities 1 and 3." in html
    # mIoUs of 0.4 and 0.1 are 20 % and 80 % below 0.5. A class that is lost completely is 70 % red.
    assert "<td>shot noise</td>" in html
    assert 'var(--bad) 14%, transparent)">40.0</td>' in html
    assert 'var(--bad) 56%, transparent)">10.0</td>' in html
    assert 'var(--bad) 47%, transparent)">30.0</td>' in html  # the road's mean, a third of 0.9
    other = LabelSet(name="other", names=("a", "b"), colors=((0, 0, 0), (1, 1, 1)))
    assert report.describe_robustness(Robustness(settings, cells), other) is None
    assert "Robustness" not in render(Robustness(settings))
    assert "Robustness" not in render(None)


def write_metrics_log(workdir):
    rows = [{"step": i, "kind": "train", "loss": 3 / i, "lr": 0.1, "images_per_second": 5.0} for i in (1, 2, 3, 4)]
    rows.append({"step": 4, "kind": "eval", "miou": 0.1, "pixel_accuracy": None})
    truncated_row = '{"step": 5, "ki'  # a crash can cut off the last row
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + truncated_row)


def test_the_report_page_works_in_a_browser(chromium, stored_run, tmp_path, monkeypatch, capsys):
    write_metrics_log(stored_run)
    code, output = run_cli(monkeypatch, capsys, "report", stored_run, "--out", tmp_path / "report.html", "--images", 2)
    assert code == 0, output
    assert "mIoU" in output
    for scheme, width in (("light", 1200), ("dark", 1200), ("light", 390)):
        tab = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        requests, messages = [], []
        tab.on("request", lambda request, to=requests: to.append(request.url))
        tab.on("console", lambda message, to=messages: to.append(message.text))
        tab.goto(f"file://{tmp_path}/report.html")
        assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
        assert messages == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= width  # nothing overflows the viewport
        assert tab.locator("svg").count() == 5
        assert tab.locator(".bar").count() == 19
        assert tab.locator("tr:has(.bar)").nth(0).locator("td").count() == 8
        assert tab.locator(".worst figure").count() == 2
        assert tab.evaluate("[...document.images].every(x => x.naturalWidth > 0)")
        assert tab.locator("h1").inner_text() == "run, step 4"
        tab.screenshot(path=tmp_path / "page.png")
        background = read_pixels(tmp_path / "page.png")[0, 0, :3]
        assert (background.mean() > 128) == (scheme == "light")
        tab.locator("summary").click()
        assert "backbone" in tab.locator("pre").inner_text()
        tab.close()


def test_the_images_are_introduced_and_logits_that_are_not_finite_reported(stored_run, tmp_path, monkeypatch, capsys):
    variables = restore_model(str(stored_run))
    variables["params"]["classifier"]["bias"][0] = np.nan
    save_model(str(tmp_path / "broken"), stored_config(str(stored_run)), variables)
    code, output = run_cli(monkeypatch, capsys, "report", tmp_path / "broken", "--out", tmp_path / "report.html")
    assert code == 0, output
    assert "val: 3 samples from " in output
    assert "WARNING: Some logits are infinite or not a number" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "-1"], "`--images` (=-1)"),
        (["--root", "nowhere"], "`--root` (='nowhere')"),
        (["--split", "test"], "test"),
    ],
)
def test_user_errors_print_one_line_and_leave_no_file(stored_run, tmp_path, monkeypatch, capsys, arguments, message):
    code, output = run_cli(monkeypatch, capsys, "report", stored_run, "--out", tmp_path / "report.html", *arguments)
    assert code == 2
    assert output.splitlines()[-1].startswith("error: ")
    assert message in output
    assert output.count("error") == 1
    assert not (tmp_path / "report.html").exists()


def test_an_unwritable_output_is_reported_before_any_work(stored_run, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    for out, message in (
        (tmp_path, "is a folder. Give a file path"),
        (tmp_path / "file" / "a.html", "file, which is a file"),
    ):
        code, output = run_cli(monkeypatch, capsys, "report", stored_run, "--out", out)
        assert code == 2
        assert message in output


def test_a_damaged_robustness_file_is_reported_before_the_evaluation(tmp_path, monkeypatch):
    (tmp_path / "robustness").mkdir()
    (tmp_path / "robustness" / "robustness.json").write_text("{")
    monkeypatch.setattr(report, "restore_model", lambda *_, **__: pytest.fail("the checkpoint was read first"))
    checkpoint = epath.Path(tmp_path / "checkpoints" / "4")
    with pytest.raises(DataError, match=r"robustness\.json.*Delete it"):
        report.write_report(Config(), "run", checkpoint, str(tmp_path / "report.html"), [], [], 1, Console(quiet=True))
