import io
import json
import pathlib
import shutil

import numpy as np
import pytest
from conftest import CONFIGS, load_tiny_recipe, read_log_rows, read_pixels
from PIL import Image
from rich.console import Console

import deeplab_jax as dl
from deeplab_jax.checkpoints.store import restore_model, save_model, stored_config
from deeplab_jax.commands.evaluate import score_checkpoint
from deeplab_jax.commands.flags import load_recipe
from deeplab_jax.errors import CheckpointError, ConfigError, DataError

# ml_collections uses a deprecated function to load recipes.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def evaluate(config, checkpoint, output=None, submission=None):
    """Run the evaluation and return what eval.py would print."""
    console = Console(file=io.StringIO(), soft_wrap=True, highlight=False, width=200)
    score_checkpoint(config, str(checkpoint), output and str(output), submission and str(submission), console)
    return console.file.getvalue()


@pytest.mark.slow
def test_evaluation_with_the_stored_config_gives_the_logged_score(finished_run, street_scenes, tmp_path):
    config = load_recipe(f"{CONFIGS / 'stored.py'}:{finished_run}", [f"data.root={street_scenes}"])
    evaluate(config, finished_run, tmp_path)
    assert json.loads((tmp_path / "scores.json").read_text())["miou"] == read_log_rows(finished_run, "eval")[-1]["miou"]


@pytest.mark.slow
def test_a_recipe_with_another_output_stride_gives_the_score_of_training(finished_run, street_scenes, tmp_path):
    trained = load_recipe(f"{CONFIGS / 'stored.py'}:{finished_run}", []).model.output_stride
    config = load_tiny_recipe(street_scenes, f"model.output_stride={8 if trained != 8 else 16}", "eval.flip=False")
    output = evaluate(config, finished_run, tmp_path)
    assert f"is {trained} in the checkpoint, whose value is used. Set `eval.output_stride` for another one." in output
    assert "eval.flip" not in output
    assert json.loads((tmp_path / "scores.json").read_text())["miou"] == read_log_rows(finished_run, "eval")[-1]["miou"]
    config = load_tiny_recipe(street_scenes, "eval.flip=True", f"eval.output_stride={8 if trained != 8 else 16}")
    output = evaluate(config, finished_run, tmp_path)
    assert "`eval.flip` (=True) is False in the checkpoint, so scores can differ from those of training." in output
    assert json.loads((tmp_path / "scores.json").read_text())["miou"] != read_log_rows(finished_run, "eval")[-1]["miou"]


def test_missing_instances_are_explained_and_wrong_names_are_not_submitted(finished_run, street_scenes, tmp_path):
    copy = tmp_path / "set"
    shutil.copytree(street_scenes, copy)
    next((copy / "gtFine" / "val").rglob("*instanceIds.png")).unlink()
    output = evaluate(load_tiny_recipe(copy), finished_run)
    assert "iIoU is not computed: 1 of 3 instanceIds files are missing" in output
    assert "Scores by category" in output
    image = next((copy / "leftImg8bit" / "test").rglob("*.png"))
    image.rename(image.with_name("a.png"))
    (copy / "list" / "test.lst").unlink()
    with pytest.raises(DataError, match=r"a\.png cannot be submitted") as caught:
        evaluate(load_tiny_recipe(copy, "eval.split=test"), finished_run, submission=tmp_path / "s")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s").exists()


def test_a_split_without_labels_gives_images_but_no_scores(finished_run, street_scenes, tmp_path):
    config, best = load_tiny_recipe(street_scenes, "eval.split=test", "eval.output_stride=16"), finished_run / "best"
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "scores.json").write_text('{"miou": 0.5}')  # from an evaluation of another split
    assert "mIoU" not in evaluate(config, best, tmp_path / "o", tmp_path / "ids")
    assert not (tmp_path / "o" / "scores.json").exists()
    assert len(list((tmp_path / "o" / "overlay").rglob("*.png"))) == 2
    assert len(list((tmp_path / "ids").glob("canvasdorf_*_pred_labelIds.png"))) == 2
    with pytest.raises(ConfigError, match="Use --output"):
        evaluate(config, best)


def test_logits_that_are_not_finite_are_reported(finished_run, street_scenes, tmp_path):
    variables = restore_model(str(finished_run))
    variables["params"]["classifier"]["bias"][0] = np.nan
    save_model(str(tmp_path / "run"), stored_config(str(finished_run)), variables)
    output = evaluate(load_tiny_recipe(street_scenes), tmp_path / "run")
    assert "WARNING: Some logits are infinite or not a number, so the loss is not finite and the scores mean nothing." in output


def test_images_that_differ_only_in_the_suffix_have_their_own_predictions(finished_run, tmp_path):
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "test.lst").write_text("a.png\na.jpg\nb.png\n")
    for name in ("a.png", "a.jpg", "b.png"):
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    evaluate(load_tiny_recipe(tmp_path, "eval.split=test"), finished_run, tmp_path / "o")
    assert sorted(path.name for path in (tmp_path / "o" / "color").iterdir()) == ["a.jpg.png", "a.png.png", "b.png"]


def test_the_segmenter_uses_nchw_and_agrees_with_the_evaluation(finished_run, street_scenes, tmp_path):
    evaluate(load_tiny_recipe(street_scenes), finished_run, tmp_path)
    segmenter = dl.load(str(finished_run))
    path = next((street_scenes / "leftImg8bit" / "val").rglob("*.png"))
    image = read_pixels(path).transpose(2, 0, 1)[None]
    labels = segmenter.predict(image)
    written = tmp_path / "train_ids" / path.relative_to(street_scenes)
    np.testing.assert_array_equal(labels[0], read_pixels(written))
    logits = segmenter.logits(image)
    assert logits.shape == (1, 19, 64, 128)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits.argmax(1), labels)
    assert segmenter.label_set.names[13] == "car"
    assert segmenter.predict(np.zeros((2, 3, 1, 7), np.uint8)).shape == (2, 1, 7)
    with pytest.raises(dl.DataError, match=r"`images` \(=float32 \[1, 3, 4, 4\]\) cannot be used"):
        segmenter.predict(np.zeros((1, 3, 4, 4), np.float32))


def test_user_errors_are_reported_on_one_line(finished_run, street_scenes):
    config = load_tiny_recipe(street_scenes)
    eleven = load_recipe(str(CONFIGS / "camvid_r18.py"), [f"data.root={street_scenes}"])
    for error, message, arguments in (
        (CheckpointError, r"11 classes.*19 classes", (eleven, finished_run)),
        (CheckpointError, r"`checkpoint` \(='nowhere'\) does not exist", (config, "nowhere")),
        (ConfigError, r"`--output` \(='a/b'\) is inside the --submission folder", (config, finished_run, "a/b", "a")),
        (
            ConfigError,
            r"`--output` \(='./a'\) is inside the --submission",
            (config, finished_run, "./a", pathlib.Path("a").absolute()),
        ),
    ):
        with pytest.raises(error, match=message) as caught:
            evaluate(*arguments)
        assert "\n" not in str(caught.value)
