import dataclasses
import io
import os
from fractions import Fraction

import jax
import numpy as np
import pytest
from conftest import random_variables, read_pixels, run_cli, tiny_config, tiny_model
from PIL import Image
from rich.console import Console

from deeplab_jax import api
from deeplab_jax.checkpoints import paths
from deeplab_jax.errors import ConfigError
from deeplab_jax.models import DeepLabV3
from deeplab_jax.predict import images as predict_module
from deeplab_jax.predict import video
from deeplab_jax.predict.images import Options, Share, run
from deeplab_jax.predict.inputs import find_inputs


@pytest.fixture(scope="module")
def segmenter():
    config = tiny_config(model=tiny_model())
    return api.Segmenter(config, random_variables(DeepLabV3(config.model, config.labels.num_classes)))


def draw_photo(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def predict(segmenter, folder, out, **options):
    """Predict a file or folder and return the failure messages."""
    failures = []
    inputs, _ = find_inputs([str(folder)])
    run(segmenter, inputs, Options(str(out), **options), Console(file=io.StringIO()), failures.append)
    return failures


@pytest.mark.slow
def test_results_equal_those_of_the_segmenter_for_any_batch_size(segmenter, tmp_path):
    photos = {f"{i}": draw_photo((32, 64), i) for i in range(3)} | {"sub/odd": draw_photo((1, 1), 9)}
    for name, image in photos.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "broken.png").write_text("not an image")
    failures = predict(segmenter, tmp_path / "in", tmp_path / "out", confidence=True, batch_size=2)
    assert [line.split()[0] for line in failures] == [str(tmp_path / "in" / "broken.png")]
    for name, image in photos.items():
        expected, confidence = segmenter.predict_with_confidence(image.transpose(2, 0, 1)[None])
        # Rounding can differ between batch sizes.
        assert np.mean(read_pixels(tmp_path / "out" / "train_ids" / f"{name}.png") != expected[0]) < 0.01
        np.testing.assert_allclose(read_pixels(tmp_path / "out" / "confidence" / f"{name}.png"), confidence[0], atol=1)
        assert read_pixels(tmp_path / "out" / "overlay" / f"{name}.png").shape == image.shape
    probabilities = jax.nn.softmax(segmenter.logits(photos["0"].transpose(2, 0, 1)[None]), axis=1).max(1)
    np.testing.assert_allclose(read_pixels(tmp_path / "out" / "confidence" / "0.png"), 255 * probabilities[0], atol=1)


def test_images_of_different_sizes_share_standard_canvases(segmenter, tmp_path, monkeypatch):
    shapes = []

    def run(_, function, images, canvas):
        shapes.append((canvas.size, [image.shape[:2] for image in images]))
        return [np.zeros(image.shape[:2], np.uint8) for image in images]

    monkeypatch.setattr(api.Segmenter, "run", run)
    for i, size in enumerate([(4, 6), (70, 4), (4, 6), (5, 9), (6, 64)]):
        Image.fromarray(draw_photo(size)).save(tmp_path / f"{i}.png")
    assert predict(segmenter, tmp_path, tmp_path / "out", batch_size=3) == []
    # The last batch is padded with a copy.
    assert shapes == [
        ((64, 64), [(4, 6), (4, 6), (5, 9)]),
        ((64, 64), [(6, 64), (6, 64), (6, 64)]),
        ((128, 64), [(70, 4)]),
    ]
    for i, size in enumerate([(4, 6), (70, 4), (4, 6), (5, 9), (6, 64)]):
        assert read_pixels(tmp_path / "out" / "train_ids" / f"{i}.png").shape == size


def test_a_large_image_is_processed_in_windows(segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr(predict_module, "WINDOW", (32, 64))
    Image.fromarray(draw_photo((40, 100))).save(tmp_path / "a.png")
    for name, limit in (("full", 4000), ("windows", 3999)):
        assert predict(segmenter, tmp_path / "a.png", tmp_path / name, confidence=True, max_pixels=limit) == []
    full, windows = (read_pixels(tmp_path / name / "confidence" / "a.png").astype(int) for name in ("full", "windows"))
    assert full.shape == windows.shape
    assert (full != windows).any()
    assert np.abs(full - windows).mean() < 40  # not equal, because a window has less context


def test_images_with_a_wrong_size_in_the_header_are_predicted(segmenter, tmp_path, monkeypatch):
    for name, size in (("a", (32, 64)), ("b", (64, 32))):
        Image.fromarray(draw_photo(size)).save(tmp_path / f"{name}.png")
    monkeypatch.setattr(predict_module.files, "read_size", lambda path: (32, 64))
    assert predict(segmenter, tmp_path, tmp_path / "out") == []
    assert read_pixels(tmp_path / "out" / "train_ids" / "b.png").shape == (64, 32)


def test_a_video_that_changes_its_size_is_reported(segmenter, tmp_path, monkeypatch):
    with video.write_video(tmp_path / "drive.mp4", (32, 64), fps=5) as add:
        for i in range(4):
            add(i / 5, draw_photo((32, 64)))
    rotations = iter([0, 0, 90, 90])
    monkeypatch.setattr(video.np, "rot90", lambda frame, _: np.swapaxes(frame, 0, 1) if next(rotations) else frame)
    (failure,) = predict(segmenter, tmp_path, tmp_path / "out", batch_size=2)
    assert "drive.mp4 changes from (64, 32) to (32, 64) pixels" in failure
    assert not (tmp_path / "out" / "overlay" / "drive.mp4").exists()


def test_the_frames_of_an_overlay_have_the_times_of_the_video(segmenter, tmp_path):
    times = [0, 0.2, 0.4, 0.5, 0.51, 2.0]
    with video.write_video(tmp_path / "screen.mp4", (32, 64), fps=5) as add:
        for time in times:
            add(time, draw_photo((32, 64)))
    assert predict(segmenter, tmp_path, tmp_path / "out", batch_size=2) == []
    with video.open_video(tmp_path / "out" / "overlay" / "screen.mp4") as result:
        assert [time for time, _ in result.frames] == pytest.approx(times, abs=1e-4)  # a tick of the video has 1/90,000 s


def test_an_overlay_has_the_pixel_aspect_of_the_video(segmenter, tmp_path):
    with video.write_video(tmp_path / "hdv.mp4", (32, 64), 5, Fraction(4, 3)) as add:
        add(0.0, draw_photo((32, 64)))
    assert predict(segmenter, tmp_path, tmp_path / "out") == []
    with video.open_video(tmp_path / "out" / "overlay" / "hdv.mp4") as result:
        assert result.pixel_aspect == Fraction(4, 3)


def test_large_frames_are_seen_in_windows_as_large_images_are(segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr(predict_module, "WINDOW", (32, 64))
    with video.write_video(tmp_path / "drive.mp4", (64, 96), fps=5) as add:
        add(0.0, draw_photo((64, 96)))
    with video.open_video(tmp_path / "drive.mp4") as source:
        Image.fromarray(next(source.frames)[1]).save(tmp_path / "frame.png")
    assert predict(segmenter, tmp_path, tmp_path / "out", max_pixels=6000) == []
    frame = read_pixels(tmp_path / "out" / "train_ids" / "drive.mp4" / "000000.png")
    np.testing.assert_array_equal(frame, read_pixels(tmp_path / "out" / "train_ids" / "frame.png"))
    assert (frame != segmenter.predict(np.asarray(Image.open(tmp_path / "frame.png")).transpose(2, 0, 1)[None])[0]).any()


def test_no_frame_of_an_earlier_longer_video_is_left(segmenter, tmp_path):
    for count in (5, 2):
        with video.write_video(tmp_path / "drive.mp4", (32, 64), fps=5) as add:
            for i in range(count):
                add(i / 5, draw_photo((32, 64)))
        assert predict(segmenter, tmp_path / "drive.mp4", tmp_path / "out") == []
    for kind in ("train_ids", "color"):
        assert sorted(path.name for path in (tmp_path / "out" / kind).rglob("*.png")) == ["000000.png", "000001.png"]


def test_a_video_with_a_damaged_part_keeps_its_other_frames(segmenter, tmp_path):
    with video.write_video(tmp_path / "drive.mp4", (32, 64), fps=5) as add:
        for i in range(8):
            add(i / 5, np.random.default_rng(i).integers(0, 256, (32, 64, 3), np.uint8))
    with video.require_av().open(str(tmp_path / "drive.mp4")) as container:
        position = [packet.pos for packet in container.demux(video=0) if packet.size][-2]
    data = bytearray((tmp_path / "drive.mp4").read_bytes())
    data[position : position + 4] = b"\xff" * 4
    (tmp_path / "drive.mp4").write_bytes(data)
    (failure,) = predict(segmenter, tmp_path, tmp_path / "out", batch_size=2)
    assert "drive.mp4 has damaged parts (1). Some frames are missing" in failure
    with video.open_video(tmp_path / "out" / "overlay" / "drive.mp4") as result:
        assert len(list(result.frames)) == 7


def test_a_video_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Cannot write"), video.write_video(tmp_path / "file" / "a.mp4", (32, 64), fps=5):
        pass


def test_a_build_of_ffmpeg_without_the_encoder_is_reported_before_any_work(segmenter, tmp_path, monkeypatch):
    (tmp_path / "drive.mp4").touch()
    monkeypatch.setattr("av.codecs_available", {"mpeg4"})
    with pytest.raises(ConfigError, match=r"libx264.* Run `pip install --force-reinstall av`"):
        predict(segmenter, tmp_path, tmp_path / "out")


def test_a_folder_without_images_is_reported(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.heic").write_text("not read")
    code, output = run_cli(monkeypatch, capsys, "predict", tmp_path, "--checkpoint", "run", "--out", tmp_path / "out")
    assert code == 2
    assert f"contains no image or video, only {tmp_path}/a.heic. Give files with one of the suffixes .3gp, .avi, " in output


@pytest.mark.parametrize("size", [(32, 64), (33, 65)])
def test_a_video_gets_an_overlay_video_and_a_label_map_per_frame(segmenter, tmp_path, size):
    with video.write_video(tmp_path / "drive.mp4", size, fps=5) as add:
        for i in range(3):
            add(i / 5, np.full((*size, 3), 80 * i, np.uint8))
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "drive.mp4").read_bytes()[:300])
    failures = predict(segmenter, tmp_path, tmp_path / "out", batch_size=2)
    assert len(failures) == 1
    assert "cut.mp4 cannot be read" in failures[0]
    with video.open_video(tmp_path / "out" / "overlay" / "drive.mp4") as result:
        assert (result.fps, result.count) == (5, 3)
        overlays = [frame for _, frame in result.frames]
    with video.open_video(tmp_path / "drive.mp4") as source:
        originals = [frame for _, frame in source.frames]
    assert abs(int(originals[2].mean()) - 160) < 5  # H.264 is lossy
    for i, (overlay, original) in enumerate(zip(overlays, originals, strict=True)):
        assert overlay.shape == original.shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
        ids = read_pixels(tmp_path / "out" / "train_ids" / "drive.mp4" / f"{i:06d}.png")
        np.testing.assert_array_equal(ids, segmenter.predict(original.transpose(2, 0, 1)[None])[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_frames_are_read_as_images_are(segmenter, tmp_path, monkeypatch, channels):
    seen = []

    def run(_, function, images, canvas):
        seen.extend(images)
        return [np.zeros(image.shape[:2], np.uint8) for image in images]

    monkeypatch.setattr(api.Segmenter, "run", run)
    data = dataclasses.replace(segmenter.config.data, channels=channels, value_range=(0, 127.5))
    with video.write_video(tmp_path / "drive.mp4", (32, 64), fps=5) as add:
        add(0, np.full((32, 64, 3), (40, 60, 80), np.uint8))
    with video.open_video(tmp_path / "drive.mp4") as source:
        Image.fromarray(next(source.frames)[1]).save(tmp_path / "frame.png")
    narrow = api.Segmenter(dataclasses.replace(segmenter.config, data=data), {})
    assert predict(narrow, tmp_path, tmp_path / "out") == []
    image, frame = seen
    assert image.shape == (32, 64, channels)
    np.testing.assert_array_equal(frame, image)
    assert abs(int(frame[0, 0, 0]) - (80 if channels == 3 else 113)) < 8  # twice the values; H.264 is lossy


@pytest.mark.slow
def test_the_command_reports_failures_and_exits_with_1(segmenter, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(api, "load", lambda checkpoint: segmenter)
    monkeypatch.setattr(paths, "resolve", lambda checkpoint: checkpoint)
    Image.fromarray(draw_photo((32, 64))).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("not an image")
    arguments = ("predict", tmp_path, "--checkpoint", "run", "--out", tmp_path / "out")
    code, output = run_cli(monkeypatch, capsys, *arguments, "--flip", "--scales", 0.5, 1, "--window", 32, 32)
    assert code == 0
    assert "Segmented 1 of 1 files" in output
    assert "notes.txt" in output
    flipped = read_pixels(tmp_path / "out" / "train_ids" / "a.png")
    (tmp_path / "b [1].png").write_text("not an image")
    for name in (b"\xff.png", b"\xff.txt"):  # not UTF-8
        (tmp_path / os.fsdecode(name)).write_text("not an image")
    code, output = run_cli(monkeypatch, capsys, *arguments)
    assert code == 1
    assert f"failed: {tmp_path / 'b [1].png'} cannot be read (it is not an image)" in output
    assert f"failed: {tmp_path}/\\udcff.png cannot be read" in output
    assert (read_pixels(tmp_path / "out" / "train_ids" / "a.png") != flipped).any()


def test_shards_write_the_files_that_one_process_writes(segmenter, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(api, "load", lambda checkpoint: segmenter)
    monkeypatch.setattr(paths, "resolve", lambda checkpoint: checkpoint)
    for i, size in enumerate([(32, 64), (20, 30), (32, 64), (32, 64), (40, 60), (20, 30), (32, 64)]):
        Image.fromarray(draw_photo(size, i)).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_text("not an image")

    def predict_shard(out, *arguments):
        words = ("predict", f"{tmp_path}/*.png", "--checkpoint", "run", "--batch-size", 2, "--out", tmp_path / out)
        return run_cli(monkeypatch, capsys, *words, *arguments)

    def read_files(out):
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.*g") if path.is_file()}

    predict_shard("alone")
    (code_2, output_2), (code_1, output_1) = (predict_shard("shards", "--shard", f"{number}/2") for number in (2, 1))
    assert sorted([code_1, code_2]) == [0, 1]  # one of them has the broken file
    assert "Shard 1 of 2 is not done yet." in output_2
    assert "All 2 shards are done, with 8 files in total." in output_1
    assert len(read_files(tmp_path / "shards")) == 3 * 7
    assert read_files(tmp_path / "shards") == read_files(tmp_path / "alone")


@pytest.mark.parametrize(
    ("default", "arguments", "expected"), [(True, [], True), (True, ["--no-flip"], False), (False, ["--flip"], True)]
)
def test_flip_overrides_the_setting_of_the_run(segmenter, tmp_path, monkeypatch, capsys, default, arguments, expected):
    config = dataclasses.replace(segmenter.config, eval=dataclasses.replace(segmenter.config.eval, flip=default))
    flips = []
    monkeypatch.setattr(api, "load", lambda checkpoint: api.Segmenter(config, segmenter.variables))
    monkeypatch.setattr(paths, "resolve", lambda checkpoint: checkpoint)
    monkeypatch.setattr(predict_module, "run", lambda segmenter, *_: flips.append(segmenter.config.eval.flip) or Share(1, ""))
    Image.fromarray(draw_photo((8, 8))).save(tmp_path / "a.png")
    code, output = run_cli(
        monkeypatch, capsys, "predict", tmp_path / "a.png", *arguments, "--checkpoint", "run", "--out", tmp_path
    )
    assert code == 0, output
    assert flips == [expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--opacity", "2"], "`--opacity`"),
        (["--batch-size", "-1"], "`--batch-size`"),
        (["--scales", "0"], "`--scales`"),
        (["--window", "-1", "5"], "`--window`"),
        (["--output-stride", "5"], "--output-stride"),
        (["--shard", "3/2"], "`--shard`"),
        (["nowhere.png"], "`nowhere.png` does not match any file"),
    ],
)
def test_invalid_arguments_are_reported_on_one_line(segmenter, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(api, "load", lambda checkpoint: segmenter)
    monkeypatch.setattr(paths, "resolve", lambda checkpoint: checkpoint)
    Image.fromarray(draw_photo((8, 8))).save(tmp_path / "a.png")
    code, output = run_cli(
        monkeypatch, capsys, "predict", tmp_path / "a.png", *arguments, "--checkpoint", "run", "--out", tmp_path
    )
    assert code == 2
    assert message in output
    assert len(output.strip().splitlines()) == 1
