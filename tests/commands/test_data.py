import ast
import json
import shlex
import shutil

import numpy as np
import pytest
from conftest import run_cli
from PIL import Image

from deeplab_jax.commands.data import choose_labels, list_next_commands
from deeplab_jax.errors import ConfigError
from deeplab_jax.labels import VOC, LabelSet
from deeplab_jax.labels.files import read_labels, write_labels


@pytest.fixture
def own_data(tmp_path):
    """Return a folder with three images and their masks, but no other files. The mask values are 0, 4 and 255."""
    rng = np.random.default_rng(0)
    for split, i in (("train", 0), ("train", 1), ("val", 2)):
        for folder, shape in (("input", (70, 90, 3)), ("target", (70, 90))):
            path = tmp_path / "own_data" / folder / split / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            array = rng.integers(0, 256, shape, np.uint8) if folder == "input" else np.full(shape, 4 * (i % 2), np.uint8)
            if folder == "target":
                array[i], array[9] = 4, 255
            Image.fromarray(array).save(path)
    return tmp_path / "own_data"


def test_labels_and_check_work_on_own_data(own_data, tmp_path, monkeypatch, capsys):
    code, output = run_cli(monkeypatch, capsys, "data", "labels", own_data)
    assert code == 0
    assert "Assumed that 0 is also a class" in output
    assert "Wrote 2 classes to" in output
    labels = read_labels(own_data / "labels.json")
    assert (labels.name, labels.ids) == ("own_data", (0, 4))
    code, output = run_cli(monkeypatch, capsys, "data", "check", own_data, "--out", tmp_path / "out")
    assert code == 0
    assert "labels: own_data, 2 classes, read from" in output
    assert "Training can read every sample." in output
    assert "--config.loss.class_weights='(" in output
    assert (tmp_path / "out" / "index.html").read_text("utf-8").startswith("<!doctype html>")
    assert not json.loads((tmp_path / "out" / "check.json").read_text())["training_would_fail"]


def test_check_without_a_label_set_looks_at_the_masks(own_data, monkeypatch, capsys):
    code, output = run_cli(monkeypatch, capsys, "data", "check", own_data)
    assert code == 2
    assert "so only the masks were checked" in output
    assert f"Write it with `deeplab-jax data labels {own_data}`, or give a label set with --labels (see docs/" in output
    assert "mapillary" not in output
    for path in own_data.glob("target/*/*.png"):
        values = np.asarray(Image.open(path)).copy()
        values[20:60:3, 1::2] = 100 + 50 * np.arange(14)[:, None] % 150  # columns of one pixel between 4 and 255
        values[20:60:3, ::2] = np.where(np.arange(45) % 2, 4, 255)
        Image.fromarray(values).save(path)
    code, output = run_cli(monkeypatch, capsys, "data", "check", own_data, "--label-kind", "labelIds")
    assert code == 1
    assert output.index("ERROR: suspicious masks (1)\n  The masks are blended") < output.index(
        "Training would fail or learn wrong classes. Fix these problems"
    )
    assert f"Write it with `deeplab-jax data labels {own_data} --label-kind labelIds`" in output


@pytest.fixture
def many_problems(own_data):
    """Return `own_data` with twelve more images that are transparent, and so little else that is worth a note."""
    for i in range(10, 22):
        Image.new("RGBA", (90, 70), (i, i, i, 9)).save(own_data / "input" / "train" / f"{i}.png")
        shutil.copy(own_data / "target" / "train" / "1.png", own_data / "target" / "train" / f"{i}.png")
    return own_data


def test_problems_that_are_not_printed_can_be_found(many_problems, tmp_path, monkeypatch, capsys):
    write_labels(many_problems / "labels.json", LabelSet("own", ("a", "b"), ((0, 0, 0), (9, 9, 9)), ids=(0, 4)))
    _, output = run_cli(monkeypatch, capsys, "data", "check", many_problems)
    assert "and 7 more. Use --out DIR to list all of them in DIR/check.json." in output
    _, output = run_cli(monkeypatch, capsys, "data", "check", many_problems, "--out", tmp_path / "out")
    assert f"and 7 more. {tmp_path}/out/check.json lists all of them." in output
    assert len(json.loads((tmp_path / "out" / "check.json").read_text())["problems"]) >= 12


def test_a_check_without_a_label_set_names_no_file_for_the_other_problems(many_problems, monkeypatch, capsys):
    for path in many_problems.glob("target/train/*.png"):
        path.write_bytes(b"")
    _, output = run_cli(monkeypatch, capsys, "data", "check", many_problems, "--label-kind", "labelIds")
    assert "more.\n" in output
    assert "check.json" not in output


def test_a_label_set_is_written_for_thin_classes_with_a_note(own_data, tmp_path, monkeypatch, capsys):
    for path in (own_data / "target").rglob("*.png"):
        mask = np.zeros((70, 90), np.uint8)
        mask[:, 20:22], mask[:, 22:60] = 1, 2
        Image.fromarray(mask).save(path)
    code, output = run_cli(monkeypatch, capsys, "data", "labels", own_data, "--out", tmp_path / "labels.json")
    assert code == 0
    assert "note: At 33% of the edges, thin lines of the value 1 lie between" in output
    code, output = run_cli(monkeypatch, capsys, "data", "check", own_data)
    assert "masks that may mean something else" in output
    assert "ERROR" not in output


def test_the_printed_commands_can_be_pasted_into_a_shell(own_data, monkeypatch, capsys):
    root = own_data.rename(own_data.parent / "my [red]set; it's")
    _, output = run_cli(monkeypatch, capsys, "data", "labels", root)
    check, train = (shlex.split(line) for line in output.splitlines() if line.startswith("  "))
    assert check == ["deeplab-jax", "data", "check", str(root), "--labels", f"{root}/labels.json", "--out", "DIR"]
    assert train[2:] == [f"--config=configs/custom_lite0.py:{root}/labels.json", f"--config.data.root={root}", "--workdir=RUN"]


@pytest.mark.parametrize(
    ("chosen", "existing", "train_flags"),
    [
        ((), ["train", "val", "test"], []),
        ((), ["train", "test"], ["--config.data.val_share=0.2"]),
        ((), ["Test", "Train", "Valid"], ["--config.data.train_split=Train", "--config.eval.split=Valid"]),
        ((), ["day", "night", "val"], ["--config.data.train_split=day"]),
        ((), ["default"], ["--config.data.train_split=default", "--config.data.val_share=0.2"]),
        ((), ["val"], ["--config.data.train_split=val", "--config.train.evaluate=False"]),
        (("train",), ["train", "val"], []),  # training refuses data.val_share if there is a split val
        (("train", "night"), ["night", "train", "val"], ["--config.eval.split=night"]),
    ],
)
def test_the_printed_flags_choose_splits_that_training_can_use(chosen, existing, train_flags):
    _, train = list_next_commands("ROOT", "labels.json", "auto", chosen, existing)
    assert train[4:-1] == train_flags


def test_lists_of_other_names_are_read_as_train_and_val(own_data, monkeypatch, capsys):
    (own_data / "list").mkdir()
    (own_data / "input").rename(own_data / "images")  # otherwise, its folder train is a split
    for name, split, rows in (("Train", "train", "01"), ("val", "val", "2")):
        lines = (f"images/{split}/{i}.png target/{split}/{i}.png\n" for i in rows)
        (own_data / "list" / f"{name}.lst").write_text("".join(lines))
    code, output = run_cli(monkeypatch, capsys, "data", "labels", own_data)
    assert code == 0
    assert "Train: 2 samples" in output
    assert "val: 1 sample" in output


def test_a_missing_folder_is_reported_as_the_root_argument(tmp_path, monkeypatch, capsys):
    root = tmp_path / "nowhere"
    for command in (("labels", root), ("check", root), ("check", root, "--labels", "voc"), ("prepare", root, "--out", "x")):
        code, output = run_cli(monkeypatch, capsys, "data", *command)
        assert (code, output) == (2, f"error: `ROOT` (={str(root)!r}) is not a folder. Give the data set folder.\n")


def test_a_negative_number_of_threads_is_refused(own_data, monkeypatch, capsys):
    for command in ("labels", "check"):
        code, output = run_cli(monkeypatch, capsys, "data", command, own_data, "--threads", -1)
        assert code == 2
        assert "`--threads` (=-1)" in output
        assert run_cli(monkeypatch, capsys, "data", command, own_data, "--threads", 1)[0] == 0


def test_no_class_weights_are_printed_without_labelled_pixels(own_data, monkeypatch, capsys):
    for path in own_data.glob("target/*/*.png"):
        Image.new("L", (90, 70), 255).save(path)
    _, output = run_cli(monkeypatch, capsys, "data", "check", own_data, "--labels", "voc")
    assert "100.0 % of the pixels are ignored" in output
    assert "loss.class_weights" not in output


def test_a_split_without_readable_samples_has_no_statistics(own_data, monkeypatch, capsys):
    for path in own_data.glob("target/train/*.png"):
        path.write_bytes(b"")
    _, output = run_cli(monkeypatch, capsys, "data", "check", own_data, "--labels", "voc")
    assert "train: no sample can be read" in output.splitlines()


def test_rare_classes_are_printed_as_flags_for_copy_paste(own_data, monkeypatch, capsys):
    label = np.zeros((70, 90), np.uint8)
    label[0] = 1  # 1/70 of the pixels, and a tenth of an even share is 1/20
    for path in own_data.glob("target/train/*.png"):
        Image.fromarray(label).save(path)
    write_labels(own_data / "labels.json", LabelSet("mine", ("a", "it's $1"), ((1, 0, 0), (0, 1, 0))))
    _, output = run_cli(monkeypatch, capsys, "data", "check", own_data, "--splits", "train")
    (line,) = [line for line in output.splitlines() if "copy_paste_classes" in line]
    _, value = shlex.split(line)[1].split("=")
    assert ast.literal_eval(value) == ("it's $1",)


def test_an_existing_label_set_file_is_not_overwritten(own_data, monkeypatch, capsys):
    (own_data / "labels.json").write_text("mine")
    code, output = run_cli(monkeypatch, capsys, "data", "labels", own_data)
    assert code == 2
    assert "labels.json already exists and was not changed" in output
    assert (own_data / "labels.json").read_text() == "mine"
    assert run_cli(monkeypatch, capsys, "data", "labels", own_data, "--out", own_data / "other.json", "--splits", "val")[0] == 0


def test_the_exit_code_is_1_if_training_would_fail(own_data, monkeypatch, capsys):
    run_cli(monkeypatch, capsys, "data", "labels", own_data)
    bad = own_data / "target" / "train" / "0.png"
    Image.fromarray(np.full((70, 90), 5, np.uint8)).save(bad)
    code, output = run_cli(monkeypatch, capsys, "data", "check", own_data)
    assert code == 1
    assert "ERROR: values outside the label set (1)" in output
    assert f"{bad} holds values outside the label set own_data: 5 (6300 pixels)." in output
    assert run_cli(monkeypatch, capsys, "data", "check", own_data, "--splits", "val", "nope")[0] == 1


def test_a_missing_validation_split_is_an_error_as_in_training(own_data, monkeypatch, capsys):
    shutil.rmtree(own_data / "target" / "val")
    shutil.rmtree(own_data / "input" / "val")
    run_cli(monkeypatch, capsys, "data", "labels", own_data)
    code, output = run_cli(monkeypatch, capsys, "data", "check", own_data)
    assert code == 1
    assert "ERROR: splits that cannot be used (1)\n  Found no samples of split 'val'" in output
    assert "Set --config.data.val_share=0.2 to hold out a fifth of the training images for validation." in output
    advice = "give --splits to this command, for example --splits train."
    assert advice in output
    assert run_cli(monkeypatch, capsys, "data", "check", own_data, "--splits", "train")[0] == 0
    code, output = run_cli(monkeypatch, capsys, "data", "prepare", own_data, "--out", own_data / "records")
    assert (code, advice in output) == (2, True)
    prepare = ("data", "prepare", own_data, "--out", own_data / "records", "--splits", "train")
    assert run_cli(monkeypatch, capsys, *prepare)[0] == 0
    labels = ("--labels", own_data / "labels.json")
    code, output = run_cli(monkeypatch, capsys, "data", "check", own_data / "records", *labels)
    assert (code, advice in output) == (1, True)
    assert "or set --config.data.val_share=0.2 to hold out a fifth of the training images for validation." in output


def test_records_have_the_label_kind_of_the_label_set_in_the_folder(own_data, monkeypatch, capsys):
    for path in own_data.glob("target/*/*.png"):
        Image.open(path).convert("RGB").save(path)  # ids saved as grey colours
    assert run_cli(monkeypatch, capsys, "data", "labels", own_data, "--label-kind", "labelIds")[0] == 0
    records = own_data / "records"
    assert run_cli(monkeypatch, capsys, "data", "prepare", own_data, "--out", records, "--splits", "train")[0] == 0
    assert json.loads((records / "records.json").read_text())["splits"]["train"]["kind"] == "labelIds"


def test_the_label_set_comes_from_the_layout_or_the_flag(street_scenes, own_data, monkeypatch, capsys):
    code, output = run_cli(monkeypatch, capsys, "data", "check", street_scenes, "--splits", "val", "test")
    assert code == 0
    assert "labels: cityscapes, 19 classes, inferred from the Cityscapes folder layout" in output
    code, output = run_cli(monkeypatch, capsys, "data", "check", own_data)
    assert code == 2
    assert "Write it with `deeplab-jax data labels" in output
    code, output = run_cli(monkeypatch, capsys, "data", "check", own_data, "--labels", "voc")
    assert "labels: voc, 21 classes, given by --labels" in output
    assert code == 0


@pytest.mark.parametrize("command", ["labels", "check"])
@pytest.mark.parametrize("root", ["", "nowhere"])
def test_a_root_that_does_not_exist_is_reported_on_one_line(command, root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, output = run_cli(monkeypatch, capsys, "data", command, root)
    assert code == 2
    assert output.startswith("error: ")
    assert output.count("\n") == 1


@pytest.mark.parametrize("command", ["prepare", "check", "labels", "synthetic"])
def test_an_output_url_with_one_slash_is_no_folder(command, own_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ("gs:/bucket/out",) if command == "synthetic" else (own_data, "--out", "gs:/bucket/out")
    code, output = run_cli(monkeypatch, capsys, "data", command, *arguments)
    assert code == 2
    assert "(='gs:/bucket/out') is not a URL. Did you mean gs://bucket/out?" in output
    assert not (tmp_path / "gs:").exists()


@pytest.mark.parametrize("arguments", [("labels",), ("check", "--labels", "voc", "--out", "own_data/report")])
def test_an_output_folder_that_is_not_writable_is_reported_before_reading(arguments, own_data, monkeypatch, capsys):
    monkeypatch.chdir(own_data.parent)
    monkeypatch.setattr("os.access", lambda path, mode: str(path) != "own_data")
    command, *rest = arguments
    code, output = run_cli(monkeypatch, capsys, "data", command, "own_data", *rest)
    assert code == 2
    assert "which is not writable. Choose a different folder." in output
    assert output.count("\n") == 1


def test_an_output_folder_that_is_a_file_is_reported_before_reading(own_data, monkeypatch, capsys):
    code, output = run_cli(monkeypatch, capsys, "data", "check", own_data, "--out", own_data / "input" / "train" / "0.png")
    assert code == 2
    assert "is a file. Choose a folder." in output
    assert output.count("\n") == 1


def test_label_sets_are_chosen_by_name_file_or_recipe(tmp_path):
    assert choose_labels("voc") == VOC
    assert choose_labels("configs/camvid_r18.py").name == "camvid"
    write_labels(tmp_path / "own_data.json", VOC)
    assert choose_labels(str(tmp_path / "own_data.json")) == VOC
    for content in ("x = 1", "raise ImportError('nothing')", "def get_config(:", "def get_config(): return 5", "nothing()"):
        (tmp_path / "recipe.py").write_text(content)
        with pytest.raises(ConfigError, match=r"recipe\.py"):
            choose_labels(str(tmp_path / "recipe.py"))
