import os
import pathlib
import re

import numpy as np
import pytest
import tifffile
from PIL import Image

from deeplab_jax.data.folders import list_files
from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.predict import inputs

RAMP = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 12


def save(path, image=None, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.fromarray(RAMP)).save(path, **how)
    return path


def find_names(*arguments):
    """Return a dict mapping each input's path to its result name."""
    found, _ = inputs.find_inputs([str(argument) for argument in arguments])
    return {str(each.path): each.name for each in found}


def test_files_folders_and_patterns_are_found_and_named(tmp_path):
    files = [save(tmp_path / name) for name in ("x/a.png", "x/deep/b.jpg", "x/deep/b.png", "c.bmp")]
    (tmp_path / "x" / "notes.txt").write_text("not an image")
    (tmp_path / "x" / ".hidden.png").write_text("")
    folder = {str(files[0]): "a", str(files[1]): "deep/b.jpg", str(files[2]): "deep/b.png"}
    assert find_names(tmp_path / "x") == folder
    assert find_names(tmp_path / "x" / "**" / "*.*") == folder
    assert find_names(files[3], tmp_path / "x" / "d*" / "*.jpg") == {str(files[3]): "c", str(files[1]): "deep/b"}
    assert inputs.find_inputs([str(tmp_path / "x")])[1] == (tmp_path / "x" / "notes.txt",)
    assert find_names(tmp_path / "x" / "notes.txt") != {}  # a file named directly is used, whatever its suffix


def test_result_names_are_unique_and_stay_in_the_output_folder(tmp_path, monkeypatch):
    one, other = save(tmp_path / "one" / "a.png"), save(tmp_path / "other" / "a.png")
    save(tmp_path / "one" / "drive" / "000000.png")
    (tmp_path / "one" / "drive.mp4").write_text("")
    monkeypatch.chdir(tmp_path / "other")
    for arguments in ((one, other, one), ("../one/a.png", "a.png", one), ("../one", ".")):
        results = [pathlib.PurePath(name) for name in find_names(*arguments).values()]
        assert len(results) == len(set(results)) == (4 if "." in arguments else 2)
        assert not [name for name in results if name.is_absolute() or ".." in name.parts]
        # A video's frame folder must not contain any other results.
        assert not [name for name in results for other in results if name in other.parents]


def test_the_folders_that_training_passes_over_are_not_inputs(tmp_path):
    for name in ("a.jpg", "._a.jpg", "@eaDir/a.jpg", ".ipynb_checkpoints/a.jpg", "__MACOSX/a.jpg", "b/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_files(tmp_path) == ["a.jpg", "b/c.jpg"]
    for argument in (str(tmp_path), f"{tmp_path}/**/*.jpg"):
        found, _ = inputs.find_inputs([argument])
        assert [each.name for each in found] == ["a", "b/c"]


def test_results_and_hidden_folders_are_not_inputs(tmp_path):
    photo = save(tmp_path / "a.png")
    for folder in ("out/overlay", ".thumbnails/x"):
        save(tmp_path / folder / "a.png")
    found, others = inputs.find_inputs([str(tmp_path)], str(tmp_path / "out"))
    assert [each.path for each in found] == [photo]
    assert others == ()


def test_images_beside_their_results_are_inputs(tmp_path):
    photo, _ = save(tmp_path / "photos" / "a.png"), save(tmp_path / "photos" / "overlay" / "a.png")
    found, _ = inputs.find_inputs([str(tmp_path / "photos")], str(tmp_path / "photos"))
    assert [each.path for each in found] == [photo]


@pytest.mark.parametrize("argument", ["color/a.png", "color", "color/*.png", "link.png", "../photos/overlay/a.mp4"])
def test_files_that_results_could_replace_are_refused(tmp_path, monkeypatch, argument):
    save(tmp_path / "photos" / "color" / "a.png")
    (tmp_path / "photos" / "overlay").mkdir()
    (tmp_path / "photos" / "overlay" / "a.mp4").touch()
    (tmp_path / "photos" / "link.png").symlink_to("color/a.png")
    (tmp_path / "same").symlink_to("photos")
    monkeypatch.chdir(tmp_path / "photos")
    for out in (".", "../same"):
        with pytest.raises(ConfigError, match=rf"^`{re.escape(argument)}` .* `--out` \(='{out}'\)"):
            inputs.find_inputs([argument], out)
    assert len(inputs.find_inputs([argument], "elsewhere")[0]) == 1


def test_inputs_whose_results_would_replace_each_other_are_refused(tmp_path):
    for name in ("a.mov", "a.mov.mp4", "b.mp4", "frames/b.mp4/000000.png", "c/d.mov"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for arguments in (["a.mov", "a.mov.mp4"], ["b.mp4", "frames"]):
        paths = [str(tmp_path / name) for name in arguments]
        with pytest.raises(ConfigError, match=rf"{tmp_path}/{arguments[0]} and {tmp_path}/{arguments[1]}.* Rename"):
            inputs.find_inputs(paths)
    assert len(find_names(tmp_path / "a.mov.mp4", tmp_path / "c", tmp_path / "frames")) == 3


@pytest.mark.parametrize("argument", ["nowhere*.png", "", "~nobody-of-that-name/a.png", "x" * 5000])
def test_an_argument_without_files_is_reported(argument):
    with pytest.raises(ConfigError, match="does not match any file"):
        inputs.find_inputs([argument])


def test_a_folder_without_files_is_reported(tmp_path):
    (tmp_path / "photos" / "inner").mkdir(parents=True)
    with pytest.raises(ConfigError, match="photos` has no files"):
        inputs.find_inputs([str(tmp_path / "photos")])


def test_a_pipe_is_reported(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"is a pipe.* Save the data to a file first"):
        inputs.find_inputs([f"{tmp_path}/a.png"])


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1", "CMYK"])
def test_all_image_modes_are_converted_to_rgb(tmp_path, mode):
    image = Image.fromarray(RAMP).convert(mode)
    path = save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), image)
    np.testing.assert_array_equal(inputs.read_image(path), np.asarray(image.convert("RGB")))
    assert inputs.read_size(path) == (2, 3)


def test_sixteen_bit_values_are_reduced_to_the_upper_eight_bits(tmp_path):
    values = np.array([[0, 255, 256], [32768, 65535, 513]], np.uint16)
    read = inputs.read_image(save(tmp_path / "a.png", Image.fromarray(values)))
    np.testing.assert_array_equal(read, np.repeat([[[0], [0], [1]], [[128], [255], [2]]], 3, axis=2))


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_rotated_according_to_exif(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[274] = orientation
    path = save(tmp_path / f"a.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    mirrored = RAMP[:, ::-1] if orientation in (2, 4, 5, 7) else RAMP
    turns = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}[orientation]
    expected = np.rot90(mirrored, turns)
    np.testing.assert_array_equal(inputs.read_image(path), expected)
    assert inputs.read_size(path) == expected.shape[:2]


def test_files_that_cannot_be_read_are_reported(tmp_path):
    text = tmp_path / "a.png"
    text.write_text("not an image")
    for read in (inputs.read_image, inputs.read_size):
        with pytest.raises(DataError, match=r"a\.png cannot be read \(it is not an image\)"):
            read(text)
    jpeg = save(tmp_path / "b.jpg", Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))
    jpeg.write_bytes(jpeg.read_bytes()[:1500])
    with pytest.raises(DataError, match=r"b\.jpg cannot be read \(.*truncated"):
        inputs.read_image(jpeg)
    png = save(tmp_path / "d.png", Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))
    png.write_bytes(png.read_bytes()[:3000])
    assert inputs.read_size(png) == (64, 64)  # the header is intact
    with pytest.raises(DataError, match=r"d\.png cannot be read \(.*truncated"):
        inputs.read_image(png)
    with pytest.raises(DataError, match="no fixed range"):
        inputs.read_image(save(tmp_path / "c.tif", Image.fromarray(np.ones((2, 2), np.float32))))


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (np.zeros((8, 8), np.float32), "holds float32 values, which have no fixed range"),
        (np.zeros((8, 8, 5), np.uint8), "has 5 bands, but `data.channels` is 3"),
        (np.zeros((8, 8, 4), np.uint8), "has 4 bands, of which `data.channels` (=3) would drop the last one"),
    ],
)
def test_images_of_another_kind_are_to_be_converted(tmp_path, values, fault):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig")
    with pytest.raises(DataError) as error:
        inputs.read_image(path)
    assert str(error.value) == f"{path} {fault}. Convert it to the format of the training images."


@pytest.mark.parametrize("word", ["0", "/dev/video0", "rtsp://10.0.0.1/stream", "http://127.0.0.1:9/photo.jpg"])
def test_cameras_streams_and_web_addresses_are_refused_with_the_way_to_read_them(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=rf"^`{word}` is (a camera or stream|a web address)\. .* docs/how-to/use-a-network\.md\."
    ):
        inputs.find_inputs([word])


@pytest.mark.parametrize("url", ["gs://bucket/photos", "s3://bucket/*.jpg"])
def test_inputs_in_a_bucket_are_no_stream(url):
    with pytest.raises(ConfigError, match=rf"^`{re.escape(url)}` is in a bucket\. .* Copy them to a disk first\.$"):
        inputs.find_inputs([url])


def test_a_folder_may_have_a_number_as_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "1" / "a.png")
    assert [each.name for each in inputs.find_inputs(["1"])[0]] == ["a"]
