import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, read_pixels, run_cli
from PIL import Image

from deeplab_jax.labels.files import read_labels


@pytest.fixture
def export(tmp_path):
    """Return a LabelMe folder with an image of each split, an unfinished image and one that is missing."""
    root = tmp_path / "my [red] export"
    for name, shapes in (("train/a", 1), ("val/b", 1), ("train/empty", 0), ("train/gone", 1)):
        path = root / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        if name != "train/gone":
            Image.new("RGB", (70, 66)).save(path.with_suffix(".png"))
        points = [[1, 1], [30, 1], [30, 60]]
        shape = {"label": "car", "points": points, "shape_type": "polygon"}
        content = {"imagePath": f"{path.stem}.png", "imageData": None, "imageHeight": 66, "imageWidth": 70}
        path.write_text(json.dumps(content | {"shapes": [shape] * shapes}))
    return root


def test_an_export_becomes_a_data_set_that_passes_the_check(export, tmp_path, monkeypatch, capsys):
    out = tmp_path / "set; it's"
    code, output = run_cli(monkeypatch, capsys, "data", "import", export, "--from", "labelme", "--out", out)
    assert code == 0
    assert "note: annotations whose image is missing (1), for example 'gone.png' in" in output
    assert "note: images without shapes (left out; --keep-empty keeps them as background) (1)" in output
    assert f"Wrote the images (train: 1, val: 1) and 2 classes to {out}." in output
    assert read_labels(out / "labels.json").names == ("background", "car")
    assert sorted({*read_pixels(out / "target/val/b.png").ravel().tolist()}) == [0, 1]
    check, train = (shlex.split(line) for line in output.splitlines() if line.startswith("  "))
    assert train[2:] == [f"--config=configs/custom_lite0.py:{out}/labels.json", f"--config.data.root={out}", "--workdir=RUN"]
    check[check.index("DIR")] = str(tmp_path / "check")
    code, output = run_cli(monkeypatch, capsys, *check[1:])
    assert (code, "Training can read every sample." in output) == (0, True)


def test_pixels_without_a_shape_can_be_ignored(export, tmp_path, monkeypatch, capsys):
    arguments = ("data", "import", export, "--from", "labelme", "--out", tmp_path / "out", "--unlabelled", "ignored")
    code, output = run_cli(monkeypatch, capsys, *arguments)
    assert code == 2
    assert "error: The annotations have only the class 'car', and training needs 2 or more. Use `--unlabelled" in output
    assert not (tmp_path / "out").exists()
    path = export / "val/b.json"
    path.write_text(path.read_text().replace("car", "sky"))
    assert run_cli(monkeypatch, capsys, *arguments)[0] == 0
    assert read_labels(tmp_path / "out/labels.json").names == ("car", "sky")
    assert np.unique(read_pixels(tmp_path / "out/target/val/b.png")).tolist() == [1, 255]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("linestrip", "The notes list the shapes that cannot be used."), ("circle", "For example, the circle 'car' in ")],
)
def test_an_export_without_a_usable_shape_is_an_error_that_says_so(export, tmp_path, monkeypatch, capsys, kind, reason):
    for path in export.rglob("*.json"):
        path.write_text(path.read_text().replace("polygon", kind))
    code, output = run_cli(monkeypatch, capsys, "data", "import", export, "--from", "labelme", "--out", tmp_path / "out")
    assert code == 2
    assert f"error: None of the 3 annotated images has a usable shape. {reason}" in output
    assert ("note: shapes without an area or of an unsupported type (not drawn) (2)" in output) == (kind == "linestrip")


def test_a_tilde_is_the_home_folder(export, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    code, output = run_cli(monkeypatch, capsys, "data", "import", f"~/{export.name}", "--from", "labelme", "--out", "~/out")
    assert (code, (tmp_path / "out/labels.json").exists()) == (0, True)
    assert f"--config.data.root={tmp_path}/out" in output


def test_root_and_output_can_be_relative_to_the_folder_above(export, tmp_path, monkeypatch, capsys):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    code, output = run_cli(monkeypatch, capsys, "data", "import", f"../{export.name}", "--from", "labelme", "--out", "../out")
    assert (code, (tmp_path / "out/labels.json").exists()) == (0, True)
    assert "paths that leave ROOT" not in output


def test_the_output_can_be_a_link_to_an_empty_folder(export, tmp_path, monkeypatch, capsys):
    (tmp_path / "disk/out").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk/out")
    code, _ = run_cli(monkeypatch, capsys, "data", "import", export, "--from", "labelme", "--out", tmp_path / "link")
    assert (code, (tmp_path / "link").is_symlink(), (tmp_path / "disk/out/labels.json").exists()) == (0, True, True)


@pytest.mark.parametrize(("root", "out"), [("work/../export", "export/out"), ("export", "link/out"), ("link", "export/out")])
def test_an_output_inside_of_root_is_refused_however_it_is_written(export, tmp_path, monkeypatch, capsys, root, out):
    (tmp_path / "work").mkdir()
    (tmp_path / "link").symlink_to(export.rename(tmp_path / "export"))
    arguments = ("data", "import", f"{tmp_path}/{root}", "--from", "labelme", "--out", f"{tmp_path}/{out}")
    code, output = run_cli(monkeypatch, capsys, *arguments)
    assert (code, "is inside ROOT" in output) == (2, True)
    assert not (tmp_path / "export/out").exists()


@pytest.mark.parametrize(
    ("root", "tool", "out", "message"),
    [
        ("nowhere", "labelme", "out", "`ROOT` (="),
        ("a.zip", "labelme", "out", "is a file. Unpack it"),
        ("export", "paint", "out", "`--from` (='paint') is not supported. Use one of labelme, coco, yolo, cvat"),
        ("export", "coco", "out", "has coco annotations. Give the folder of the export."),
        ("export", "labelme", "export/out", "is inside ROOT"),
        ("export", "labelme", "full", "already exists and is not an empty folder"),
    ],
)
def test_errors_are_one_line(export, tmp_path, monkeypatch, capsys, root, tool, out, message):
    export.rename(tmp_path / "export")
    (tmp_path / "a.zip").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    code, output = run_cli(monkeypatch, capsys, "data", "import", tmp_path / root, "--from", tool, "--out", tmp_path / out)
    assert code == 2
    (line,) = (line for line in output.splitlines() if not line.startswith("note:"))
    assert line.startswith("error: ")
    assert message in line


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "yaml", None)
    code, output = run_cli(monkeypatch, capsys, "data", "import", tmp_path, "--from", "yolo", "--out", tmp_path.parent / "out")
    assert code == 2
    assert "require the package PyYAML. Run `pip install 'deeplab-jax[import]'` to install it." in output


def test_importing_needs_neither_tensorflow_nor_jax():
    code = "import sys, deeplab_jax.data.importers.write, deeplab_jax.commands.import_annotations\n"
    code += "import deeplab_jax.data.importers; assert not {'jax', 'tensorflow', 'pycocotools', 'yaml'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
