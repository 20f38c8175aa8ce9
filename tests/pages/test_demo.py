"""Tests for the demo's functions and, in a headless browser, for its page."""

import io
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import read_pixels, run_cli, tiny_config
from PIL import Image, PngImagePlugin

from deeplab_jax.errors import DataError
from deeplab_jax.labels import CITYSCAPES
from deeplab_jax.pages import demo


class Network:
    """A Segmenter stand-in that predicts each pixel's red value as its class."""

    label_set = CITYSCAPES
    config = tiny_config()

    def run(self, function, images, canvas):
        return [image[..., 0] for image in images]


def save_image(path, *shape, value=0):
    Image.fromarray(np.full((*shape, 3), value, np.uint8)).save(path)
    return str(path)


def test_a_large_image_is_reduced_and_keeps_its_aspect_ratio(tmp_path):
    image, labels = demo.segment_file(Network(), save_image(tmp_path / "large.png", 30, 90, value=7), 300)
    assert image.shape == (10, 30, 3)
    assert labels.shape == (10, 30)
    assert (labels == 7).all()


def test_a_small_image_keeps_its_size(tmp_path):
    assert demo.segment_file(Network(), save_image(tmp_path / "small.png", 1, 3), 300)[0].shape == (1, 3, 3)


def test_all_bands_are_read_and_reduced(tmp_path):
    network = Network()
    network.config = tiny_config()
    network.config.data.channels = 4
    values = np.full((30, 90, 4), (7, 8, 9, 0), np.uint8)
    Image.fromarray(values).save(tmp_path / "bands.png")
    image, _ = demo.segment_file(network, str(tmp_path / "bands.png"), 300)
    # The fourth band is not transparency, so a 0 does not change the other bands.
    np.testing.assert_array_equal(image, np.broadcast_to(values[:1, :1], (10, 30, 4)))


@pytest.mark.parametrize(("limit", "shape"), [("MAX_FILE_PIXELS", (3, 3)), ("MAX_FILE_SIDE", (1, 9))])
def test_a_file_that_is_too_large_is_rejected_before_it_is_decoded(tmp_path, monkeypatch, limit, shape):
    monkeypatch.setattr(demo, limit, 8)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("The file was decoded."))
    with pytest.raises(DataError, match=f"{shape[1]}x{shape[0]} pixels"):
        demo.segment_file(Network(), save_image(tmp_path / "bomb.png", *shape), 300)


def test_class_shares_are_sorted_largest_first():
    table = demo.class_shares(np.array([[0, 10, 10, 10]], np.uint8), CITYSCAPES)
    assert re.findall(r"([a-z]+)</td><td>([\d.]+%)", table) == [("sky", "75.0%"), ("road", "25.0%")]


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--port", "99999"], "`--port` (=99999)"), (["--max-mib", "0"], "`--max-mib` (=0)")]
)
def test_user_errors_are_reported(monkeypatch, capsys, tmp_path, arguments, message):
    code, output = run_cli(monkeypatch, capsys, "demo", "--checkpoint", tmp_path, *arguments)
    assert code == 2
    assert message in output


@pytest.fixture(scope="module")
def address(stored_run, tmp_path_factory):
    """Start the demo in a separate process, as a user would, and yield its URL."""
    temporary = tmp_path_factory.mktemp("uploads")
    program = [sys.executable, "-m", "deeplab_jax"]
    command = [*program, "demo", "--checkpoint", str(stored_run), "--max-mib", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(temporary)}) as process:
        line = process.stdout.readline()
        yield line.split()[0]
        process.terminate()
        process.wait(60)
    assert [path for path in temporary.rglob("*") if path.is_file()] == []  # no uploads are left behind


def test_the_demo_page_works_in_a_browser(chromium, address, street_scenes, tmp_path):
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
    photo = next((street_scenes / "leftImg8bit" / "val").rglob("*.png"))
    tab = chromium.new_page(viewport={"width": 1200, "height": 900})
    requests = []
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(address)
    tab.set_input_files("#image input[type=file]", photo)
    tab.wait_for_selector("#classes table")
    tab.wait_for_selector("#overlay img")
    half_opaque = overlay_pixels(tab)
    set_opacity(tab, 0)
    np.testing.assert_array_equal(overlay_pixels(tab), read_pixels(photo))
    set_opacity(tab, 1)
    assert len(np.unique(overlay_pixels(tab).reshape(-1, 3), axis=0)) == tab.locator("#classes td").count() / 2
    assert not np.array_equal(half_opaque, overlay_pixels(tab))
    tab.screenshot(path=tmp_path / "demo.png")
    assert read_pixels(tmp_path / "demo.png").shape[:2] == (900, 1200)
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []  # the page contacts no other host
    tab.close()


def overlay_pixels(tab):
    """Return the pixels of the overlay shown on the page."""
    picture = tab.request.get(tab.get_attribute("#overlay img", "src")).body()
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


def set_opacity(tab, value):
    before = tab.get_attribute("#overlay img", "src")
    tab.fill("#opacity input[type=number]", str(value))
    tab.keyboard.press("Tab")
    tab.wait_for_function("before => document.querySelector('#overlay img').src != before", arg=before)


def test_the_page_reports_files_that_are_broken_or_too_large(chromium, address, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (800, 800, 3), np.uint8)).save(tmp_path / "large.png")
    truncated = tmp_path / "truncated.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:1000])
    (tmp_path / "text.png").write_text("not an image")
    messages = {"truncated.jpg": "truncated.jpg cannot be read", "text.png": "text.png cannot be read", "large.png": "size"}
    for name, message in messages.items():
        tab = chromium.new_page()
        tab.goto(address)
        tab.set_input_files("#image input[type=file]", tmp_path / name)
        tab.wait_for_selector(".toast-wrap")
        assert message in tab.locator(".toast-wrap").inner_text()
        tab.close()
