import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import run_cli
from PIL import Image

from deeplab_jax.runtime.canvases import list_standard_canvases


@pytest.mark.slow
def test_predict_finds_the_programs_of_warm(stored_run, tmp_path):
    without_jax = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment = without_jax | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def run(*arguments):
        command = [sys.executable, "-c", "from deeplab_jax.commands.main import main; main()", *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout, {path.name for path in tmp_path.glob("deeplab_jax/xla/*-threads/*-cache")}

    output, programs = run("warm", "--checkpoint", stored_run, "--max-pixels", 1000)
    assert "1 of 1: 256x256 pixels" in output
    assert programs
    Image.fromarray(np.zeros((200, 230, 3), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((256, 250, 3), np.uint8)).save(tmp_path / "b.png")
    output, after = run("predict", tmp_path, "--checkpoint", stored_run, "--out", tmp_path / "out")
    assert "Segmented 2 of 2 files" in output
    assert after == programs


def test_a_disabled_cache_is_reported(stored_run, monkeypatch, capsys):
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        code, output = run_cli(monkeypatch, capsys, "warm", "--checkpoint", stored_run)
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert code == 2
    assert "the compilation cache is disabled or its folder is not writable" in output


def test_a_wrong_size_is_reported(stored_run, monkeypatch, capsys):
    code, output = run_cli(monkeypatch, capsys, "warm", "--checkpoint", stored_run, "--max-pixels", 0)
    assert code == 2
    assert "`--max-pixels` (=0) cannot be used" in output


def test_the_canvases_of_small_photos_equal_those_found_by_hand():
    # Sides of 257 and more need the next canvas, so 257 x 257 pixels are within 70,000, but 257 x 321 pixels are not.
    canvases = [canvas.size for canvas in list_standard_canvases(70_000)]
    assert canvases == [(256, 256), (256, 320), (320, 256), (320, 320), (256, 416), (416, 256)]
