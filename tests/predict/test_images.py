import dataclasses
import io

import jax
import numpy as np
import pytest
from conftest import deeplab, pixels, tiny_config
from PIL import Image
from rich.console import Console

from deeplab_jax import api
from deeplab_jax.errors import ConfigError
from deeplab_jax.models import DeepLabV3
from deeplab_jax.predict import images as running
from deeplab_jax.predict import video
from deeplab_jax.predict.images import Options, run
from deeplab_jax.predict.inputs import find_inputs


@pytest.fixture(scope="module")
def segmenter():
    config = tiny_config()
    variables = DeepLabV3(config.model, config.labels.num_classes).init(jax.random.key(0), np.zeros((1, 64, 64, 3)), False)
    return api.Segmenter(config, variables)


def photo(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def predict(segmenter, folder, out, **options):
    """The lines about what failed."""
    failures = []
    inputs, _ = find_inputs([str(folder)])
    run(segmenter, inputs, Options(str(out), **options), Console(file=io.StringIO()), failures.append)
    return failures


def test_results_are_those_of_the_segmenter_whatever_the_batch(segmenter, tmp_path):
    photos = {f"{i}": photo((32, 64), i) for i in range(3)} | {"sub/odd": photo((1, 1), 9)}
    for name, image in photos.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "broken.png").write_text("no image")
    failures = predict(segmenter, tmp_path / "in", tmp_path / "out", confidence=True, batch_size=2)
    assert [line.split()[0] for line in failures] == [str(tmp_path / "in" / "broken.png")]
    for name, image in photos.items():
        expected, confidence = segmenter.predict_with_confidence(image.transpose(2, 0, 1)[None])
        # Batches of other sizes may round differently.
        assert np.mean(pixels(tmp_path / "out" / "train_ids" / f"{name}.png") != expected[0]) < 0.01
        np.testing.assert_allclose(pixels(tmp_path / "out" / "confidence" / f"{name}.png"), confidence[0], atol=1)
        assert pixels(tmp_path / "out" / "overlay" / f"{name}.png").shape == image.shape
    probabilities = jax.nn.softmax(segmenter.logits(photos["0"].transpose(2, 0, 1)[None]), axis=1).max(1)
    np.testing.assert_allclose(pixels(tmp_path / "out" / "confidence" / "0.png"), 255 * probabilities[0], atol=1)


def test_few_programs_are_compiled(segmenter, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        api.Segmenter, "predict", lambda _, x: seen.append(x.shape) or np.zeros((len(x), *x.shape[2:]), np.uint8)
    )
    for i, size in enumerate([(4, 6), (6, 4), (4, 6), (4, 6), (6, 4), (4, 6), (4, 6)]):
        Image.fromarray(photo(size)).save(tmp_path / f"{i}.png")
    assert predict(segmenter, tmp_path, tmp_path / "out", batch_size=3) == []
    assert seen == [(3, 3, 4, 6), (3, 3, 4, 6), (2, 3, 6, 4)]


def test_a_large_image_goes_in_windows(segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "WINDOW", (32, 64))
    Image.fromarray(photo((40, 100))).save(tmp_path / "a.png")
    for name, limit in (("whole", 4000), ("windows", 3999)):
        assert predict(segmenter, tmp_path / "a.png", tmp_path / name, confidence=True, max_pixels=limit) == []
    whole, windows = (pixels(tmp_path / name / "confidence" / "a.png").astype(int) for name in ("whole", "windows"))
    assert whole.shape == windows.shape
    assert (whole != windows).any()
    assert np.abs(whole - windows).mean() < 40  # the windows see less around them


def test_images_that_turn_out_to_have_other_sizes_are_predicted(segmenter, tmp_path, monkeypatch):
    for name, size in (("a", (32, 64)), ("b", (64, 32))):
        Image.fromarray(photo(size)).save(tmp_path / f"{name}.png")
    monkeypatch.setattr(running.files, "read_size", lambda path: (32, 64))
    assert predict(segmenter, tmp_path, tmp_path / "out") == []
    assert pixels(tmp_path / "out" / "train_ids" / "b.png").shape == (64, 32)


def test_a_video_that_changes_its_size_is_a_failure(segmenter, tmp_path, monkeypatch):
    with video.write_video(tmp_path / "drive.mp4", (32, 64), fps=5) as add:
        for _ in range(4):
            add(photo((32, 64)))
    rotations = iter([0, 0, 90, 90])
    monkeypatch.setattr(video.np, "rot90", lambda frame, _: np.swapaxes(frame, 0, 1) if next(rotations) else frame)
    (failure,) = predict(segmenter, tmp_path, tmp_path / "out", batch_size=2)
    assert "drive.mp4 changes from (64, 32) to (32, 64) pixels" in failure
    assert not (tmp_path / "out" / "overlay" / "drive.mp4").exists()


def test_a_video_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"), video.write_video(tmp_path / "file" / "a.mp4", (32, 64), fps=5):
        pass


def test_a_folder_without_pictures_is_said(tmp_path, monkeypatch, capsys):
    (tmp_path / "notes.txt").write_text("no image")
    code, said = deeplab(monkeypatch, capsys, "predict", tmp_path, "--checkpoint", "run", "--out", tmp_path / "out")
    assert code == 2
    assert "holds no image or video" in said


@pytest.mark.parametrize("size", [(32, 64), (33, 65)])
def test_a_video_becomes_a_video(segmenter, tmp_path, size):
    with video.write_video(tmp_path / "drive.mp4", size, fps=5) as add:
        for i in range(3):
            add(np.full((*size, 3), 80 * i, np.uint8))
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "drive.mp4").read_bytes()[:300])
    failures = predict(segmenter, tmp_path, tmp_path / "out", batch_size=2)
    assert len(failures) == 1
    assert "cut.mp4 cannot be read" in failures[0]
    with video.open_video(tmp_path / "out" / "overlay" / "drive.mp4") as (fps, count, frames):
        assert (fps, count) == (5, 3)
        overlays = list(frames)
    with video.open_video(tmp_path / "drive.mp4") as (_, _, frames):
        originals = list(frames)
    assert abs(int(originals[2].mean()) - 160) < 5  # H.264 is not exact
    for i, (overlay, original) in enumerate(zip(overlays, originals, strict=True)):
        assert overlay.shape == original.shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
        ids = pixels(tmp_path / "out" / "train_ids" / "drive.mp4" / f"{i:06d}.png")
        np.testing.assert_array_equal(ids, segmenter.predict(original.transpose(2, 0, 1)[None])[0])


def test_the_command_says_what_failed_and_exits_with_1(segmenter, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(api, "load", lambda checkpoint: segmenter)
    Image.fromarray(photo((32, 64))).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no image")
    words = ("predict", tmp_path, "--checkpoint", "run", "--out", tmp_path / "out")
    code, said = deeplab(monkeypatch, capsys, *words, "--flip", "--scales", 0.5, 1, "--window", 32, 32)
    assert code == 0
    assert "1 of 1 predicted" in said
    assert "notes.txt" in said
    flipped = pixels(tmp_path / "out" / "train_ids" / "a.png")
    (tmp_path / "b [1].png").write_text("no image")
    code, said = deeplab(monkeypatch, capsys, *words)
    assert code == 1
    assert f"failed: {tmp_path / 'b [1].png'} cannot be read (it is no image)" in said
    assert (pixels(tmp_path / "out" / "train_ids" / "a.png") != flipped).any()


@pytest.mark.parametrize(
    ("runs", "words", "expected"), [(True, [], True), (True, ["--no-flip"], False), (False, ["--flip"], True)]
)
def test_a_runs_flip_can_be_switched_either_way(segmenter, tmp_path, monkeypatch, capsys, runs, words, expected):
    config = dataclasses.replace(segmenter.config, eval=dataclasses.replace(segmenter.config.eval, flip=runs))
    flips = []
    monkeypatch.setattr(api, "load", lambda checkpoint: api.Segmenter(config, segmenter.variables))
    monkeypatch.setattr(running, "run", lambda segmenter, *_: flips.append(segmenter.config.eval.flip))
    Image.fromarray(photo((8, 8))).save(tmp_path / "a.png")
    code, said = deeplab(monkeypatch, capsys, "predict", tmp_path / "a.png", *words, "--checkpoint", "run", "--out", tmp_path)
    assert code == 0, said
    assert flips == [expected]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--opacity", "2"], "`--opacity`"),
        (["--batch-size", "-1"], "`--batch-size`"),
        (["--scales", "0"], "`--scales`"),
        (["--window", "-1", "5"], "`--window`"),
        (["--output-stride", "5"], "--output-stride"),
        (["nowhere.png"], "`nowhere.png` names no file"),
    ],
)
def test_words_that_cannot_be_meant_are_one_line(segmenter, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.setattr(api, "load", lambda checkpoint: segmenter)
    Image.fromarray(photo((8, 8))).save(tmp_path / "a.png")
    code, said = deeplab(monkeypatch, capsys, "predict", tmp_path / "a.png", *words, "--checkpoint", "run", "--out", tmp_path)
    assert code == 2
    assert message in said
    assert len(said.strip().splitlines()) == 1
