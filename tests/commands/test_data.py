import json
import shlex

import numpy as np
import pytest
from conftest import deeplab
from PIL import Image

from deeplab_jax.commands.data import choose_labels
from deeplab_jax.errors import ConfigError
from deeplab_jax.labels import VOC
from deeplab_jax.labels.files import read_labels, write_labels


@pytest.fixture
def own(tmp_path):
    """Three images and masks of the values 0, 4 and 255, and nothing else."""
    rng = np.random.default_rng(0)
    for split, i in (("train", 0), ("train", 1), ("val", 2)):
        for folder, shape in (("input", (70, 90, 3)), ("target", (70, 90))):
            path = tmp_path / "own" / folder / split / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            array = rng.integers(0, 256, shape, np.uint8) if folder == "input" else np.full(shape, 4 * (i % 2), np.uint8)
            if folder == "target":
                array[i], array[9] = 4, 255
            Image.fromarray(array).save(path)
    return tmp_path / "own"


def test_own_data_from_labels_to_check(own, tmp_path, monkeypatch, capsys):
    code, said = deeplab(monkeypatch, capsys, "data", "labels", own)
    assert code == 0
    assert "assumed that 0 is a class as well" in said
    assert "2 classes are in" in said
    labels = read_labels(own / "labels.json")
    assert (labels.name, labels.ids) == ("own", (0, 4))
    code, said = deeplab(monkeypatch, capsys, "data", "check", own, "--out", tmp_path / "out")
    assert code == 0
    assert "labels: own, 2 classes, from" in said
    assert "training can read every sample" in said
    assert "--config.loss.class_weights='(" in said
    assert (tmp_path / "out" / "index.html").read_text("utf-8").startswith("<!doctype html>")
    assert not json.loads((tmp_path / "out" / "check.json").read_text())["training_would_fail"]


def test_the_commands_to_go_on_with_can_be_pasted(own, monkeypatch, capsys):
    root = own.rename(own.parent / "my [red]set; it's")
    _, said = deeplab(monkeypatch, capsys, "data", "labels", root)
    check, train = (shlex.split(line) for line in said.splitlines() if line.startswith("  "))
    assert check == ["deeplab-jax", "data", "check", str(root), "--labels", f"{root}/labels.json", "--out", "DIR"]
    assert train[2:] == [f"--config=configs/custom.py:{root}/labels.json", f"--config.data.root={root}", "--workdir=RUN"]


def test_threads_are_counted_from_one(own, monkeypatch, capsys):
    for command in ("labels", "check"):
        code, said = deeplab(monkeypatch, capsys, "data", command, own, "--threads", -1)
        assert code == 2
        assert "`--threads` (=-1)" in said
        assert deeplab(monkeypatch, capsys, "data", command, own, "--threads", 1)[0] == 0


def test_without_a_labelled_pixel_no_weights_are_printed(own, monkeypatch, capsys):
    for path in own.glob("target/*/*.png"):
        Image.new("L", (90, 70), 255).save(path)
    _, said = deeplab(monkeypatch, capsys, "data", "check", own, "--labels", "voc")
    assert "100.0 % of the pixels ignored" in said
    assert "weights" not in said


def test_a_file_that_was_edited_is_not_written_over(own, monkeypatch, capsys):
    (own / "labels.json").write_text("mine")
    code, said = deeplab(monkeypatch, capsys, "data", "labels", own)
    assert code == 2
    assert "labels.json exists and is left alone" in said
    assert (own / "labels.json").read_text() == "mine"
    assert deeplab(monkeypatch, capsys, "data", "labels", own, "--out", own / "other.json", "--splits", "val")[0] == 0


def test_what_would_end_a_training_is_exit_code_1(own, monkeypatch, capsys):
    deeplab(monkeypatch, capsys, "data", "labels", own)
    bad = own / "target" / "train" / "0.png"
    Image.fromarray(np.full((70, 90), 5, np.uint8)).save(bad)
    code, said = deeplab(monkeypatch, capsys, "data", "check", own)
    assert code == 1
    assert "ERROR: values outside the label set, 1" in said
    assert f"{bad} holds 5 (6300 pixels)" in said
    assert deeplab(monkeypatch, capsys, "data", "check", own, "--splits", "val", "nope")[0] == 1


def test_labels_are_recognized_by_the_folders_or_asked_for(street_scenes, own, monkeypatch, capsys):
    code, said = deeplab(monkeypatch, capsys, "data", "check", street_scenes, "--splits", "val", "test")
    assert code == 0
    assert "labels: cityscapes, 19 classes, since the folders are those of Cityscapes" in said
    code, said = deeplab(monkeypatch, capsys, "data", "check", own)
    assert code == 2
    assert "run `deeplab-jax data labels" in said
    code, said = deeplab(monkeypatch, capsys, "data", "check", own, "--labels", "voc")
    assert "labels: voc, 21 classes, as asked" in said
    assert code == 0


@pytest.mark.parametrize("command", ["labels", "check"])
@pytest.mark.parametrize("root", ["", "nowhere"])
def test_a_root_that_is_none_is_one_line(command, root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, said = deeplab(monkeypatch, capsys, "data", command, root)
    assert code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_a_file_in_place_of_the_report_s_folder_is_noticed_before_anything_is_read(own, monkeypatch, capsys):
    code, said = deeplab(monkeypatch, capsys, "data", "check", own, "--out", own / "input" / "train" / "0.png")
    assert code == 2
    assert "is a file: name a folder" in said
    assert said.count("\n") == 1


def test_label_sets_by_name_by_file_and_from_recipes(tmp_path):
    assert choose_labels("voc") == VOC
    assert choose_labels("configs/camvid_r18.py").name == "camvid"
    write_labels(tmp_path / "own.json", VOC)
    assert choose_labels(str(tmp_path / "own.json")) == VOC
    for content in ("x = 1", "raise ImportError('nothing')", "def get_config(:", "def get_config(): return 5", "nothing()"):
        (tmp_path / "recipe.py").write_text(content)
        with pytest.raises(ConfigError, match=r"recipe\.py"):
            choose_labels(str(tmp_path / "recipe.py"))
